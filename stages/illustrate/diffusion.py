"""Diffusion: a text-to-image pipeline of diffusers, by Hugging Face name or folder, draws pictures.

Each is drawn by itself, from noise of its own seed: its neighbours do not matter.
Needs the extra `t2i`.
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
from stages.shared.runtime.stage import InputError, allow_downloads
from stages.shared.torch_setup.devices import get_device, get_precision, supports_bf16

try:
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
except ImportError as error:
    raise InputError(
        f"illustrate.backend: diffusers:NAME needs the extra t2i ({error}): pip install -e .[t2i]"
    ) from None


class DiffusersIllustrator(GeneratingIllustrator):
    def __init__(self, backend: str, folder: Path, weights: str, params: IllustrateConfig):
        self.name, self.folder, self.config = backend, folder, params.diffusers
        decisive = f"{weights} {self.config} {get_device().type} {get_precision()}"
        self.fingerprint = sha256(decisive.encode()).hexdigest()

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        diffusers_logging.disable_progress_bar()
        try:
            with _check_weights_complete(self.name):
                found = DiffusionPipeline.from_pretrained(
                    self.folder, dtype=torch.bfloat16 if supports_bf16() else torch.float32
                )
        except InputError:
            raise
        except Exception as error:  # parsers of foreign files raise what they like
            raise _build_error(self.name, error) from None
        found.set_progress_bar_config(disable=True)
        return found.to(get_device())

    def generate(self, drafts: list[ImageRequest]) -> Iterator[tuple[ImageRequest, bytes]]:
        for draft in progress_bar(drafts, "draw"):
            noise = torch.Generator("cpu").manual_seed(int(draft.key[:15], 16))
            try:
                found = self.pipeline(
                    draft.text,
                    num_inference_steps=self.config.num_inference_steps,
                    guidance_scale=self.config.guidance_scale,
                    height=self.config.image_size,
                    width=self.config.image_size,
                    generator=noise,
                )
            except (TypeError, ValueError) as error:  # no pipeline of texts, or a size it refuses
                raise _build_error(self.name, error) from None
            flagged = found.get("nsfw_content_detected")
            if not (flagged and flagged[0]):  # a safety checker leaves a black picture
                content = BytesIO()
                found.images[0].save(content, "PNG")
                yield draft, content.getvalue()


@contextmanager
def _check_weights_complete(name: str) -> Iterator[None]:
    """Raises WrongInput at the end if a model was loaded without all of its weights.

    Neither library can be made to raise, nor does a pipeline hand on what its models lack: both log
    that weights are "newly initialized".
    """
    complaints: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "newly initialized" in record.getMessage():
                complaints.append(record.getMessage())

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
    if complaints:
        raise InputError(
            f"illustrate.backend: {name} lacks some of its weights: give a complete checkpoint"
        )


def _build_error(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(
        f"illustrate.backend: {name} cannot be used ({reason}): check the name, "
        "illustrate.diffusers, the network and HF_HUB_OFFLINE, or give diffusers:FOLDER"
    )


def load(name: str, params: IllustrateConfig, gallery: ImageGallery) -> DiffusersIllustrator:
    """Downloads a pipeline that is named and not there yet. Raises WrongInput if there is none."""
    backend, folder = get_backend_name(f"diffusers:{name}"), Path(name)
    if folder.is_dir():
        return DiffusersIllustrator(backend, folder, fingerprint_folder(folder), params)
    if name.startswith((".", "/")):  # what no name of Hugging Face does
        raise InputError(
            f"illustrate.backend: diffusers:{name}: there is no such folder: give another, "
            "or a name of Hugging Face"
        )
    allow_downloads()
    try:
        folder = Path(DiffusionPipeline.download(name))
    except Exception as error:  # as in `pipeline`
        raise _build_error(backend, error) from None
    return DiffusersIllustrator(backend, folder, f"{name} {folder.name}", params)  # its commit
