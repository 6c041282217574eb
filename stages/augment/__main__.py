"""Make more of the memes of the train split: paraphrases, each with its picture in another look.

python -m stages.augment --ingest INGEST --clean CLEAN --inpaint INPAINT --output OUTPUT

reads   INGEST/tasks.json, CLEAN/records.parquet, INPAINT/pictures.parquet and images,
        prompt.yaml beside this file
writes  TARGET/records.parquet  MEMES: every meme, and after it its paraphrases
        TARGET/images/          their pictures: inpainted, those of paraphrases in another look
        TARGET/tasks.json       as it was
        TARGET/summary.json     counts, tokens and cost, rejected paraphrases by reason

This is what models read (MM-ORIENT, arXiv:2508.16300). A meme without text gets what was recognised
in its picture, cleaned as stage 02 cleans. A paraphrase is made of the sentence, with case and
marks, and cleaned then. It keeps labels, language and split of its original and names it as its
`group`; its `variant` counts those that were written, from 1, with gaps where one was rejected.
Memes of other splits stay as they are.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from stages.augment import filters, image_augmentation, paraphrasers
from stages.augment.image_augmentation import AugmentationRangesConfig
from stages.augment.paraphrasers import (
    ParaphraseInput,
    ParaphrasePrompt,
    Paraphraser,
    ParaphraseResult,
)
from stages.augment.rule_paraphraser import normalize_text
from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.data import image_store, text_cleaning
from stages.shared.data.records import SPLITS
from stages.shared.runtime import tracking
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage

PROMPT_PATH = Path(__file__).with_name("prompt.yaml")
NO_IMAGE = {"inpainted": None, "text": None}
NO_AUGMENTATION = "none"  # `picture.look` that gives a paraphrase the picture of its original


@config_class
class ImageAugmentationConfig:
    policy: str  # none, or one of looks
    jpeg_quality: int | None = Field(ge=1, le=100)  # of JPEG; None: PNG
    policies: dict[str, AugmentationRangesConfig]

    def __post_init__(self) -> None:
        if self.policy not in (NO_AUGMENTATION, *self.policies):
            known = ", ".join([NO_AUGMENTATION, *self.policies])
            raise ValueError(f"policy is {self.policy!r}: choose one of {known}")

    @property
    def ranges(self) -> AugmentationRangesConfig | None:
        return self.policies.get(self.policy)


@config_class
class AugmentConfig:
    corpora: list[str]  # read by dvc.yaml
    backend: str
    num_paraphrases: int = Field(ge=1)
    seed: int
    num_shards: int = Field(ge=1, le=image_store.MAX_SHARDS)
    filters: filters.ParaphraseFilterConfig
    openai: paraphrasers.OpenAIParaphraserConfig
    image: ImageAugmentationConfig


@dataclass
class ParaphraseCounts:
    """What became of paraphrases. meant: memes that should have some; unread: by language."""

    expected: int = 0
    generated: int = 0
    kept: int = 0
    rejected: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    drift_measured: int = 0
    drift_unavailable: Counter = field(default_factory=Counter)


class MemeTextCleaner:
    """Cleaning as stage 02 does it, and as little of it as leaves a sentence."""

    def __init__(self, rules: text_cleaning.CleanConfig):
        still = {"case": "keep", "punctuation": "keep", "digits": "keep"}
        self.config, self.light_config = (
            rules,
            replace(rules, memes=replace(rules.memes, **still)),
        )

    def clean(self, text: str, language: str) -> str:
        return text_cleaning.clean_overlay_text(text, language, self.config)

    def clean_lightly(self, text: str, language: str) -> str:
        """Without addresses and names of users and sites, but with case, marks and digits."""
        return text_cleaning.clean_overlay_text(text, language, self.light_config)


def build_originals(
    rows: list[dict], pictures: dict[str, dict], words: MemeTextCleaner
) -> tuple[list[dict], dict[str, str]]:
    """MEMES rows of CLEAN rows, and the sentence of each by id. pictures: INPAINTED by image."""
    found, sentences = [], {}
    for row in rows:
        picture = pictures[row["image"]] if row["image"] else NO_IMAGE
        text, whole, source = row["text"], row["original"], "corpus"
        if not text and (read := words.clean(picture["text"] or "", row["language"])):
            text, whole, source = read, picture["text"], "recognised"
        found.append(
            {name: row[name] for name in ("id", "split", "language", "source", "labels")}
            | {"group": row["id"], "variant": 0, "text": text, "text_source": source}
            | {"image": picture["inpainted"], "pictured": row["image"]}
        )
        sentences[row["id"]] = words.clean_lightly(whole, row["language"])
    return found, sentences


def generate_paraphrases(
    memes: list[dict],
    sentences: dict[str, str],
    paraphraser: Paraphraser,
    params: AugmentConfig,
    words: MemeTextCleaner,
) -> tuple[dict[str, list[tuple[int, str]]], ParaphraseCounts]:
    """Of each record that has some, (variant, text); only of the train split.

    What is worded anew is the sentence, which says more than the clean text; then it is cleaned.
    """
    told = [meme for meme in memes if meme["split"] == "train" and meme["text"]]
    asked = [ParaphraseInput(meme["id"], sentences[meme["id"]], meme["language"]) for meme in told]
    elsewhere = {normalize_text(meme["text"]) for meme in memes if meme["split"] != "train"}
    # Rules keep the meaning by what they are, and a cosine costs more than all else here.
    least = params.filters.min_semantic_similarity if paraphraser.uses_llm else None
    counts, meaning = (
        ParaphraseCounts(expected=len(told)),
        filters.SemanticSimilarity(params.filters.max_tokens),
    )
    kept = {}
    found = paraphraser.paraphrase(asked)
    for meme, text, given in zip(told, progress_bar(asked, "filter"), found, strict=True):
        checked = _filter_by_text(meme, text, given, params.filters, words, elsewhere, counts)
        checked = _filter_drifted(meme, checked, least, meaning, counts)
        counts.kept += len(checked)
        if checked:
            kept[meme["id"]] = checked
    return kept, counts


def _filter_by_text(
    meme: dict,
    asked: ParaphraseInput,
    given: ParaphraseResult,
    numbers: filters.ParaphraseFilterConfig,
    words: MemeTextCleaner,
    elsewhere: set[str],
    counts: ParaphraseCounts,
) -> list[tuple[int, str]]:
    """Those that the letters speak for; the others are counted."""
    if given.failure:
        counts.failures[given.failure] += 1
    kept: list[tuple[int, str]] = []
    for variant, sentence in enumerate(given.texts, start=1):
        counts.generated += 1
        text, siblings = words.clean(sentence, meme["language"]), [other for _, other in kept]
        reason = filters.find_rejection_reason(text, meme["text"], siblings, elsewhere, numbers)
        if filters.is_refusal(sentence) and not filters.is_refusal(asked.text):
            reason = filters.REFUSAL
        if reason:
            counts.rejected[reason] += 1
        else:
            kept.append((variant, text))
    return kept


def _filter_drifted(
    meme: dict,
    checked: list[tuple[int, str]],
    least: float | None,
    meaning: filters.SemanticSimilarity,
    counts: ParaphraseCounts,
) -> list[tuple[int, str]]:
    """Those that mean what the original means, or all of them where nobody can tell."""
    if least is None or not checked:
        return checked
    if not meaning.supports_language(meme["language"]):
        counts.drift_unavailable[meme["language"]] += len(checked)
        return checked
    counts.drift_measured += len(checked)
    cosines = meaning.compute_cosines(meme["text"], [text for _, text in checked])
    kept = [one for one, cosine in zip(checked, cosines, strict=True) if cosine >= least]
    counts.rejected[filters.DRIFT] += len(checked) - len(kept)
    return kept


def compute_paraphrase_id(group: str, variant: int, text: str) -> str:
    """Of a paraphrase: a hash of what it is, as an original's."""
    return sha256(json.dumps([group, variant, text]).encode()).hexdigest()[:16]


