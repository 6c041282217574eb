"""A tiny MM-ORIENT and its batches, for the tests of the model."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.mm_orient.dataset import UNLABELED
from stages.models.mm_orient.model import (
    GRAPHS,
    InputDims,
    Model,
    ModelConfig,
    fit_statistics,
    predict,
)
from stages.shared.core.config import build_config

TASKS = {"sentiment": 3, "humour": 4, "motivational": 2}
D_T, D_V, D, NUM_TASK_FEATURES, NUM_REGIONS = 6, 5, 8, 3, 4
INPUT_DIMS = InputDims(
    tasks=TASKS,
    text_width=D_T,
    region_width=D_V,
    pooled_width=D,
    task_features=NUM_TASK_FEATURES,
)
NUM_ITEMS = 12
WITHOUT_TEXT, WITHOUT_IMAGE = (2, 7), (4, 9)
WITHOUT_LABELS = {0: (1,), 5: (0, 1, 2), 6: (2,)}  # item -> indices of unlabeled tasks


def config_values(**changes) -> dict:
    """The section `network` with these changes.

    Keys of nested sections are written as relations__memory_bank_size."""
    relations = {
        "output_dim": 4,
        "scale": "root",
        "eval_graph": "bank",
        "memory_bank_size": 10,
        "density": 0.3,
        "thresholds": dict.fromkeys(GRAPHS, 0.1),
    }
    noise = {"train_std": 0.0, "eval_std": 0.0}
    values = {
        "inputs": "full",
        "use_layer_norm": True,
        "attention": "linear",
        "attention_dim": 5,
        "hima_levels": "both",
        "eval_bias": "stored",
        "bias_momentum": 0.5,
        "use_cmrl": True,
        "use_task_features": True,
        "hidden_layer_sizes": [16, 8],
        "dropout": 0.0,
        "class_weight": "none",
        "task_weighting": "equal",
        "image_drop_prob": 0.0,
        "text_drop_prob": 0.0,
    }
    sections = {"relations": relations, "feature_noise": noise}
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (sections[section] if section else values)[key] = value
    return {**values, **sections}


def build_model_config(**changes) -> ModelConfig:
    return build_config(ModelConfig, config_values(**changes), "models.mm_orient.network")


def make_item(index: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """One meme with random features, seeded by its index."""
    generator = torch.Generator().manual_seed(index)
    length = 1 + index % 5
    text, image = index not in WITHOUT_TEXT, index not in WITHOUT_IMAGE
    labels = torch.tensor([(index * 7 + task) % n for task, n in enumerate(TASKS.values())])
    labels[list(WITHOUT_LABELS.get(index, ()))] = UNLABELED

    def vector(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "tokens": vector(length, D_T) if text else torch.zeros(0, D_T, dtype=dtype),
        "token_mask": torch.ones(length if text else 0, dtype=torch.bool),
        "regions": vector(NUM_REGIONS, D_V) * image,
        "text_clip": F.normalize(vector(D), dim=-1) * text,
        "picture_clip": F.normalize(vector(D), dim=-1) * image,
        "task_features": vector(NUM_TASK_FEATURES) * text,
        "has_text": torch.tensor(text),
        "has_picture": torch.tensor(image),
        "labels": labels,
    }


def make_batch(*indices: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A batch of items; shorter texts are padded with zeros at the end."""
    items = [make_item(index, dtype) for index in indices]
    padded = {"tokens", "token_mask"}
    return {
        key: nn.utils.rnn.pad_sequence([item[key] for item in items], batch_first=True)
        if key in padded
        else torch.stack([item[key] for item in items])
        for key in items[0]
    }


def make_full_batch(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return make_batch(*range(NUM_ITEMS), dtype=dtype)


def build_model(
    dtype: torch.dtype = torch.float32, features: int = NUM_TASK_FEATURES, **changes
) -> Model:
    """A model with statistics of all items and a random running mean of the bias."""
    torch.manual_seed(0)
    dims = replace(INPUT_DIMS, task_features=features)
    model = Model(build_model_config(**changes), dims).to(dtype)
    batch = make_full_batch(dtype)
    fit_statistics(model, batch | {"task_features": batch["task_features"][:, :features]})
    for name, value in model.named_buffers():
        if name.endswith(".bias"):
            value.normal_()
    return model.eval()


VARIANTS = [
    {},
    {"attention": "context_vector", "use_layer_norm": False},
    {"hima_levels": "first"},
    {"hima_levels": "second"},
    {"hima_levels": "none", "use_task_features": False},
    {"eval_bias": "zero"},
    {"use_cmrl": False},
    {"relations__density": None, "relations__scale": "unit"},
    {"task_weighting": "uncertainty", "class_weight": "balanced"},
    {"inputs": "text_only"},
    {"inputs": "regions_only"},
    {"inputs": "clip"},
    {"inputs": "concatenation"},
]


def predict_probabilities(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """Probabilities of all tasks, concatenated.  -> (B, sum of num_labels)"""
    return torch.cat(list(predict(model, batch).probabilities.values()), 1)


def variant_id(changes: dict) -> str:
    """The test id of a variant."""
    return "-".join(map(str, changes.values())) or "default"
