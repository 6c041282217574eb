"""Augment the memes of the train split: paraphrases, each with an augmented image.

python -m stages.augment --ingest INGEST --clean CLEAN --inpaint INPAINT --output OUTPUT

reads   INGEST/tasks.json, CLEAN/records.parquet, INPAINT/pictures.parquet and images,
        stages/augment/prompt.yaml
writes  OUTPUT/records.parquet  MEMES: every meme, followed by its paraphrases
        OUTPUT/images/          their inpainted images, augmented for paraphrases
        OUTPUT/tasks.json       a copy
        OUTPUT/summary.json     counts, tokens and cost, rejected paraphrases by reason

Models are trained on this output (MM-ORIENT, arXiv:2508.16300). A meme without text gets the text
that was recognized in its image, cleaned like stage 02. A paraphrase is generated from the text
with case and punctuation, and cleaned afterwards. It has the labels, language and split of its
original, whose id is its `group`. Its `variant` is its number, from 1, among the generated
paraphrases, with gaps for rejected ones. Memes of other splits are not augmented.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from stages.augment import filters, image_augmentation, paraphrasers
from stages.augment.filters import ParaphraseFilterConfig
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
NO_IMAGE: dict[str, Any] = {"inpainted": None, "text": None}
NO_AUGMENTATION = "none"  # the `image.policy` that gives a paraphrase the image of its original


@config_class
class ImageAugmentationConfig:
    policy: str = Field(description="one of policies, or none: the image of the original")
    jpeg_quality: int | None = Field(ge=1, le=100, description="JPEG quality; null: PNG")
    policies: dict[str, AugmentationRangesConfig] = Field(description="by name")

    def __post_init__(self) -> None:
        if self.policy not in (NO_AUGMENTATION, *self.policies):
            known = ", ".join([NO_AUGMENTATION, *self.policies])
            raise ValueError(f"policy is {self.policy!r}: choose one of {known}")

    @property
    def ranges(self) -> AugmentationRangesConfig | None:
        return self.policies.get(self.policy)


@config_class
class AugmentConfig:
    corpora: list[str] = Field(description="corpora of kind memes")
    backend: str = Field(description="rules | none | openai:MODEL")
    num_paraphrases: int = Field(ge=1, description="requested per meme")
    seed: int = Field(description="of rules and image augmentation")
    num_shards: int = Field(
        ge=1, le=image_store.MAX_SHARDS, description="Parquet files that hold the images"
    )
    filters: ParaphraseFilterConfig = Field(description="limits for paraphrases")
    openai: paraphrasers.OpenAIParaphraserConfig = Field(description="the backend openai:MODEL")
    image: ImageAugmentationConfig = Field(description="images of paraphrases")


@dataclass
class ParaphraseCounts:
    """Counts of paraphrases.

    expected: memes to paraphrase. rejected: by reason. failures: memes without any paraphrase, by
    reason. drift_unavailable: paraphrases that MiniLM does not support, by language.
    """

    expected: int = 0
    generated: int = 0
    kept: int = 0
    rejected: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    drift_measured: int = 0
    drift_unavailable: Counter = field(default_factory=Counter)


class Paraphrase(NamedTuple):
    """A paraphrase that the filters accept."""

    variant: int  # its number, from 1, among the generated ones
    text: str
    sentence: str  # its text with case, punctuation and digits


class MemeTextCleaner:
    """The cleaning of stage 02, and a light variant that keeps sentences intact."""

    def __init__(self, config: text_cleaning.CleanConfig):
        self.config = config
        self.light_config = text_cleaning.keep_sentences(config)

    def clean(self, text: str, language: str) -> str:
        return text_cleaning.clean_overlay_text(text, language, self.config)

    def clean_lightly(self, text: str, language: str) -> str:
        """Remove URLs, user names and site names, but keep case, punctuation and digits."""
        return text_cleaning.clean_overlay_text(text, language, self.light_config)


def build_originals(
    rows: list[dict], images: dict[str, dict], cleaner: MemeTextCleaner
) -> list[dict]:
    """MEMES rows of CLEAN_RECORDS rows. images: rows of INPAINTED_IMAGES by image."""
    memes = []
    for row in rows:
        image = images[row["image"]] if row["image"] else NO_IMAGE
        text, original, source = row["text"], row["original"], "corpus"
        if not text and (recognized := cleaner.clean(image["text"] or "", row["language"])):
            text, original, source = recognized, image["text"], "recognised"
        memes.append(
            {name: row[name] for name in ("id", "split", "language", "source", "labels")}
            | {"group": row["id"], "variant": 0, "text": text, "text_source": source}
            | {"sentence": cleaner.clean_lightly(original, row["language"])}
            | {"image": image["inpainted"], "pictured": row["image"]}
        )
    return memes


def generate_paraphrases(
    memes: list[dict],
    paraphraser: Paraphraser,
    config: AugmentConfig,
    cleaner: MemeTextCleaner,
) -> tuple[dict[str, list[Paraphrase]], ParaphraseCounts]:
    """Paraphrase the memes of the train split that have a text, by record.

    Their sentences are paraphrased because they say more than the clean texts. The paraphrases are
    cleaned afterwards.
    """
    originals = [meme for meme in memes if meme["split"] == "train" and meme["text"]]
    inputs = [ParaphraseInput(meme["id"], meme["sentence"], meme["language"]) for meme in originals]
    other_split_texts = {normalize_text(meme["text"]) for meme in memes if meme["split"] != "train"}
    # Rules preserve the meaning by design, and the cosines would dominate the run time.
    min_cosine = config.filters.min_semantic_similarity if paraphraser.uses_llm else None
    counts = ParaphraseCounts(expected=len(originals))
    similarity = filters.SemanticSimilarity(config.filters.max_tokens)
    kept = {}
    results = paraphraser.paraphrase(inputs)
    for meme, text, result in zip(originals, progress_bar(inputs, "filter"), results, strict=True):
        variants = _filter_by_text(
            meme, text, result, config.filters, cleaner, other_split_texts, counts
        )
        variants = _filter_drifted(meme, variants, min_cosine, similarity, counts)
        counts.kept += len(variants)
        if variants:
            kept[meme["id"]] = variants
    return kept, counts


def _filter_by_text(
    meme: dict,
    paraphrase_input: ParaphraseInput,
    result: ParaphraseResult,
    config: ParaphraseFilterConfig,
    cleaner: MemeTextCleaner,
    other_split_texts: set[str],
    counts: ParaphraseCounts,
) -> list[Paraphrase]:
    """Clean the paraphrases and keep those that the literal filters accept; count the others."""
    if result.failure:
        counts.failures[result.failure] += 1
    kept: list[Paraphrase] = []
    for variant, sentence in enumerate(result.texts, start=1):
        counts.generated += 1
        text, siblings = cleaner.clean(sentence, meme["language"]), [text for _, text, _ in kept]
        reason = filters.find_rejection_reason(
            text, meme["text"], siblings, other_split_texts, config
        )
        if filters.is_refusal(sentence) and not filters.is_refusal(paraphrase_input.text):
            reason = filters.REFUSAL
        if reason:
            counts.rejected[reason] += 1
        else:
            kept.append(
                Paraphrase(variant, text, cleaner.clean_lightly(sentence, meme["language"]))
            )
    return kept


def _filter_drifted(
    meme: dict,
    variants: list[Paraphrase],
    min_cosine: float | None,
    similarity: filters.SemanticSimilarity,
    counts: ParaphraseCounts,
) -> list[Paraphrase]:
    """Keep the variants whose meaning is close to the original's; all if it is not measured."""
    if min_cosine is None or not variants:
        return variants
    if not similarity.supports_language(meme["language"]):
        counts.drift_unavailable[meme["language"]] += len(variants)
        return variants
    counts.drift_measured += len(variants)
    cosines = similarity.compute_cosines(meme["text"], [text for _, text, _ in variants])
    kept = [
        variant for variant, cosine in zip(variants, cosines, strict=True) if cosine >= min_cosine
    ]
    counts.rejected[filters.DRIFT] += len(variants) - len(kept)
    return kept


