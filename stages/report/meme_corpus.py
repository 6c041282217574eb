"""A corpus of memes: pictures before and after their words were taken out, and paraphrases.

reads   02_clean/<corpus>/records.parquet; 03_inpaint/<corpus>/pictures.parquet, summary.json;
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

SummaryRow = tuple[str, Any]  # what it is, and a text or counts by name


@dataclass(frozen=True)
class InpaintedImage:
    """A picture whose words were taken out."""

    row: dict  # INPAINTED
    text: str  # of a meme that shows it, as the corpus gives it; "" if it gives none
    language: str


@dataclass(frozen=True)
class ParaphrasedMeme:
    """A meme of the train split and what it was reworded to, MEMES rows."""

    original: dict
    variants: list[dict]

    @property
    def labels(self) -> dict[str, str]:
        return {one["task"]: one["label"] for one in self.original["labels"]}


@dataclass(frozen=True)
class MemeCorpusData:
    """What 03_inpaint and 04_augment hold of a corpus, as far as it is shown."""

    inpainting_summary: dict[str, Any]  # their summaries
    augmentation_summary: dict[str, Any]
    inpainted: list[InpaintedImage]
    paraphrased: list[ParaphrasedMeme]

    @property
    def image_hashes(self) -> set[str]:
        """The sha256 of every picture that is shown."""
        before_after = [one.row[side] for one in self.inpainted for side in ("image", "inpainted")]
        memes = [row for one in self.paraphrased for row in (one.original, *one.variants)]
        return {*before_after, *(row["image"] for row in memes)} - {None}


def load_meme_corpus(data: Path, corpus: str, inpainted: int, paraphrased: int) -> MemeCorpusData:
    """inpainted, paraphrased: how many at most are shown, evenly spaced over all.

    Inpainted pictures are in the order of the share that is masked: the least and the most of it
    is among them. Memes are in the order of the corpus.
    """
    painting, augmenting = data / "03_inpaint" / corpus, data / "04_augment" / corpus
    told: dict[str, dict] = {}
    for row in schemas.read_parquet(
        data / "02_clean" / corpus / "records.parquet", schemas.CLEAN_RECORDS["memes"]
    ):
        told.setdefault(row["image"], row)
    rows = [
        row
        for row in schemas.read_parquet(painting / "pictures.parquet", schemas.INPAINTED_IMAGES)
        if row["mask"] is not None
    ]
    chosen = sample_evenly(sorted(rows, key=lambda row: (row["masked"], row["image"])), inpainted)
    groups: dict[str, list[dict]] = {}
    for row in schemas.read_parquet(augmenting / "records.parquet", schemas.MEMES):
        groups.setdefault(row["group"], []).append(row)
    reworded = [
        ParaphrasedMeme(original, variants)
        for original, *variants in (
            sorted(group, key=lambda row: row["variant"]) for group in groups.values()
        )
        if variants
    ]
    return MemeCorpusData(
        schemas.read_json(painting / "summary.json"),
        schemas.read_json(augmenting / "summary.json"),
        [
            InpaintedImage(row, told[row["image"]]["original"], told[row["image"]]["language"])
            for row in chosen
        ],
        sample_evenly(reworded, paraphrased),
    )


def sample_evenly(rows: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the rows, evenly spaced, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    if count < 2:
        return list(rows[:count])
    return [rows[number * (len(rows) - 1) // (count - 1)] for number in range(count)]


def draw_masks(
    memes: MemeCorpusData, files: dict[str, bytes], side: int, folder: Path
) -> dict[str, ReportFigure]:
    """Each inpainted picture with mask and boxes over it, written into FOLDER/masks, by sha256.

    files: pictures by hash; side: longest of what is drawn.
    """
    drawn = {}
    for one in memes.inpainted:
        name, mask = one.row["image"], Image.open(BytesIO(one.row["mask"]), formats=["PNG"])
        picture = heatmaps.draw_mask(
            image_store.decode_image(files[name]), mask, one.row["quads"], side
        )
        path = f"masks/{name[:16]}.png"
        heatmaps.save_png(picture, folder / path)
        about = f"The same picture, warm where it is masked; {len(one.row['quads'])} boxes of text"
        drawn[name] = ReportFigure(path, *picture.size, "mask", about)
    return drawn


def build_inpainting_rows(summary: dict[str, Any]) -> list[SummaryRow]:
    """Rows of the table of what 03_inpaint did."""
    masked = summary["masked"]
    facts: list[SummaryRow] = [
        ("pictures", f"{summary['pictures']:,}"),
        ("with text in them", f"{summary['with_text']:,}"),
        ("left as they were", f"{summary['passed_through']:,}"),
        ("masked in the mean", "nothing" if masked is None else f"{100 * masked:.1f} % of pixels"),
        ("text read in them", f"{summary['recognised']:,}"),
    ]
    return facts + ([("failed", summary["failed"])] if summary["failed"] else [])


def build_augmentation_rows(summary: dict[str, Any]) -> list[SummaryRow]:
    """Rows of the table of what 04_augment did."""
    told, by = summary["paraphrased"], summary["paraphraser"]
    facts: list[SummaryRow] = [
        ("memes", summary["memes"]),
        ("texts from", summary["texts"]),
        ("paraphrased by", f"{by['backend']}, {describe_paraphraser(by)}"),
        ("paraphrases", summary["paraphrases"]),
        (
            "given",
            f"{told['given']:,} for {told['memes']:,} memes, of which {told['kept']:,} were kept",
        ),
        ("rejected", told["rejected"]),
    ]
    if told["without"]:
        facts.append(("memes without", told["without"]))
    facts.append(
        (
            "meaning compared",
            f"of {told['drift_measured']:,}" if told["drift_measured"] else "of none",
        )
    )
    if told["drift_unavailable"]:
        facts.append(("not, by language", told["drift_unavailable"]))
    if by["llm"]:
        cost = "unknown" if by["cost"] is None else f"{by['cost']:.2f}"
        tokens = f"{by['tokens']['sent']:,} sent, {by['tokens']['received']:,} received"
        facts += [
            ("answered by", ", ".join(by["answered_by"]) or "nobody"),
            ("questions", f"{by['questions']:,}, answers {by['answers']}"),
            ("tokens", f"{tokens}; cost {cost}"),
        ]
        if by["failed_questions"]:
            facts.append(("failed questions", by["failed_questions"]))
    return [*facts, ("pictures of paraphrases", f"look {summary['picture']}")]


def describe_paraphraser(paraphraser: dict[str, Any]) -> str:
    """What wrote the paraphrases, plainly."""
    if paraphraser["llm"]:
        return "a language model"
    return "nobody" if paraphraser["backend"] == "none" else "fixed lists: no language model"
