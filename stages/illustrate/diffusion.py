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
    Draft,
    Gallery,
    GeneratingIllustrator,
    Params,
    name_of,
)
from stages.shared.features.encoder_files import fingerprint
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput, allow_downloads
from stages.shared.torch_setup.devices import device, has_bf16, precision

try:
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
except ImportError as error:
    raise WrongInput(
        f"illustrate.backend: diffusers:NAME needs the extra t2i ({error}): pip install -e .[t2i]"
    ) from None


class DiffusersIllustrator(GeneratingIllustrator):
    def __init__(self, backend: str, folder: Path, weights: str, params: Params):
        self.name, self.folder, self.numbers = backend, folder, params.diffusers
        decisive = f"{weights} {self.numbers} {device().type} {precision()}"
        self.fingerprint = sha256(decisive.encode()).hexdigest()

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        diffusers_logging.disable_progress_bar()
        try:
            with _complete(self.name):
                found = DiffusionPipeline.from_pretrained(
                    self.folder, dtype=torch.bfloat16 if has_bf16() else torch.float32
                )
        except WrongInput:
            raise
        except Exception as error:  # parsers of foreign files raise what they like
            raise _unusable(self.name, error) from None
        found.set_progress_bar_config(disable=True)
        return found.to(device())

    def generate(self, drafts: list[Draft]) -> Iterator[tuple[Draft, bytes]]:
        for draft in bar(drafts, "draw"):
            noise = torch.Generator("cpu").manual_seed(int(draft.key[:15], 16))
            try:
                found = self.pipeline(
                    draft.text,
                    num_inference_steps=self.numbers.steps,
                    guidance_scale=self.numbers.guidance,
                    height=self.numbers.size,
                    width=self.numbers.size,
                    generator=noise,
                )
            except (TypeError, ValueError) as error:  # no pipeline of texts, or a size it refuses
                raise _unusable(self.name, error) from None
            flagged = found.get("nsfw_content_detected")
            if not (flagged and flagged[0]):  # a safety checker leaves a black picture
                content = BytesIO()
                found.images[0].save(content, "PNG")
                yield draft, content.getvalue()


@contextmanager
def _complete(name: str) -> Iterator[None]:
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
        raise WrongInput(
            f"illustrate.backend: {name} lacks some of its weights: give a complete checkpoint"
        )


def _unusable(name: str, error: Exception) -> WrongInput:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return WrongInput(
        f"illustrate.backend: {name} cannot be used ({reason}): check the name, "
        "illustrate.diffusers, the network and HF_HUB_OFFLINE, or give diffusers:FOLDER"
    )


def load(name: str, params: Params, gallery: Gallery) -> DiffusersIllustrator:
    """Downloads a pipeline that is named and not there yet. Raises WrongInput if there is none."""
    backend, folder = name_of(f"diffusers:{name}"), Path(name)
    if folder.is_dir():
        return DiffusersIllustrator(backend, folder, fingerprint(folder), params)
    if name.startswith((".", "/")):  # what no name of Hugging Face does
        raise WrongInput(
            f"illustrate.backend: diffusers:{name}: there is no such folder: give another, "
            "or a name of Hugging Face"
        )
    allow_downloads()
    try:
        folder = Path(DiffusionPipeline.download(name))
    except Exception as error:  # as in `pipeline`
        raise _unusable(backend, error) from None
    return DiffusersIllustrator(backend, folder, f"{name} {folder.name}", params)  # its commit
