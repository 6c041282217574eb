"""Bring pictures and texts into one space: train the tiny encoder, or fetch named weights.

python -m stages.align --ingest INGEST --chunks CHUNKS --output OUTPUT

reads   INGEST/images, CHUNKS/chunks.parquet
writes  TARGET: an encoder folder (stages/shared/encoders/base.py), summary.json (retrieval on the
        validation split), and for the tiny encoder history.csv of its training

align.encoder: `tiny`; `openclip:ARCH/TAG`, where TAG may be a checkpoint file, or
`openclip:local-dir:/FOLDER`; `hf:NAME` or `hf:/FOLDER`. Only such a name may use the network.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.shared.core.config import config_class, load_config
from stages.shared.core.schemas import CHUNKS, read_parquet
from stages.shared.data import history, image_store
from stages.shared.encoders import base as encoders
from stages.shared.encoders import extract
from stages.shared.encoders import tiny as tiny_encoder
from stages.shared.runtime import tracking
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, allow_downloads, atomic_output_dir, run_stage
from stages.shared.torch_setup.devices import get_device
from stages.shared.training.batching import Batch, shuffled_batch
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, fit, seed_everything
from stages.shared.training.schedule import Schedule
from stages.shared.training.losses import info_nce_loss

MIN_TEMPERATURE = 0.01  # of the temperature, as in CLIP: below, its gradient runs away
SHIFT_DIVISOR = 16  # a training picture moves by at most 1/16 of its side

LogMetrics = Callable[[dict[str, float], int], None]


@config_class
class TinyEncoderTrainingConfig:
    image_size: int
    patch_size: int
    d_model: int
    num_heads: int
    num_layers: int
    max_tokens: int
    initial_temperature: float
    schedule: Schedule

    def encoder_config(self) -> tiny_encoder.TinyEncoderConfig:
        return tiny_encoder.TinyEncoderConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            d_model=self.d_model,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            max_tokens=self.max_tokens,
        )


@config_class
class AlignConfig:
    corpus: str
    encoder: str
    languages: list[str]
    tiny: TinyEncoderTrainingConfig


@dataclass(frozen=True)
class ImageTextPairs:
    """N pictures as bytes, each with the number of its text; T different texts."""

    pixels: Tensor  # (N, 3, S, S) uint8
    text_ids: Tensor  # (N,)
    text_vectors: Tensor  # (T, D) unit length


class Aligner(nn.Module):
    """The picture tower with the learned temperature of the contrast."""

    def __init__(self, sizes: tiny_encoder.TinyEncoderConfig, pooled: int, temperature: float):
        super().__init__()
        self.tower = tiny_encoder.ImageTower(sizes, pooled)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """A picture belongs to every equal text of the batch, not to its own copy only."""
        pooled, _ = self.tower(batch["pixels"])
        same = batch["text"][:, None] == batch["text"]
        temperature = self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)
        return {"contrast": info_nce_loss(pooled, batch["vectors"], same, temperature)}


def select_examples(chunks: list[dict], split: str, languages: list[str]) -> list[tuple[str, str]]:
    """Each picture of a split (sha256) with its first reference text in one of the languages."""
    found: dict[str, str] = {}
    for chunk in chunks:
        if chunk["split"] == split and chunk["image"] and chunk["language"] in languages:
            found.setdefault(chunk["image"], (chunk["references"] or [chunk["text"]])[0])
    return sorted(found.items())


def check_language(chunks: list[dict], corpus: str, min_supported: float) -> None:
    """Raises WrongInput if MiniLM reads too few of the train texts, or there is none to learn."""
    train = [chunk for chunk in chunks if chunk["split"] == "train" and chunk["image"]]
    if not train:
        raise InputError(
            f"align.corpus: {corpus} has no picture with text in its train split: name another one"
        )
    share = sum(chunk["language"] in tiny_encoder.LANGUAGES for chunk in train) / len(train)
    if share < min_supported:
        raise InputError(
            f"align.encoder: tiny reads English, as {share:.0%} of the train texts of {corpus} "
            "are: let align.corpus name an English corpus (one of kind captions and format sample "
            "is drawn), or align.encoder an encoder of its language "
            "(hf:OFA-Sys/chinese-clip-vit-base-patch16, openclip:ARCH/TAG)"
        )


def augment_images(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each picture a little, its border repeated, and mirror one in two.  (B, 3, S, S)"""
    count, _, _, size = pixels.shape
    most = size // SHIFT_DIVISOR
    rows, columns = torch.randint(-most, most + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    places = torch.arange(size).expand(count, size)
    rows = (places + rows).clamp(0, size - 1)
    columns = (places + columns).clamp(0, size - 1)
    columns = columns.where(~mirrored, columns.flip(1))
    which = torch.arange(count)[:, None, None]
    return pixels[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def decode_images(folder: Path, names: list[str], size: int) -> Tensor:
    """The pictures with these sha256, scaled as they are decoded: 3 S^2 bytes each in memory."""
    place = {name: row for row, name in enumerate(names)}
    pixels = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    found = (row for row in image_store.read_images(folder) if row["sha256"] in place)
    for row in progress_bar(found, "decode pictures", len(names)):
        pixels[place[row["sha256"]]] = tiny_encoder.center_crop(
            image_store.decode_image(row["bytes"]), size
        )
    return pixels


def build_pairs(
    rows: list[tuple[str, str]],
    folder: Path,
    size: int,
    tower: tiny_encoder.MiniLMTower,
    batch: int,
) -> ImageTextPairs:
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for _, text in rows))}
    vectors = [row["pooled"] for row in extract.extract_text_features(tower, list(numbers), batch)]
    return ImageTextPairs(
        decode_images(folder, [name for name, _ in rows], size),
        torch.tensor([numbers[text] for _, text in rows]),
        F.normalize(torch.from_numpy(np.stack(vectors)).float(), dim=-1),
    )