def compute_paraphrase_id(group: str, variant: int, text: str) -> str:
    """The id of a paraphrase: a hash of its content, like the id of an original."""
    return sha256(json.dumps([group, variant, text]).encode()).hexdigest()[:16]


def interleave_paraphrases(
    memes: list[dict], kept: dict[str, list[Paraphrase]], text_source: str
) -> Iterator[dict]:
    """Every meme, followed by its paraphrases, which have the image of the original."""
    for meme in memes:
        yield meme
        for variant, text, sentence in kept.get(meme["id"], []):
            yield meme | {
                "id": compute_paraphrase_id(meme["id"], variant, text),
                "variant": variant,
                "text": text,
                "sentence": sentence,
                "text_source": text_source,
            }


def augment_images(
    rows: list[dict], source: Path, config: AugmentConfig, folder: Path
) -> list[dict]:
    """The rows with augmented images; writes all their images to `folder`.

    One image at a time is in memory. Raises InputError if `source` lacks an image.
    """
    by_image = defaultdict(list)
    for row in rows:
        if row["image"]:
            by_image[row["image"]].append(row)
    augmented_images: dict[str, str] = {}
    with image_store.image_writer(folder, config.num_shards) as write:
        for image in progress_bar(image_store.read_images(source), "augment images"):
            image_rows = by_image.pop(image["sha256"], [])
            if any(not row["variant"] or not config.image.ranges for row in image_rows):
                write(image)
            for row in image_rows:
                if row["variant"] and config.image.ranges:
                    # Without the text: a variant keeps its image if its text changes.
                    name = f"{config.seed} {row['group']} {row['variant']}"
                    content = image_augmentation.augment_image(
                        image["bytes"], config.image.ranges, name, config.image.jpeg_quality
                    )
                    augmented = image_store.build_image_row(content)
                    write(augmented)
                    augmented_images[row["id"]] = augmented["sha256"]
    if by_image:
        raise InputError(f"{source} lacks the image {min(by_image)}: run `dvc repro`")
    return [row | {"image": augmented_images.get(row["id"], row["image"])} for row in rows]