def interleave_paraphrases(
    memes: list[dict], kept: dict[str, list[tuple[int, str]]], name: str
) -> Iterator[dict]:
    """Every meme, and after it its paraphrases, whose image is that of the original."""
    for meme in memes:
        yield meme
        for variant, text in kept.get(meme["id"], []):
            yield meme | {
                "id": compute_paraphrase_id(meme["id"], variant, text),
                "variant": variant,
                "text": text,
                "text_source": name,
            }


def augment_images(
    rows: list[dict], source: Path, params: AugmentConfig, folder: Path
) -> list[dict]:
    """The rows with their images, which are written to `folder`, one at a time in memory."""
    by_image = defaultdict(list)
    for row in rows:
        if row["image"]:
            by_image[row["image"]].append(row)
    looks: dict[str, str] = {}
    with image_store.image_writer(folder, params.num_shards) as write:
        for picture in progress_bar(image_store.read_images(source), "draw"):
            using = by_image.pop(picture["sha256"], [])
            if any(not row["variant"] or not params.image.ranges for row in using):
                write(picture)
            for row in using:
                if row["variant"] and params.image.ranges:
                    # The variant's picture stays what it is if its text changes.
                    name = f"{params.seed} {row['group']} {row['variant']}"
                    drawn = image_store.build_image_row(
                        image_augmentation.augment_image(
                            picture["bytes"], params.image.ranges, name, params.image.jpeg_quality
                        )
                    )
                    write(drawn)
                    looks[row["id"]] = drawn["sha256"]
    if by_image:
        raise InputError(f"{source} lacks the picture {min(by_image)}: run `dvc repro`")
    return [row | {"image": looks.get(row["id"], row["image"])} for row in rows]