def augmented_batch(pairs: ImageTextPairs, schedule: Schedule, step: int) -> Batch:
    """The augmented batch of a step; fewer pictures than its size make it smaller."""
    size = min(schedule.batch_size, len(pairs.text_ids))
    items = torch.tensor(shuffled_batch(len(pairs.text_ids), size, schedule.seed, step))
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
    return select_batch(pairs, items) | {"pixels": augment_images(pairs.pixels[items], generator)}


def select_batch(pairs: ImageTextPairs, items: Tensor) -> Batch:
    text = pairs.text_ids[items]
    return {"pixels": pairs.pixels[items], "text": text, "vectors": pairs.text_vectors[text]}


def build_validation(pairs: ImageTextPairs, batch: int) -> Callable[[Aligner], ValidationResult]:
    """The contrast within batches of held-out pairs, pictures not augmented."""

    def validate(model: Aligner) -> ValidationResult:
        device, total = model.log_temperature.device, 0.0
        for items in torch.arange(len(pairs.text_ids)).split(batch):
            held_out = {
                name: value.to(device) for name, value in select_batch(pairs, items).items()
            }
            total += model.loss(held_out)["contrast"].item() * len(items)
        temperature = model.log_temperature.exp().item()
        return ValidationResult({"temperature": temperature}, total / len(pairs.text_ids))

    return validate


