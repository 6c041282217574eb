"""A trained model by what its user calls it, and the folder behind that name.

The folder brings its own encoder of pictures and topics, so an item is read exactly as it was when
the model was trained: features in fp16, one at a time, so that neighbours change nothing.
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
COMMANDS: dict[ModelFamily, str] = {"generators": "write", "classifiers": "label"}  # of `polymuse`


def resolve_run_name(name: str | None, family: ModelFamily) -> str:
    """The run to use; without a name the first. Raises WrongInput if there is none."""
    known = list(params_file.read_params().get(family) or {})
    if not known or name not in [None, *known]:
        raise InputError(
            f"--run: params.yaml has no run {name!r} among its {family}: choose one of "
            f"{' | '.join(known) or 'none'}"
        )
    return name or known[0]


def resolve_model_dir(
    run: str, model: str | None, places: dict[str, str], stage: str, stack: ExitStack
) -> tuple[Path, str | None]:
    """The folder of the model and, of a run's, its phase: the first of the places that there is.

    stage: what trains it to the end. Raises WrongInput if it is untrained.
    """
    if model is None:
        for phase, above in places.items():
            if (folder := Path(above, run, "model")).is_dir():
                return folder, phase
        raise InputError(f"--run: {run} is not trained yet: run `polymuse run {stage}@{run}`")
    if not is_mlflow_uri(model):
        return Path(model), None
    from stages.shared.runtime import tracking

    copy = stack.enter_context(TemporaryDirectory(prefix="polymuse-"))
    print(f"Fetching {model}", flush=True)
    return tracking.download_model(model, Path(copy)), None


def is_mlflow_uri(model: str) -> bool:
    """Whether MLflow knows it; else it is a folder."""
    return model.startswith(("models:", "runs:"))


def format_model_source(model: str | None) -> str | None:
    """--model as what is made names it: an address as given, of a folder no more than its name."""
    if model is None or is_mlflow_uri(model):
        return model
    folder = Path(model).resolve()
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else folder.name


class ModelBundle:
    """A trained folder, whose encoder is loaded when it is first needed."""

    def __init__(self, folder: Path, name: str, family: ModelFamily):
        """`name`: the folder as the user knows it. Raises WrongInput if it holds no such model."""
        self.folder, self.name = folder, name
        if not (folder / "config.json").is_file():
            raise InputError(f"{name} holds no trained model: name a folder that training wrote")
        with self.as_input_error():
            config = json.loads((folder / "config.json").read_text())
            found, self.is_meme_classifier = detect_family(config), is_meme_classifier(config)
        if found != family:
            raise InputError(
                f"{name} holds one of the {found}: give it to `polymuse {COMMANDS[found]}`, or name "
                f"one of the {family}"
            )

    def require_encoder(self) -> None:
        """Raises WrongInput if the folder has none."""
        from stages.shared.encoders import base as encoders

        if not (self.folder / ENCODER_DIR / encoders.CONFIG_NAME).is_file():
            raise InputError(
                f"{self.name} holds no encoder, older versions wrote none: train it again"
            )

    @cached_property
    def encoder(self) -> "Encoder":
        from stages.shared.encoders import base as encoders

        with self.as_input_error():
            return encoders.load_encoder(self.folder / ENCODER_DIR)

    @contextmanager
    def as_input_error(self) -> Iterator[None]:
        """Whatever is wrong with the folder's files, as WrongInput."""
        try:
            yield
        except Exception as error:  # parsers of foreign files raise what they like
            said = " ".join(str(error).removeprefix("params.yaml: ").split())
            reason = said.replace(f"{self.folder}/", "")[:200] or type(error).__name__
            raise InputError(f"{self.name} cannot be loaded ({reason}): train it again") from None

    def encode_images(self, contents: list[bytes]) -> list[tuple["np.ndarray", "np.ndarray"]]:
        """Picture files -> (D,), (P, Dp) of each, by the encoder"""
        from stages.shared.data import image_store

        read = [
            self.encoder.encode_images([image_store.decode_image(content)]) for content in contents
        ]
        return [(to_fp16(pooled[0]), to_fp16(patches[0])) for pooled, patches in read]

    def encode_texts(self, texts: list[str], width: int, pooled_width: int) -> dict[str, Any]:
        """What Features holds of texts, by the encoder. width, pooled_width: Dt and D of no text"""
        import numpy as np

        read = [self.encoder.encode_texts([text]) for text in texts]
        pooled = [to_fp16(pooled[0]) for pooled, _, _ in read]
        lengths = np.array([int(mask.sum()) for _, _, mask in read] or [1])
        width = read[0][1].shape[2] if read else width
        tokens = np.zeros((len(lengths), lengths.max(), width), np.float16)
        for row, (_, states, _) in enumerate(read):
            tokens[row, : lengths[row]] = to_fp16(states[0, : lengths[row]])
        return {
            "text_index": {text: row for row, text in enumerate(texts)},
            "text_pooled": np.stack(pooled) if pooled else np.zeros((1, pooled_width), np.float16),
            "tokens": tokens,
            "token_mask": np.arange(lengths.max()) < lengths[:, None],
            "pieces": self.encoder.subwords(texts) if texts else [],
        }


def detect_family(config: dict) -> ModelFamily:
    """Whether a config.json is that of a writer or of a reader."""
    return "classifiers" if "labels" in config else "generators"


def is_meme_classifier(config: dict) -> bool:
    """Whether a config.json is that of a reader of memes: it labels for each of several tasks."""
    return isinstance(config.get("labels"), dict)


def to_fp16(values) -> "np.ndarray":
    """A tensor as features are stored."""
    return values.half().numpy()
