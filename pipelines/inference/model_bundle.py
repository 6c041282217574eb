"""Find and open the model folder that the user names.

A model folder contains the encoder that it was trained with, so that inputs are encoded exactly as
in training: features in fp16, one item at a time, so that they do not depend on other items.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from stages.shared.core import config as params_file
from stages.shared.features.encoder_files import ENCODER_DIR
from stages.shared.runtime.stage import InputError

if TYPE_CHECKING:
    import numpy as np

    from stages.shared.encoders.base import Encoder

ModelFamily = Literal["generators", "classifiers"]  # sections of params.yaml
MODEL_DIRS: dict[ModelFamily, dict[str, str]] = {  # phase -> parent of the run's folder, last first
    "generators": {"preference": "data/10_train_preference", "sft": "data/09_train_sft"},
    "classifiers": {"train_classifier": "data/09_train_classifier"},
}
COMMANDS: dict[ModelFamily, str] = {"generators": "write", "classifiers": "label"}


def resolve_run_name(name: str | None, family: ModelFamily) -> str:
    """`name`, or the first run of the family. Raises InputError if there is no such run."""
    runs = list(params_file.read_params().get(family) or {})
    if not runs or name not in [None, *runs]:
        raise InputError(
            f"--run: params.yaml has no run {name!r} among its {family}: choose one of "
            f"{' | '.join(runs) or 'none'}"
        )
    return name or runs[0]


def resolve_model_dir(
    run: str, model: str | None, phase_dirs: dict[str, str], stage: str, stack: ExitStack
) -> tuple[Path, str | None]:
    """The model folder of --model, or that of a run with its phase.

    phase_dirs: phase -> parent of the run's folder; the first existing one is used. stage: the last
    training stage. stack: owns a downloaded copy. Raises InputError if the run is not trained.
    """
    if model is None:
        if trained := find_trained_dir(run, phase_dirs):
            return trained
        raise InputError(f"--run: {run} is not trained yet: run `polymuse run {stage}@{run}`")
    if not is_mlflow_uri(model):
        return Path(model), None
    from stages.shared.runtime import tracking

    folder = stack.enter_context(TemporaryDirectory(prefix="polymuse-"))
    print(f"Downloading {model}", flush=True)
    return tracking.download_model(model, Path(folder)), None


def find_trained_dir(run: str, phase_dirs: dict[str, str]) -> tuple[Path, str] | None:
    """The model folder of a run with its phase, the first of `phase_dirs`; None if not trained."""
    for phase, parent in phase_dirs.items():
        if (folder := Path(parent, run, "model")).is_dir():
            return folder, phase
    return None


def is_mlflow_uri(model: str) -> bool:
    """Whether `model` is an address of MLflow; otherwise it is a folder."""
    return model.startswith(("models:", "runs:"))


def format_model_source(model: str | None) -> str | None:
    """--model for outputs: an address unchanged, a folder relative to the project or its name."""
    if model is None or is_mlflow_uri(model):
        return model
    folder = Path(model).resolve()
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else folder.name


class ModelBundle:
    """A model folder, whose encoder is loaded on first use."""

    def __init__(self, folder: Path, name: str, family: ModelFamily):
        """Open `folder`, called `name` in messages. Raises InputError if it has no such model."""
        self.folder, self.name = folder, name
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{name} holds no trained model: name a folder that a training stage wrote"
            )
        with self.as_input_error():
            config = json.loads((folder / "config.json").read_text())
            actual, self.is_meme_classifier = detect_family(config), is_meme_classifier(config)
        if actual != family:
            raise InputError(
                f"{name} is one of the {actual}: use it with `polymuse {COMMANDS[actual]}`, or "
                f"name one of the {family}"
            )

    def require_encoder(self) -> None:
        """Raises InputError if the folder has no encoder."""
        from stages.shared.encoders import base as encoders

        if not (self.folder / ENCODER_DIR / encoders.CONFIG_NAME).is_file():
            raise InputError(f"{self.name} holds no encoder, as in old versions: train it again")

    @cached_property
    def encoder(self) -> "Encoder":
        from stages.shared.encoders import base as encoders

        with self.as_input_error():
            return encoders.load_encoder(self.folder / ENCODER_DIR)

    @contextmanager
    def as_input_error(self) -> Iterator[None]:
        """Turn any error while reading the folder into an InputError."""
        try:
            yield
        except Exception as error:  # parsers raise many types
            message = " ".join(str(error).removeprefix("params.yaml: ").split())
            reason = message.replace(f"{self.folder}/", "")[:200] or type(error).__name__
            raise InputError(f"{self.name} cannot be loaded ({reason}): train it again") from None

    def encode_images(self, contents: list[bytes]) -> list[tuple["np.ndarray", "np.ndarray"]]:
        """Encode the content of image files, one at a time -> pooled (D,) and patches (P, Dp)."""
        from stages.shared.data import image_store

        images = (
            image_store.decode_image(content, self.encoder.image_size) for content in contents
        )
        encoded = [self.encoder.encode_images([image]) for image in images]
        return [(to_fp16(pooled[0]), to_fp16(patches[0])) for pooled, patches in encoded]

    def encode_texts(self, texts: list[str], width: int, pooled_width: int) -> dict[str, Any]:
        """Encode texts one at a time -> the text fields of Features.

        width, pooled_width: Dt and D of the unused row of zeros if there are no texts.
        """
        import numpy as np

        encoded = [self.encoder.encode_texts([text]) for text in texts]
        pooled = [to_fp16(pooled[0]) for pooled, _, _ in encoded]
        lengths = np.array([int(mask.sum()) for _, _, mask in encoded] or [1])
        width = encoded[0][1].shape[2] if encoded else width
        tokens = np.zeros((len(lengths), lengths.max(), width), np.float16)
        for row, (_, states, _) in enumerate(encoded):
            tokens[row, : lengths[row]] = to_fp16(states[0, : lengths[row]])
        return {
            "text_index": {text: row for row, text in enumerate(texts)},
            "text_pooled": np.stack(pooled) if pooled else np.zeros((1, pooled_width), np.float16),
            "tokens": tokens,
            "token_mask": np.arange(lengths.max()) < lengths[:, None],
            "subwords": self.encoder.subwords(texts) if texts else [],
        }


def detect_family(config: dict) -> ModelFamily:
    """The family of the model with this config.json."""
    return "classifiers" if "labels" in config else "generators"


def is_meme_classifier(config: dict) -> bool:
    """Whether this config.json is that of a classifier of memes, which has labels by task."""
    return isinstance(config.get("labels"), dict)


def to_fp16(values) -> "np.ndarray":
    """A tensor in the format of stored features."""
    return values.half().numpy()
