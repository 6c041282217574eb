"""A tiny MM-ORIENT and its batches, for the tests of the model and of what reads memes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.mm_orient.dataset import UNLABELED
from stages.models.mm_orient.model import (
    GRAPHS,
    InputDims,
    Model,
    ModelConfig,
    NoiseConfig,
    RelationConfig,
    fit_statistics,
    predict,
)

TASKS = {"sentiment": 3, "humour": 4, "motivational": 2}
D_T, D_V, D, NUM_TASK_FEATURES, NUM_REGIONS = 6, 5, 8, 3, 4
NUM_ITEMS = 12
WITHOUT_TEXT, WITHOUT_IMAGE = (2, 7), (4, 9)
WITHOUT_LABELS = {0: (1,), 5: (0, 1, 2), 6: (2,)}  # item -> places of tasks that nobody judged


def build_model_config(**changes) -> ModelConfig:
    """Keys of relations and noise are given as relations__bank and the like."""
    relations = {
        "width": 4,
        "scale": "root",
        "graph": "bank",
        "bank": 10,
        "density": 0.3,
        "thresholds": dict.fromkeys(GRAPHS, 0.1),
    }
    noise = {"training": 0.0, "evaluation": 0.0}
    values = {
        "inputs": "full",
        "layer_norm": True,
        "attention": "linear",
        "attention_width": 5,
        "hima": "both",
        "bias": "stored",
        "bias_momentum": 0.5,
        "use_cmrl": True,
        "use_task_features": True,
        "hidden": [16, 8],
        "dropout": 0.0,
        "class_weights": "none",
        "task_weights": "equal",
        "missing_picture": 0.0,
        "missing_text": 0.0,
    }
    parts = {"relations": relations, "noise": noise}
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (parts[part] if part else values)[key] = value
    return ModelConfig(
        relations=RelationConfig(**relations), feature_noise=NoiseConfig(**noise), **values
    )


def make_item(index: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """One meme, the same whatever it is batched with; labels depend on text and picture."""
    given = torch.Generator().manual_seed(index)
    length = 1 + index % 5
    text, picture = index not in WITHOUT_TEXT, index not in WITHOUT_IMAGE
    labels = torch.tensor([(index * 7 + place) % n for place, n in enumerate(TASKS.values())])
    labels[list(WITHOUT_LABELS.get(index, ()))] = UNLABELED

    def vector(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=given, dtype=dtype)

    return {
        "tokens": vector(length, D_T) if text else torch.zeros(0, D_T, dtype=dtype),
        "token_mask": torch.ones(length if text else 0, dtype=torch.bool),
        "regions": vector(NUM_REGIONS, D_V) * picture,
        "text_clip": F.normalize(vector(D), dim=-1) * text,
        "picture_clip": F.normalize(vector(D), dim=-1) * picture,
        "task_features": vector(NUM_TASK_FEATURES) * text,
        "has_text": torch.tensor(text),
        "has_picture": torch.tensor(picture),
        "labels": labels,
    }


def make_batch(*indices: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Texts of different lengths are padded with 0 at their ends."""
    items = [make_item(index, dtype) for index in indices]
    padded = {"tokens", "token_mask"}
    return {
        key: nn.utils.rnn.pad_sequence([one[key] for one in items], batch_first=True)
        if key in padded
        else torch.stack([one[key] for one in items])
        for key in items[0]
    }


def make_full_batch(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return make_batch(*range(NUM_ITEMS), dtype=dtype)


def build_model(
    dtype: torch.dtype = torch.float32, features: int = NUM_TASK_FEATURES, **changes
) -> Model:
    """Measured on all items, and with a bias as after training."""
    torch.manual_seed(0)
    made = Model(build_model_config(**changes), InputDims(TASKS, D_T, D_V, D, features)).to(dtype)
    given = make_full_batch(dtype)
    fit_statistics(made, given | {"task_features": given["task_features"][:, :features]})
    for name, value in made.named_buffers():
        if name.endswith(".bias"):
            value.normal_()
    return made.eval()


VARIANTS = [
    {},
    {"attention": "context_vector", "layer_norm": False},
    {"hima": "first"},
    {"hima": "second"},
    {"hima": "none", "use_task_features": False},
    {"bias": "zero"},
    {"use_cmrl": False},
    {"relations__density": None, "relations__scale": "unit"},
    {"task_weights": "uncertainty", "class_weights": "balanced"},
    {"inputs": "text_only"},
    {"inputs": "regions_only"},
    {"inputs": "clip"},
    {"inputs": "concatenation"},
]


def predict_probabilities(of: Model, given: dict[str, Tensor]) -> Tensor:
    """Of all tasks side by side.  -> (B, all labels)"""
    return torch.cat(list(predict(of, given).probabilities.values()), 1)


def variant_id(changes: dict) -> str:
    """Of a variant, for its tests."""
    return "-".join(map(str, changes.values())) or "default"
