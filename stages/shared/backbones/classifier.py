"""What the classifiers of several papers share: interfaces, checks, and the files of a saved model.

A saved classifier is a folder that loads by path, without params.yaml or network access. All have

    model.safetensors   weights, except those of an installed package
    config.json         model, encoders, network, input dimensions, labels and parameter counts
    text_encoder/       tokenizer and configuration of the text encoder, if it has one
    encoder/            the aligned encoder, if the classifier uses its features
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.shared.backbones import bert
from stages.shared.backbones.bert import TextEncoder
from stages.shared.core.config import load_config
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.modeling.registry import load_paper
from stages.shared.modeling.saved_config import upgrade_config
from stages.shared.modeling.state_dict import untied_state_dict
from stages.shared.pretrained import minilm
from stages.shared.runtime.stage import InputError
from stages.shared.training.batching import Batch
from stages.shared.training.loop import LossTerms

PRECOMPUTED_PATCHES = "patches"  # image encoder: the aligned encoder, run by embed
TEXT_ENCODER_DIR = "text_encoder"  # subfolder of a saved classifier
WEIGHTS_FILE = "model.safetensors"
PredictionsT_co = TypeVar("PredictionsT_co", covariant=True)


class ClassifierPaper(Protocol[PredictionsT_co]):
    """The module stages/models/<paper>/model.py of a classifier, as the shared code uses it."""

    def compute_loss(self, model: Any, batch: Batch) -> LossTerms:
        """The named terms of the loss of a batch."""
        ...

    def predict(self, model: Any, batch: Batch) -> PredictionsT_co:
        """The predictions for a batch; their `labels` are label ids."""
        ...

    def diagnostics(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Quantities to monitor in training: name -> (B,), NaN where they do not apply."""
        ...


class Classifier(Protocol):
    """A model with its paper and the content of its config.json."""

    @property
    def paper(self) -> ClassifierPaper[Any]: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def config(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class CorpusFolders:
    """The folders that a classifier reads."""

    images: Path  # has images/
    records: Path  # has records.parquet
    features: Path  # written by embed


def load_model_config(model: str) -> Any:
    """The section `models.<model>.network`, as the ModelConfig of the paper."""
    return load_config(load_paper(model).ModelConfig, "models", model, "network")


def check_language(run: Any, rows: list[dict]) -> None:
    """Raises InputError if the text encoder is MiniLM and at most half of the rows are English.

    Rows of undetermined language count as English. A BERT by name is not checked, since its
    languages are unknown.
    """
    supported = {*minilm.LANGUAGES, UNDETERMINED_LANGUAGE}
    share = sum(row["language"] in supported for row in rows) / len(rows)
    if run.text.encoder == bert.MINILM and share <= 0.5:
        raise InputError(
            f"params.yaml: text.encoder of the classifiers of {run.corpus} is minilm, which "
            f"supports English only, but {share:.0%} of the train texts are English: name a BERT "
            "of their language (google-bert/bert-base-multilingual-cased for 104 languages, "
            "google-bert/bert-base-chinese for Chinese)"
        )


def count_parameters(model: nn.Module) -> dict[str, int]:
    """The number of trained and of frozen parameters.

    Call it on the model to train: a restored model does not know which parameters were frozen.
    """
    counts = {"trained": 0, "frozen": 0}
    for weight in model.parameters():
        counts["trained" if weight.requires_grad else "frozen"] += weight.numel()
    return counts


def save_classifier(
    folder: Path,
    classifier: Classifier,
    text_encoder: TextEncoder | None,
    aligned_encoder: Path | None,
) -> None:
    """Write the files that all classifiers have.

    text_encoder, aligned_encoder (a folder): None if the classifier does not use it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(classifier.config, indent=1, ensure_ascii=False)
    (folder / "config.json").write_text(config)
    save_file(state_dict_to_save(classifier.model), folder / WEIGHTS_FILE)
    if text_encoder is not None:
        text_encoder.save(folder / TEXT_ENCODER_DIR)
    if aligned_encoder is not None:
        copy_encoder(aligned_encoder, folder)


def state_dict_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the weights that an installed package has."""
    excluded = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, TextEncoder)
        for name in module.excluded_weights()
    }
    return {name: value for name, value in untied_state_dict(model).items() if name not in excluded}


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved classifier. Raises InputError if it does not exist."""
    try:
        return upgrade_config(json.loads((folder / "config.json").read_text()))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no trained model: run `dvc repro`") from None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights that `save_classifier` wrote. Raises InputError if they do not fit."""
    weights = load_file(folder / WEIGHTS_FILE)
    if weights.keys() != state_dict_to_save(model).keys():
        raise InputError(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights, strict=False)  # those of the package are already loaded
