"""Make more of the memes of the train split: paraphrases, each with its picture in another look.

python -m stages.augment INGEST CLEAN INPAINT TARGET

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
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from stages.augment import filters, image_augmentation, paraphrasers
from stages.augment.image_augmentation import Ranges
from stages.augment.paraphrasers import Found, Paraphraser, Prompt, Text
from stages.augment.rule_paraphraser import bare
from stages.shared.core import schemas
from stages.shared.core.config import from_to, load
from stages.shared.data import image_store, text_cleaning
from stages.shared.data.records import SPLITS
from stages.shared.runtime import tracking
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput, output, stage

PROMPT = Path(__file__).with_name("prompt.yaml")
NO_PICTURE = {"inpainted": None, "text": None}
AS_IT_IS = "none"  # `picture.look` that gives a paraphrase the picture of its original


@dataclass(frozen=True)
class Picture:
    look: str  # none, or one of looks
    quality: int | None  # of JPEG; None: PNG
    looks: dict[str, Ranges]

    def __post_init__(self) -> None:
        """Raises WrongInput."""
        if self.look not in (AS_IT_IS, *self.looks):
            raise WrongInput(
                f"params.yaml: augment.picture.look is {self.look!r}: give {AS_IT_IS} or one of "
                f"{', '.join(self.looks)}"
            )
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise WrongInput("params.yaml: augment.picture.quality must be from 1 to 100, or null")

    @property
    def ranges(self) -> Ranges | None:
        return self.looks.get(self.look)


@dataclass(frozen=True)
class Params:
    corpora: list[str]  # read by dvc.yaml
    backend: str
    paraphrases: int
    seed: int
    shards: int
    filters: filters.Numbers
    openai: paraphrasers.OpenAI
    picture: Picture

    def __post_init__(self) -> None:
        """Raises WrongInput, or ValueError of a number out of its range."""
        from_to(self, 1, image_store.MOST_SHARDS, "shards")
        if self.paraphrases < 1:
            raise WrongInput(
                "params.yaml: augment.paraphrases must be 1 or more: give augment.backend none "
                "for no paraphrases"
            )


@dataclass
class Counts:
    """What became of paraphrases. meant: memes that should have some; unread: by language."""

    meant: int = 0
    given: int = 0
    kept: int = 0
    rejected: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    measured: int = 0
    unread: Counter = field(default_factory=Counter)


class Words:
    """Cleaning as stage 02 does it, and as little of it as leaves a sentence."""

    def __init__(self, rules: text_cleaning.Params):
        still = {"case": "keep", "punctuation": "keep", "digits": "keep"}
        self.rules, self.light = rules, replace(rules, memes=replace(rules.memes, **still))

    def clean(self, text: str, language: str) -> str:
        return text_cleaning.clean_overlay(text, language, self.rules)

    def sentence(self, text: str, language: str) -> str:
        """Without addresses and names of users and sites, but with case, marks and digits."""
        return text_cleaning.clean_overlay(text, language, self.light)


def originals(
    rows: list[dict], pictures: dict[str, dict], words: Words
) -> tuple[list[dict], dict[str, str]]:
    """MEMES rows of CLEAN rows, and the sentence of each by id. pictures: INPAINTED by image."""
    found, sentences = [], {}
    for row in rows:
        picture = pictures[row["image"]] if row["image"] else NO_PICTURE
        text, whole, source = row["text"], row["original"], "corpus"
        if not text and (read := words.clean(picture["text"] or "", row["language"])):
            text, whole, source = read, picture["text"], "recognised"
        found.append(
            {name: row[name] for name in ("id", "split", "language", "source", "labels")}
            | {"group": row["id"], "variant": 0, "text": text, "text_source": source}
            | {"image": picture["inpainted"], "pictured": row["image"]}
        )
        sentences[row["id"]] = words.sentence(whole, row["language"])
    return found, sentences


def paraphrases(
    memes: list[dict],
    sentences: dict[str, str],
    paraphraser: Paraphraser,
    params: Params,
    words: Words,
) -> tuple[dict[str, list[tuple[int, str]]], Counts]:
    """Of each record that has some, (variant, text); only of the train split.

    What is worded anew is the sentence, which says more than the clean text; then it is cleaned.
    """
    told = [meme for meme in memes if meme["split"] == "train" and meme["text"]]
    asked = [Text(meme["id"], sentences[meme["id"]], meme["language"]) for meme in told]
    elsewhere = {bare(meme["text"]) for meme in memes if meme["split"] != "train"}
    # Rules keep the meaning by what they are, and a cosine costs more than all else here.
    least = params.filters.drift if paraphraser.llm else None
    counts, meaning = Counts(meant=len(told)), filters.Meaning(params.filters.max_tokens)
    kept = {}
    found = paraphraser.paraphrase(asked)
    for meme, text, given in zip(told, bar(asked, "filter"), found, strict=True):
        checked = _checked(meme, text, given, params.filters, words, elsewhere, counts)
        checked = _undrifted(meme, checked, least, meaning, counts)
        counts.kept += len(checked)
        if checked:
            kept[meme["id"]] = checked
    return kept, counts


def _checked(
    meme: dict,
    asked: Text,
    given: Found,
    numbers: filters.Numbers,
    words: Words,
    elsewhere: set[str],
    counts: Counts,
) -> list[tuple[int, str]]:
    """Those that the letters speak for; the others are counted."""
    if given.failure:
        counts.failures[given.failure] += 1
    kept: list[tuple[int, str]] = []
    for variant, sentence in enumerate(given.texts, start=1):
        counts.given += 1
        text, siblings = words.clean(sentence, meme["language"]), [other for _, other in kept]
        reason = filters.fault(text, meme["text"], siblings, elsewhere, numbers)
        if filters.refuses(sentence) and not filters.refuses(asked.text):
            reason = filters.REFUSAL
        if reason:
            counts.rejected[reason] += 1
        else:
            kept.append((variant, text))
    return kept


def _undrifted(
    meme: dict,
    checked: list[tuple[int, str]],
    least: float | None,
    meaning: filters.Meaning,
    counts: Counts,
) -> list[tuple[int, str]]:
    """Those that mean what the original means, or all of them where nobody can tell."""
    if least is None or not checked:
        return checked
    if not meaning.reads(meme["language"]):
        counts.unread[meme["language"]] += len(checked)
        return checked
    counts.measured += len(checked)
    cosines = meaning.cosines(meme["text"], [text for _, text in checked])
    kept = [one for one, cosine in zip(checked, cosines, strict=True) if cosine >= least]
    counts.rejected[filters.DRIFT] += len(checked) - len(kept)
    return kept


def identifier(group: str, variant: int, text: str) -> str:
    """Of a paraphrase: a hash of what it is, as an original's."""
    return sha256(json.dumps([group, variant, text]).encode()).hexdigest()[:16]


