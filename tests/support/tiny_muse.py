"""A tiny MuSE model and its batches."""

import torch
from torch import Tensor, nn

from stages.models.muse import pixelcnn, show_attend_tell
from stages.models.muse.model import CaptioningConfig, DrawingConfig, InputDims, Model, ModelConfig

SUBWORDS, TAGS, LABELS, CELLS, WORDS = 100, 5, 3, 4, 12
# Subwords of each word of each text. Items 1 and 4 have no image, item 6 has no text.
TEXTS = [[1, 2, 1], [1], [2, 1, 1, 3, 1], [1, 1], [3, 1, 2], [1, 2], [1, 1, 1, 1], [2, 2]]
WITHOUT_IMAGE, WITHOUT_TEXT = (1, 4), (6,)


def build_model_config(**changes) -> ModelConfig:
    """changes: fields, nested ones like captioning__alpha or image_generation__beta"""
    captioning = {
        "alpha": 0.1,
        "min_count": 1,
        "max_length": 6,
        "decoder": show_attend_tell.ShowAttendTellConfig(
            embedding_dim=8,
            hidden_size=8,
            attention_dim=8,
            dropout=0.0,
            doubly_stochastic_weight=1.0,
        ),
    }
    decoder = pixelcnn.PixelCNNConfig(
        image_size=4, num_blocks=1, num_filters=4, num_mixtures=2, dropout=0.0, initial_gain="one"
    )
    image_generation = {
        "beta": 0.1,
        "lr_multiplier": 1.0,
        "max_images_per_batch": 8,
        "decoder": decoder,
    }
    values = {
        "d_model": 8,
        "num_layers": 3,
        "num_heads": 2,
        "d_ff": 16,
        "dropout": 0.0,
        "norm": "pre",
        "mu": 2,
        "eta": 3,
        "theta": 0.3,
        "min_exchanged_tokens": 1,
        "exchange": "replace",
        "token_selection": "cls_attention",
        "exchange_count": "floor",
        "padding_mask": "respected",
        "fusion": "exchange",
        "image_pooling": "mean",
        "head": "mlp",
        "head_dropout": 0.0,
        "share_projection": False,
        "sigma": 1.0,
        "use_captioning": True,
        "use_image_generation": True,
        "image_drop_prob": 0.0,
        "text_drop_prob": 0.0,
    }
    parts = {"captioning": captioning, "image_generation": image_generation}
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (parts[part] if part else values)[key] = value
    return ModelConfig(
        captioning=CaptioningConfig(**captioning),
        image_generation=DrawingConfig(**image_generation),
        **values,
    )


class EmbeddingTextEncoder(nn.Module):
    """A text encoder that embeds each subword independently of its context."""

    def __init__(self, width: int):
        super().__init__()
        self.table = nn.Embedding(SUBWORDS, width)

    def forward(self, batch) -> Tensor:
        return self.table(batch["ids"])[:, 1:-1]


class ConvImageEncoder(nn.Module):
    """An image encoder with BatchNorm, (B, 3, 4, 4) -> (B, 4, 6): images of a batch interact."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.BatchNorm2d(6))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).flatten(2).transpose(1, 2)


class FlatImageEncoder(nn.Module):
    """An image encoder without weights, (B, 3, 4, 4) -> (B, 4, 6)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, : CELLS * 6].unflatten(1, (CELLS, 6))


def build_model(task: str = "entities", pixels: bool = False, width: int = 6, **changes) -> Model:
    torch.manual_seed(0)
    labels = TAGS if task == "entities" else LABELS
    shapes = InputDims(
        task=task, labels=labels, text_width=width, cells=CELLS, cell_width=6, words=WORDS
    )
    return Model(
        build_model_config(**changes),
        shapes,
        EmbeddingTextEncoder(width),
        ConvImageEncoder() if pixels else FlatImageEncoder(),
    )


def make_item(index: int) -> dict:
    """Item `index`: one of TEXTS and its image, seeded by the index."""
    generator = torch.Generator().manual_seed(index)
    subwords = TEXTS[index]
    words, length = len(subwords), sum(subwords)
    caption = torch.randint(4, WORDS, (2 + index % 3,), generator=generator)
    return {
        "ids": torch.tensor([1, *range(10 + 10 * index, 10 + 10 * index + length), 2]),
        "pieces_mask": torch.ones(length, dtype=torch.bool),
        "first": torch.tensor([sum(subwords[:word]) for word in range(words)]),
        "word_mask": torch.ones(words, dtype=torch.bool),
        "tags": torch.randint(TAGS, (words,), generator=generator),
        "caption": torch.cat([torch.tensor([1]), caption, torch.tensor([2])]),  # SOS, EOS
        "label": torch.tensor(index % LABELS),
        "picture": torch.randn(3, 4, 4, generator=generator),
        "drawing": torch.randint(256, (3, 4, 4), generator=generator) / 127.5 - 1,
        "has_picture": torch.tensor(index not in WITHOUT_IMAGE),
        "has_text": torch.tensor(index not in WITHOUT_TEXT),
    }


def make_batch(*indices: int) -> dict[str, Tensor]:
    """A batch of items; texts are padded with 0."""
    items = [make_item(index) for index in indices]
    return {
        key: nn.utils.rnn.pad_sequence([item[key] for item in items], batch_first=True)
        if items[0][key].ndim == 1
        else torch.stack([item[key] for item in items])
        for key in items[0]
    }


def make_full_batch() -> dict[str, Tensor]:
    return make_batch(*range(len(TEXTS)))


def to_double(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


TEXT_ONLY = {"fusion": "text", "use_captioning": False, "use_image_generation": False}
VARIANTS = [
    {},
    {"norm": "post", "exchange": "residual", "head": "linear"},
    {"exchange_count": "quantile", "share_projection": True},
    {"token_selection": "norm", "image_pooling": "attention"},
    {"token_selection": "random", "image_pooling": "cell"},
    {"fusion": "concatenation", "norm": "post"},
    {"fusion": "cross_attention"},
    {"fusion": "cross_attention", "norm": "post", "use_image_generation": False},
    {"use_captioning": False},
    {"use_captioning": False, "use_image_generation": False},
    TEXT_ONLY,
]


def variant_id(changes: dict) -> str:
    """The test id of a variant."""
    return "-".join(map(str, changes.values())) or "default"
