"""Illustration by a text-to-image pipeline of diffusers, given by Hugging Face name or folder.

Each image is generated on its own, from noise with its own seed, so the other images do not matter.
Requires the extra `t2i`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers and diffusers)

# isort: split
import torch

from stages.illustrate.base import (
    GeneratingIllustrator,
    IllustrateConfig,
    ImageGallery,
    ImageRequest,
    get_backend_name,
)
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, allow_downloads, explain_hub_error
from stages.shared.torch_setup.devices import get_device, get_precision, supports_bf16

try:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
except ImportError as error:
    raise InputError(
        f"illustrate.backend: diffusers:NAME needs the extra t2i ({error}): pip install -e .[t2i]"
    ) from None


class DiffusersIllustrator(GeneratingIllustrator):
    """Generates images with a diffusers pipeline. weights: identifies them in the fingerprint."""

    def __init__(self, backend: str, folder: Path, weights: str, config: IllustrateConfig):
        self.name, self.folder, self.config = backend, folder, config.diffusers
        # The fingerprint is part of cache keys and of illustrations.parquet: keep this format.
        options = (
            f"Diffusers(steps={self.config.num_inference_steps!r}, "
            f"guidance={self.config.guidance_scale!r}, size={self.config.image_size!r})"
        )
        key = f"{weights} {options} {get_device().type} {get_precision()}"
        self.fingerprint = sha256(key.encode()).hexdigest()

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """The pipeline on the device. Raises InputError if it cannot be loaded completely."""
        diffusers_logging.disable_progress_bar()
        try:
            with _check_weights_complete(self.name):
                pipeline = DiffusionPipeline.from_pretrained(
                    self.folder, dtype=torch.bfloat16 if supports_bf16() else torch.float32
                )
        except InputError:
            raise
        except Exception as error:  # parsers of external files raise arbitrary exceptions
            raise _build_error(self.name, error) from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(get_device())

    def generate(self, requests: list[ImageRequest]) -> Iterator[tuple[ImageRequest, bytes]]:
        for request in progress_bar(requests, "generate images"):
            noise = torch.Generator("cpu").manual_seed(int(request.key[:15], 16))
            try:
                output = self.pipeline(  # pyright: ignore[reportCallIssue] (a subclass)
                    request.text,
                    num_inference_steps=self.config.num_inference_steps,
                    guidance_scale=self.config.guidance_scale,
                    height=self.config.image_size,
                    width=self.config.image_size,
                    generator=noise,
                )
            except (TypeError, ValueError) as error:  # not a text-to-image pipeline, or a bad size
                raise _build_error(self.name, error) from None
            flagged = output.get("nsfw_content_detected")
            if not (flagged and flagged[0]):  # the safety checker replaces the image by a black one
                content = BytesIO()
                output.images[0].save(content, "PNG")
                yield request, content.getvalue()


@contextmanager
def _check_weights_complete(name: str) -> Iterator[None]:
    """Raises InputError on exit if a model was loaded without some of its weights.

    Neither library raises, and a pipeline does not report missing weights of its models. Both only
    log that weights are "newly initialized".
    """
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "newly initialized" in record.getMessage():
                messages.append(record.getMessage())

    listener = Listener(logging.WARNING)
    loggers = [logging.getLogger(library) for library in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.addHandler(listener)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(listener)
    if messages:
        raise InputError(
            f"illustrate.backend: {name} lacks some of its weights: give a complete checkpoint"
        )


def _build_error(name: str, error: Exception) -> InputError:
    reason = explain_hub_error(error) or " ".join(str(error).split())[:200]
    reason = reason or type(error).__name__
    return InputError(
        f"illustrate.backend: {name} cannot be used ({reason}): check the name, "
        "illustrate.diffusers, the network and HF_HUB_OFFLINE, or give diffusers:FOLDER"
    )


def load(name: str, config: IllustrateConfig, gallery: ImageGallery) -> DiffusersIllustrator:
    """The illustrator of a folder, or of a Hugging Face name, which is downloaded if needed.

    Raises InputError if there is no such pipeline.
    """
    backend, folder = get_backend_name(f"diffusers:{name}"), Path(name)
    if folder.is_dir():
        return DiffusersIllustrator(backend, folder, fingerprint_folder(folder), config)
    if name.startswith((".", "/")):  # a path, not a Hugging Face name
        raise InputError(
            f"illustrate.backend: diffusers:{name}: there is no such folder: give another folder "
            "or a Hugging Face name"
        )
    allow_downloads()
    try:
        folder = Path(DiffusionPipeline.download(name))
    except Exception as error:  # as in `pipeline`
        raise _build_error(backend, error) from None
    return DiffusersIllustrator(backend, folder, f"{name} {folder.name}", config)  # a commit