def extended(
    memes: list[dict], kept: dict[str, list[tuple[int, str]]], name: str
) -> Iterator[dict]:
    """Every meme, and after it its paraphrases, whose image is that of the original."""
    for meme in memes:
        yield meme
        for variant, text in kept.get(meme["id"], []):
            yield meme | {
                "id": identifier(meme["id"], variant, text),
                "variant": variant,
                "text": text,
                "text_source": name,
            }


def draw(rows: list[dict], source: Path, params: Params, folder: Path) -> list[dict]:
    """The rows with their images, which are written to `folder`, one at a time in memory."""
    by_image = defaultdict(list)
    for row in rows:
        if row["image"]:
            by_image[row["image"]].append(row)
    looks: dict[str, str] = {}
    with image_store.writer(folder, params.shards) as write:
        for picture in bar(image_store.read(source), "draw"):
            using = by_image.pop(picture["sha256"], [])
            if any(not row["variant"] or not params.picture.ranges for row in using):
                write(picture)
            for row in using:
                if row["variant"] and params.picture.ranges:
                    # The variant's picture stays what it is if its text changes.
                    name = f"{params.seed} {row['group']} {row['variant']}"
                    drawn = image_store.trusted(
                        image_augmentation.augment(
                            picture["bytes"], params.picture.ranges, name, params.picture.quality
                        )
                    )
                    write(drawn)
                    looks[row["id"]] = drawn["sha256"]
    if by_image:
        raise WrongInput(f"{source} lacks the picture {min(by_image)}: run `dvc repro`")
    return [row | {"image": looks.get(row["id"], row["image"])} for row in rows]


def summary(
    rows: list[dict], counts: Counts, paraphraser: Paraphraser, picture: str
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
        "paraphraser": paraphraser.figures(),
        "paraphrased": {
            "memes": counts.meant,
            "without": dict(sorted(counts.failures.items())),
            "given": counts.given,
            "kept": counts.kept,
            "rejected": {reason: n for reason, n in sorted(counts.rejected.items()) if n},
            "drift_measured": counts.measured,
            "drift_unavailable": dict(sorted(counts.unread.items())),
        },
        "picture": picture,
    }


def main(
    params: Params,
    tidying: text_cleaning.Params,
    prompt: Prompt,
    folders: list[Path],
    target: Path,
) -> None:
    ingest, clean, inpaint = folders
    if not (ingest / "tasks.json").is_file():
        raise WrongInput(f"{ingest / 'tasks.json'} is missing: run `dvc repro`")
    rows = schemas.read(clean / "records.parquet", schemas.CLEAN["memes"])
    columns = ["image", "inpainted", "text"]
    found = schemas.read_table(inpaint / "pictures.parquet", schemas.INPAINTED).select(columns)
    pictures = {row["image"]: row for row in found.to_pylist()}
    if lacking := {row["image"] for row in rows if row["image"]} - pictures.keys():
        raise WrongInput(f"{inpaint}/pictures.parquet lacks {min(lacking)}: run `dvc repro`")

    paraphraser = paraphrasers.load(
        params.backend, params.openai, prompt, params.paraphrases, params.seed
    )
    with tracking.run(stage="augment", name=target.name, params=asdict(params)) as tracked:
        with output(target) as folder:
            words = Words(tidying)
            memes, sentences = originals(rows, pictures, words)
            kept, counts = paraphrases(memes, sentences, paraphraser, params, words)
            extra = list(extended(memes, kept, paraphraser.name))
            drawn = draw(extra, inpaint / "images", params, folder / "images")
            schemas.write(folder / "records.parquet", drawn, schemas.MEMES)
            shutil.copy(ingest / "tasks.json", folder / "tasks.json")
            figures = summary(drawn, counts, paraphraser, params.picture.look)
            text = json.dumps(figures, indent=2, ensure_ascii=False)
            (folder / "summary.json").write_text(f"{text}\n", encoding="utf-8")
        tracked.log({"given": counts.given, "kept": counts.kept}, step=0)
        tracked.artifact(target / "summary.json", "summary.json")


if __name__ == "__main__":
    with stage():
        *sources, out = map(Path, sys.argv[1:])
        told = paraphrasers.read_prompt(PROMPT)
        main(load(Params, "augment"), load(text_cleaning.Params, "clean"), told, sources, out)