def train_tiny_encoder(
    tiny: TinyEncoderTrainingConfig,
    chunks: list[dict],
    ingest: Path,
    text_batch: int,
    folder: Path,
    log: LogMetrics,
) -> None:
    """Train the tiny encoder and save it in `folder`."""
    sizes, schedule = tiny.encoder_config(), tiny.schedule
    sizes.validate()
    tower = tiny_encoder.MiniLMTower(sizes.max_tokens)
    rows = {
        split: select_examples(chunks, split, tower.languages) for split in ("train", "validation")
    }
    pairs, held_out = (
        build_pairs(part, ingest / "images", sizes.image_size, tower, text_batch) if part else None
        for part in rows.values()
    )
    seed_everything(schedule.seed)
    model = Aligner(sizes, tower.hidden_size, tiny.initial_temperature).to(get_device())
    steps = fit(
        model,
        Aligner.loss,
        lambda step: augmented_batch(pairs, schedule, step),
        schedule,
        name="align",
        key=fingerprint([tiny, rows, tower.text_fingerprint], []),
        validate=build_validation(held_out, schedule.batch_size) if held_out else None,
        log=log,
    )
    tiny_encoder.save(folder, sizes, model.tower, tower)
    history.write_history(folder / "history.csv", steps)


def fetch_encoder(name: str, languages: list[str], folder: Path) -> None:
    """Save a named encoder in `folder`. Raises WrongInput if there is no such encoder."""
    kind, _, rest = name.partition(":")
    if kind not in ("openclip", "hf") or not rest:
        raise InputError(
            f"align.encoder is {name!r}: give tiny, openclip:ARCH/TAG, openclip:local-dir:/FOLDER "
            "or hf:NAME"
        )
    allow_downloads()
    encoders.module_of(kind).fetch(rest, languages, folder)


def compute_recall(
    encoder: encoders.Encoder, rows: list[tuple[str, str]], images: Path, embed
) -> float:
    """Share of pictures whose nearest text is their own, or one with the same words (R@1)."""
    texts = list(dict.fromkeys(text for _, text in rows))
    names = [name for name, _ in rows]
    pictures = _stack_pooled(
        extract.extract_image_features(encoder, images, names, embed.image_batch_size)
    )
    vectors = _stack_pooled(extract.extract_text_features(encoder, texts, embed.text_batch_size))
    nearest = torch.cat([(part @ vectors.T).argmax(1) for part in pictures.split(1000)])
    hits = [texts[found] == text for found, (_, text) in zip(nearest.tolist(), rows, strict=True)]
    return sum(hits) / len(hits)


def _stack_pooled(rows) -> Tensor:
    return torch.from_numpy(np.stack([row["pooled"] for row in rows])).float()


def main(
    params: AlignConfig, embed: extract.EmbedConfig, ingest: Path, chunk_folder: Path, target: Path
) -> None:
    chunks = read_parquet(chunk_folder / "chunks.parquet", CHUNKS)
    if params.encoder == "tiny":
        check_language(chunks, params.corpus, embed.min_supported_fraction)
    with tracking.start_run(stage="align", name="", params=asdict(params)) as tracked:
        with atomic_output_dir(target) as folder:
            if params.encoder == "tiny":
                train_tiny_encoder(
                    params.tiny, chunks, ingest, embed.text_batch_size, folder, tracked.log_metrics
                )
            else:
                fetch_encoder(params.encoder, params.languages, folder)
            summary = summarize_retrieval(encoders.load_encoder(folder), chunks, ingest, embed)
            (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        if summary["validation_pictures"]:
            tracked.log_metrics({"validation_recall_at_1": summary["recall_at_1"]}, 0)
        tracked.log_artifact_hash(target, "encoder")


def summarize_retrieval(
    encoder: encoders.Encoder, chunks: list[dict], ingest: Path, embed: extract.EmbedConfig
) -> dict:
    """Retrieval on the validation pairs whose text the encoder reads; null if there are none."""
    rows = select_examples(chunks, "validation", encoder.languages)
    found = compute_recall(encoder, rows, ingest / "images", embed) if rows else None
    return {"validation_pictures": len(rows), "recall_at_1": found}


def cli(ingest: Path, chunks: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    embed = load_config(extract.EmbedConfig, "embed")
    main(load_config(AlignConfig, "align"), embed, ingest, chunks, output)


if __name__ == "__main__":
    run_stage(cli)
