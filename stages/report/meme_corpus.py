"""A meme corpus: images before and after inpainting, and paraphrases.

reads   02_clean/<corpus>/records.parquet
        03_inpaint/<corpus>/pictures.parquet, summary.json
        04_augment/<corpus>/records.parquet, summary.json
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from stages.report.attention_maps import ReportFigure
from stages.report.plots import heatmaps
from stages.shared.core import schemas
from stages.shared.data import image_store

SummaryRow = tuple[str, Any]  # label, and a text or counts by name


@dataclass(frozen=True)
class InpaintedImage:
    """An image whose overlay text was removed."""

    row: dict  # INPAINTED_IMAGES
    text: str  # of a meme with this image, in the corpus; may be ""
    language: str


@dataclass(frozen=True)
class ParaphrasedMeme:
    """A train meme and its paraphrases, MEMES rows."""

    original: dict
    variants: list[dict]

    @property
    def labels(self) -> dict[str, str]:
        return {label["task"]: label["label"] for label in self.original["labels"]}


@dataclass(frozen=True)
class MemeCorpusData:
    """The examples and summaries of 03_inpaint and 04_augment."""

    inpainting_summary: dict[str, Any]
    augmentation_summary: dict[str, Any]
    inpainted: list[InpaintedImage]
    paraphrased: list[ParaphrasedMeme]

    @property
    def image_hashes(self) -> set[str]:
        """The SHA-256 of all images that are shown."""
        inpainted = [
            example.row[name] for example in self.inpainted for name in ("image", "inpainted")
        ]
        memes = [
            row for example in self.paraphrased for row in (example.original, *example.variants)
        ]
        return {*inpainted, *(row["image"] for row in memes)} - {None}


def load_meme_corpus(
    data: Path, corpus: str, num_inpainted: int, num_paraphrased: int
) -> MemeCorpusData:
    """Load the summaries and evenly spaced examples.

    Inpainted images are ordered by masked area, and the smallest and the largest are included.
    Paraphrased memes are in the order of the corpus.
    """
    inpainting, augmentation = data / "03_inpaint" / corpus, data / "04_augment" / corpus
    record_by_image: dict[str, dict] = {}
    for row in schemas.read_parquet(
        data / "02_clean" / corpus / "records.parquet", schemas.CLEAN_RECORDS["memes"]
    ):
        record_by_image.setdefault(row["image"], row)
    masked_images = [
        row
        for row in schemas.read_parquet(inpainting / "pictures.parquet", schemas.INPAINTED_IMAGES)
        if row["mask"] is not None
    ]
    masked_images.sort(key=lambda row: (row["masked"], row["image"]))
    groups: dict[str, list[dict]] = {}
    for row in schemas.read_parquet(augmentation / "records.parquet", schemas.MEMES):
        groups.setdefault(row["group"], []).append(row)
    sorted_groups = (sorted(group, key=lambda row: row["variant"]) for group in groups.values())
    paraphrased = [
        ParaphrasedMeme(original, variants) for original, *variants in sorted_groups if variants
    ]
    return MemeCorpusData(
        schemas.read_json(inpainting / "summary.json"),
        schemas.read_json(augmentation / "summary.json"),
        [
            InpaintedImage(
                row,
                record_by_image[row["image"]]["original"],
                record_by_image[row["image"]]["language"],
            )
            for row in sample_evenly(masked_images, num_inpainted)
        ],
        sample_evenly(paraphrased, num_paraphrased),
    )


def sample_evenly(rows: Sequence[Any], count: int) -> list[Any]:
    """At most `count` evenly spaced rows, including the first and the last."""
    if len(rows) <= count:
        return list(rows)
    if count < 2:
        return list(rows[:count])
    return [rows[number * (len(rows) - 1) // (count - 1)] for number in range(count)]


def draw_masks(
    data: MemeCorpusData, files: dict[str, bytes], side: int, folder: Path
) -> dict[str, ReportFigure]:
    """Draw mask and text boxes over each inpainted image into `folder`/masks.

    files: image files by SHA-256. side: longest side of a drawn image, pixels. Returns the figures
    by SHA-256 of the image.
    """
    figures = {}
    for example in data.inpainted:
        sha256, quads = example.row["image"], example.row["quads"]
        mask = Image.open(BytesIO(example.row["mask"]), formats=["PNG"])
        # Large images were scaled down before their text was found.
        image = image_store.decode_image(files[sha256], max_pixels=mask.width * mask.height)
        image = heatmaps.draw_mask(image, mask, quads, side)
        path = f"masks/{sha256[:16]}.png"
        heatmaps.save_png(image, folder / path)
        alt_text = f"The same image; the mask is orange, {len(quads)} text boxes are framed"
        figures[sha256] = ReportFigure(path, *image.size, "mask", alt_text)
    return figures


def build_inpainting_rows(summary: dict[str, Any]) -> list[SummaryRow]:
    """Rows of the summary of 03_inpaint."""
    masked = summary["masked"]
    rows: list[SummaryRow] = [
        ("images", f"{summary['pictures']:,}"),
        ("images with text", f"{summary['with_text']:,}"),
        ("images left unchanged", f"{summary['passed_through']:,}"),
        ("mean masked area", "none" if masked is None else f"{100 * masked:.1f} % of the pixels"),
        ("texts recognized", f"{summary['recognised']:,}"),
    ]
    return rows + ([("failed", summary["failed"])] if summary["failed"] else [])


def build_augmentation_rows(summary: dict[str, Any]) -> list[SummaryRow]:
    """Rows of the summary of 04_augment."""
    counts, paraphraser = summary["paraphrased"], summary["paraphraser"]
    rows: list[SummaryRow] = [
        ("memes", summary["memes"]),
        ("source of the texts", summary["texts"]),
        ("paraphraser", f"{paraphraser['backend']} ({describe_paraphraser(paraphraser)})"),
        ("paraphrases", summary["paraphrases"]),
        (
            "candidates",
            f"{counts['given']:,} for {counts['memes']:,} memes, {counts['kept']:,} kept",
        ),
        ("candidates rejected", counts["rejected"]),
    ]
    if counts["without"]:
        rows.append(("memes without paraphrase", counts["without"]))
    num_compared = counts["drift_measured"]
    rows.append(
        (
            "meaning compared with the original",
            f"{num_compared:,} candidates" if num_compared else "never",
        )
    )
    if counts["drift_unavailable"]:
        rows.append(("meaning not compared, by language", counts["drift_unavailable"]))
    if paraphraser["llm"]:
        rows += _llm_rows(paraphraser)
    return [*rows, ("image augmentation policy", summary["picture"])]


def _llm_rows(paraphraser: dict[str, Any]) -> list[SummaryRow]:
    tokens = paraphraser["tokens"]
    cost = "unknown" if paraphraser["cost"] is None else f"{paraphraser['cost']:.2f}"
    rows: list[SummaryRow] = [
        ("models that answered", ", ".join(paraphraser["answered_by"]) or "none"),
        ("requests", f"{paraphraser['questions']:,}, answers {paraphraser['answers']}"),
        ("tokens", f"{tokens['sent']:,} sent, {tokens['received']:,} received; cost {cost}"),
    ]
    if paraphraser["failed_questions"]:
        rows.append(("failed requests", paraphraser["failed_questions"]))
    return rows


def describe_paraphraser(paraphraser: dict[str, Any]) -> str:
    if paraphraser["llm"]:
        return "a language model"
    return "disabled" if paraphraser["backend"] == "none" else "fixed word lists"