def summarize_augmentation(
    rows: list[dict], counts: ParaphraseCounts, paraphraser: Paraphraser, image_policy: str
) -> dict[str, Any]:
    """The content of summary.json."""

    def count_by_split(selected: list[dict]) -> dict[str, int]:
        sizes = Counter(row["split"] for row in selected)
        return {split: sizes[split] for split in SPLITS}

    sources = Counter(
        row["text_source"] if row["text"] else "none" for row in rows if not row["variant"]
    )
    return {
        "memes": count_by_split([row for row in rows if not row["variant"]]),
        "paraphrases": count_by_split([row for row in rows if row["variant"]]),
        "texts": dict(sorted(sources.items())),
        "paraphraser": paraphraser.compute_statistics(),
        "paraphrased": {
            "memes": counts.expected,
            "without": dict(sorted(counts.failures.items())),
            "given": counts.generated,
            "kept": counts.kept,
            "rejected": {name: count for name, count in sorted(counts.rejected.items()) if count},
            "drift_measured": counts.drift_measured,
            "drift_unavailable": dict(sorted(counts.drift_unavailable.items())),
        },
        "picture": image_policy,
    }


def main(
    config: AugmentConfig,
    clean_config: text_cleaning.CleanConfig,
    prompt: ParaphrasePrompt,
    ingest: Path,
    clean: Path,
    inpaint: Path,
    output: Path,
) -> None:
    if not (ingest / "tasks.json").is_file():
        raise InputError(f"{ingest / 'tasks.json'} is missing: run `dvc repro`")
    rows = schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS["memes"])
    table = schemas.read_table(inpaint / "pictures.parquet", schemas.INPAINTED_IMAGES)
    inpainted = table.select(["image", "inpainted", "text"]).to_pylist()
    images = {row["image"]: row for row in inpainted}
    if missing := {row["image"] for row in rows if row["image"]} - images.keys():
        raise InputError(f"{inpaint}/pictures.parquet lacks {min(missing)}: run `dvc repro`")

    paraphraser = paraphrasers.load_paraphraser(
        config.backend, config.openai, prompt, config.num_paraphrases, config.seed
    )
    with tracking.start_run(stage="augment", name=output.name, params=asdict(config)) as tracked:
        with atomic_output_dir(output) as folder:
            cleaner = MemeTextCleaner(clean_config)
            memes = build_originals(rows, images, cleaner)
            kept, counts = generate_paraphrases(memes, paraphraser, config, cleaner)
            records = list(interleave_paraphrases(memes, kept, paraphraser.name))
            records = augment_images(records, inpaint / "images", config, folder / "images")
            schemas.write_parquet(folder / "records.parquet", records, schemas.MEMES)
            shutil.copy(ingest / "tasks.json", folder / "tasks.json")
            summary = summarize_augmentation(records, counts, paraphraser, config.image.policy)
            text = json.dumps(summary, indent=2, ensure_ascii=False)
            (folder / "summary.json").write_text(f"{text}\n", encoding="utf-8")
        tracked.log_metrics({"given": counts.generated, "kept": counts.kept}, step=0)
        tracked.log_artifact_hash(output / "summary.json", "summary.json")


def cli(ingest: Path, clean: Path, inpaint: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(AugmentConfig, "augment")
    clean_config = load_config(text_cleaning.CleanConfig, "clean")
    prompt = paraphrasers.load_prompt(PROMPT_PATH)
    main(config, clean_config, prompt, ingest, clean, inpaint, output)


if __name__ == "__main__":
    run_stage(cli)
