"""Text and image encoder helpers that the classifiers of several papers share."""

import json
from pathlib import Path
from typing import Any

import torch

from stages.shared.backbones import bert
from stages.shared.core.config import load_config
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.modeling.registry import load_paper
from stages.shared.modeling.saved_config import upgrade_config
from stages.shared.pretrained import minilm
from stages.shared.runtime.stage import InputError

PRECOMPUTED_PATCHES = "patches"  # image encoder: the aligned encoder, run by embed
TEXT_ENCODER_DIR = "text_encoder"  # subfolder of a saved classifier


def load_model_config(run: Any) -> Any:
    """The section `network` of a run's model, as the ModelConfig of its paper."""
    return load_config(load_paper(run.model).ModelConfig, "models", run.model, "network")


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


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """The number of trained and of frozen parameters.

    Call it on the model to train: a restored model does not know which parameters were frozen.
    """
    counts = {"trained": 0, "frozen": 0}
    for weight in model.parameters():
        counts["trained" if weight.requires_grad else "frozen"] += weight.numel()
    return counts


def read_model_config(folder: Path) -> dict:
    """config.json of a saved classifier. Raises InputError if it does not exist."""
    try:
        return upgrade_config(json.loads((folder / "config.json").read_text()))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no trained model: run `dvc repro`") from None
