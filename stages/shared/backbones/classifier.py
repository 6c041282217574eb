"""What the classifiers of several papers share around their text and image encoders."""

import json
from pathlib import Path
from typing import Any

import torch

from stages.shared.backbones import bert
from stages.shared.core.config import load_config
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.modeling.registry import load_paper
from stages.shared.pretrained import minilm
from stages.shared.runtime.stage import InputError

PRECOMPUTED_PATCHES = "patches"  # the picture encoder that embed ran
TEXT_ENCODER_DIR = "text_encoder"  # folder within that of a model


def load_model_config(run):
    """The numbers of a run's model that its weights depend on."""
    return load_config(load_paper(run.model).ModelConfig, "models", run.model, "network")


def check_language(run: Any, rows: list[dict]) -> None:
    """Raises WrongInput if MiniLM is to read texts that are not English in their majority.

    A language that nobody could tell may be English. Of a BERT by name nobody knows what it reads.
    """
    read = {*minilm.LANGUAGES, UNDETERMINED_LANGUAGE}
    share = sum(row["language"] in read for row in rows) / len(rows)
    if run.text.encoder == bert.MINILM and share <= 0.5:
        raise InputError(
            f"params.yaml: text.encoder of the readers of {run.corpus} is minilm, which reads "
            f"English, as {share:.0%} of the train texts are: name a BERT of their language "
            "(google-bert/bert-base-multilingual-cased reads 104, google-bert/bert-base-chinese "
            "Chinese)"
        )


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """How many numbers are trained, and how many are not. (Who restores a model cannot tell.)"""
    counts = {"trained": 0, "frozen": 0}
    for weight in model.parameters():
        counts["trained" if weight.requires_grad else "frozen"] += weight.numel()
    return counts


def read_model_config(folder: Path) -> dict:
    """config.json of a trained folder. Raises WrongInput if it is not there."""
    try:
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no trained model: run `dvc repro`") from None