def summarize_augmentation(
    rows: list[dict], counts: ParaphraseCounts, paraphraser: Paraphraser, picture: str
) -> dict[str, Any]:
    def of_splits(variants: Callable[[int], bool]) -> dict[str, int]:
        found = Counter(row["split"] for row in rows if variants(row["variant"]))
        return {split: found[split] for split in SPLITS}

    sources = Counter(
        row["text_source"] if row["text"] else "none" for row in rows if not row["variant"]
    )
    return {
        "memes": of_splits(lambda variant: variant == 0),
        "paraphrases": of_splits(lambda variant: variant > 0),
        "texts": dict(sorted(sources.items())),
        "paraphraser": paraphraser.compute_statistics(),
        "paraphrased": {
            "memes": counts.expected,
            "without": dict(sorted(counts.failures.items())),
            "given": counts.generated,
            "kept": counts.kept,
            "rejected": {reason: n for reason, n in sorted(counts.rejected.items()) if n},
            "drift_measured": counts.drift_measured,
            "drift_unavailable": dict(sorted(counts.drift_unavailable.items())),
        },
        "picture": picture,
    }


def main(
    params: AugmentConfig,
    tidying: text_cleaning.CleanConfig,
    prompt: ParaphrasePrompt,
    folders: list[Path],
    target: Path,
) -> None:
    ingest, clean, inpaint = folders
    if not (ingest / "tasks.json").is_file():
        raise InputError(f"{ingest / 'tasks.json'} is missing: run `dvc repro`")
    rows = schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS["memes"])
    columns = ["image", "inpainted", "text"]
    found = schemas.read_table(inpaint / "pictures.parquet", schemas.INPAINTED_IMAGES).select(
        columns
    )
    pictures = {row["image"]: row for row in found.to_pylist()}
    if lacking := {row["image"] for row in rows if row["image"]} - pictures.keys():
        raise InputError(f"{inpaint}/pictures.parquet lacks {min(lacking)}: run `dvc repro`")

    paraphraser = paraphrasers.load_paraphraser(
        params.backend, params.openai, prompt, params.num_paraphrases, params.seed
    )
    with tracking.start_run(stage="augment", name=target.name, params=asdict(params)) as tracked:
        with atomic_output_dir(target) as folder:
            words = MemeTextCleaner(tidying)
            memes, sentences = build_originals(rows, pictures, words)
            kept, counts = generate_paraphrases(memes, sentences, paraphraser, params, words)
            extra = list(interleave_paraphrases(memes, kept, paraphraser.name))
            drawn = augment_images(extra, inpaint / "images", params, folder / "images")
            schemas.write_parquet(folder / "records.parquet", drawn, schemas.MEMES)
            shutil.copy(ingest / "tasks.json", folder / "tasks.json")
            figures = summarize_augmentation(drawn, counts, paraphraser, params.image.policy)
            text = json.dumps(figures, indent=2, ensure_ascii=False)
            (folder / "summary.json").write_text(f"{text}\n", encoding="utf-8")
        tracked.log_metrics({"given": counts.generated, "kept": counts.kept}, step=0)
        tracked.log_artifact_hash(target / "summary.json", "summary.json")


def cli(ingest: Path, clean: Path, inpaint: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    prompt = paraphrasers.load_prompt(PROMPT_PATH)
    cleaning = load_config(text_cleaning.CleanConfig, "clean")
    folders = [ingest, clean, inpaint]
    main(load_config(AugmentConfig, "augment"), cleaning, prompt, folders, output)


if __name__ == "__main__":
    run_stage(cli)
