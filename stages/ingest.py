"""Take a corpus in as records and pictures.

python -m stages.ingest KEY KIND FORMAT PATH TARGET

KEY names the corpus (params.yaml: corpora.KEY), KIND is articles | captions, FORMAT a file of
stages/datasets, PATH what it reads.

writes  TARGET/records.parquet   RECORDS[KIND] of stages/shared/tables.py
        TARGET/images/           the pictures by hash
        TARGET/rejected.parquet  every row and picture that was not taken in, and why
        TARGET/summary.json      records by split and language, rejected rows by reason
        TARGET/facts.parquet, boxes.parquet, foils.parquet and JSON files where the format knows
        the truth

An id is a hash of what the record holds: of title, texts and pictures for an article, of the
picture for a captioned one. So the same article twice is one record, and rows that caption the same
picture become one record with all their captions; neither can stand in two splits.

Where the source names no split, a hash decides: of an article's key (its id or path in the source),
so that it stays where it is while its text is being corrected, and of the id where there is no key
and for a captioned picture, all of whose captions stay together.

A picture that cannot be used is rejected by itself, as if the author had not placed it: the article
keeps its text and its other pictures, and positions of facts and foils count those. A captioned
picture is rejected as a whole.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType

import regex

from stages.shared import images, tables
from stages.shared.images import WrongImage
from stages.shared.language import detect
from stages.shared.params import load, read
from stages.shared.progress import bar
from stages.shared.records import (
    SPLITS,
    Article,
    Captioned,
    Extra,
    Item,
    Picture,
    PictureFile,
    Reject,
)
from stages.shared.stage import WrongInput, home, output, stage

ADDRESS = regex.compile(r"//|(?:https?|ftp|file|data|blob|cid):", regex.IGNORECASE)
BYTES_PER_PIXEL = 8  # RGBA of 16 bits: a picture file is hardly larger, whatever its format
NAMED = 3  # rejected rows that an error message names
UNKNOWN = "und"  # BCP 47: undetermined


@dataclass(frozen=True)
class Params:
    shards: int  # files that the pictures are spread over
    max_pixels: int
    max_rejected: float  # share of rejected rows that stops the stage
    validation: float  # share of records, by hash, where the source names no split
    test: float

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 256:
            raise WrongInput(f"params.yaml: ingest.shards is {self.shards}: give 1 to 256")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise WrongInput(
                f"params.yaml: ingest.validation {self.validation} and ingest.test {self.test} "
                "leave nothing to train on: give shares of 0 or more that sum to less than 1"
            )


class Refused(Exception):
    """A row that cannot be taken in; the message is the reason."""


@dataclass
class Corpus:
    """What has been taken in so far; pictures have gone to `add_image` already."""

    root: Path  # no picture may lie outside it
    params: Params
    add_image: Callable[[dict], None]
    records: dict[str, dict] = field(default_factory=dict)  # by id
    keys: dict[str, str] = field(default_factory=dict)  # the source's own id -> id
    rejected: list[dict] = field(default_factory=list)
    facts: list[dict] = field(default_factory=list)
    boxes: list[dict] = field(default_factory=list)
    foils: list[dict] = field(default_factory=list)
    extras: list[Extra] = field(default_factory=list)
    rows: int = 0  # records and pictures of articles, taken in or not

    def take(self, item: Item) -> None:
        if isinstance(item, Extra):
            self.extras.append(item)
            return
        self.rows += 1
        try:
            if isinstance(item, Reject):
                raise Refused(item.reason)
            self._take_article(item) if isinstance(item, Article) else self._take_captioned(item)
        except (Refused, WrongImage) as error:
            self._reject(item, str(error))

    def _take_article(self, item: Article) -> None:
        title = checked(item.title)
        texts = [checked(block) for block in item.blocks if isinstance(block, str)]
        if not any(texts):
            raise Refused("empty text: the article has none")
        parts = [self._blocks(part, item) for part in item.blocks]
        blocks = [block for part in parts for block in part]
        content = [title, [[block["image"], block["text"]] for block in blocks]]
        name = identifier(json.dumps(content))
        if name in self.records:
            raise Refused(f"duplicate id: the same article as {self.records[name]['source']}")
        language = item.language or detect(" ".join([title, *texts]))
        split = item.split or split_of(item.key or name, self.params)
        values = {"title": title, "blocks": blocks, "language": language, "split": split}
        self._keep(item, name, values)
        self._keep_truth(item, name, parts)

    def _keep_truth(self, item: Article, name: str, parts: list[list[dict]]) -> None:
        """Keep an article's facts, boxes and foils; `parts`: the blocks of each of item.blocks."""
        taken = [
            bool(blocks)
            for part, blocks in zip(item.blocks, parts, strict=True)
            if not isinstance(part, str)
        ]
        kept = [number for number, one in enumerate(taken) if one]
        for mine, theirs in ((self.facts, item.facts), (self.boxes, item.boxes)):
            mine += [
                {"record": name, **asdict(one), "position": kept.index(one.position)}
                for one in theirs
                if one.position in kept
            ]
        if all(taken):  # else texts were joined, and no foil differs from its text in one slot only
            self.foils += [{"record": name, **asdict(foil)} for foil in item.foils]

    def _blocks(self, part: Picture | PictureFile | str, item: Article) -> list[dict]:
        """A part of an article as one block, or none if it is blank or a picture of no use."""
        if isinstance(part, str):
            return [{"image": None, "text": part.strip()}] if part.strip() else []
        self.rows += 1
        try:
            return [{"image": self._image(part), "text": None}]
        except WrongImage as error:
            self._reject(item, str(error))
            return []

    def _take_captioned(self, item: Captioned) -> None:
        captions = [text for text in map(checked, item.captions) if text]
        if not captions:
            raise Refused("empty text: the picture has no caption")
        image = self._image(item.picture)
        name = identifier(image)
        if name in self.records:
            self._merge(item, self.records[name], captions)
            return
        language = item.language or detect(" ".join(captions))
        values = {"image": image, "captions": captions, "language": language, "split": item.split}
        self._keep(item, name, values)
        self.facts += [{"record": name, **asdict(fact)} for fact in item.facts]
        self.boxes += [{"record": name, **asdict(box)} for box in item.boxes]

    def _merge(self, item: Captioned, record: dict, captions: list[str]) -> None:
        """Add a row's captions to the record of the same picture."""
        self._check_key(item, record["id"])
        split = record["split"] or item.split
        if item.split not in (None, split):
            raise Refused(f"duplicate id: the same picture as {record['source']}, split {split}")
        new = [caption for caption in captions if caption not in record["captions"]]
        if not new:
            raise Refused(f"duplicate id: the same picture and captions as {record['source']}")
        record["captions"] += new
        record["split"] = split

    def _keep(self, item: Article | Captioned, name: str, values: dict) -> None:
        self._check_key(item, name)
        source = printable(item.source)
        self.records[name] = {"id": name, "source": source, **values}

    def _check_key(self, item: Article | Captioned, name: str) -> None:
        """Raises Refused if another record has the same id in the source."""
        if item.key is None or self.keys.setdefault(item.key, name) == name:
            return
        place = self.records[self.keys[item.key]]["source"]
        raise Refused(f"duplicate id: {item.key[:60]!r} stands at {place} too")

    def _image(self, picture: Picture | PictureFile) -> str:
        """Hash of a picture that has been taken in. Raises WrongImage."""
        limit = self.params.max_pixels
        if isinstance(picture, Picture):
            row = images.inspect(picture.content, limit)
        else:
            content = read_picture(picture, self.root, limit)
            try:
                row = images.inspect(content, limit)
            except WrongImage as error:
                raise WrongImage(f"{error} ({picture.path[:120]})") from None
        self.add_image(row)
        return row["sha256"]

    def _reject(self, item: Article | Captioned | Reject, reason: str) -> None:
        key = item.key and printable(item.key)
        row = {"source": printable(item.source), "id": key, "reason": printable(reason)}
        self.rejected.append(row)


def read_picture(picture: PictureFile, root: Path, max_pixels: int) -> bytes:
    """The bytes of a picture's file. Raises WrongImage if it is remote, outside or missing."""
    name = picture.path[:120]
    if ADDRESS.match(picture.path):
        raise WrongImage(f"remote image: addresses are not fetched ({name})")
    try:
        path = (picture.folder / picture.path).resolve()
        if Path(picture.path).is_absolute() or not path.is_relative_to(root.resolve()):
            raise WrongImage(f"path leaves the folder: {name}")
        if not path.is_file():
            raise WrongImage(f"missing image: {name}")
        if path.stat().st_size > BYTES_PER_PIXEL * max_pixels:
            raise WrongImage(f"image larger than max_pixels: {path.stat().st_size} bytes ({name})")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError):  # no right to read, NUL in the name, a link loop
        raise WrongImage(f"missing image: {name!r} cannot be read") from None


def checked(text: str) -> str:
    """The text without space around it. Raises Refused if it is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused("undecodable text: it holds half a surrogate pair") from None
    return text.strip()


def printable(name: str) -> str:
    """A file's name with what is no Unicode in it replaced."""
    return name.encode(errors="replace").decode()


def identifier(content: str) -> str:
    return sha256(content.encode()).hexdigest()[:16]


def split_of(name: str, params: Params) -> str:
    """The split of a name, by its hash alone: other records coming or going do not change it."""
    content = name.encode(errors="surrogatepass")  # a path may hold what is no Unicode
    place = int(sha256(content).hexdigest()[:8], 16) / 16**8  # [0, 1)
    if place < params.test:
        return "test"
    return "validation" if place < params.test + params.validation else "train"


def complete(records: Iterable[dict], params: Params) -> None:
    """Give every record a split, and the corpus' most frequent language where none was told."""
    records = list(records)
    known = Counter(record["language"] for record in records if record["language"])
    usual = min(known, key=lambda language: (-known[language], language), default=UNKNOWN)
    for record in records:
        record["split"] = record["split"] or split_of(record["id"], params)
        record["language"] = record["language"] or usual


def check_rejected(corpus: Corpus, key: str) -> None:
    """Raises WrongInput if too many rows were rejected, or all; lists them in the work folder."""
    if not corpus.rows:
        raise WrongInput(f"corpora.{key}: the source holds no row: add records")
    count = len(corpus.rejected)
    if corpus.records and count <= corpus.params.max_rejected * corpus.rows:
        return
    path = home() / "rejected" / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in corpus.rejected))
    reasons = Counter(kind_of(row) for row in corpus.rejected)
    reason, most = reasons.most_common(1)[0]
    named = [row for row in corpus.rejected if kind_of(row) == reason][:NAMED]
    examples = "; ".join(f"{row['source']}: {row['reason']}" for row in named)
    raise WrongInput(
        f"corpora.{key}: {count} of {corpus.rows} rows and pictures were rejected, more than "
        f"ingest.max_rejected ({corpus.params.max_rejected}) allows, most often for {reason!r} "
        f"({most}; {examples}): repair what {path} lists, or raise ingest.max_rejected"
    )


def kind_of(rejected: dict) -> str:
    return rejected["reason"].split(":")[0]


def check_splits(records: Iterable[dict], key: str) -> None:
    """Raises WrongInput if nothing is left to train on or to test; validation may be empty."""
    counts = Counter(record["split"] for record in records)
    if empty := [split for split in ("train", "test") if not counts[split]]:
        raise WrongInput(
            f"corpora.{key}: none of {counts.total()} records is in {' or '.join(empty)}: add "
            "records, change ingest.validation or ingest.test, or name the splits in the source"
        )


def summary(corpus: Corpus) -> dict:
    records = corpus.records.values()
    splits = Counter(record["split"] for record in records)
    return {
        "records": {split: splits[split] for split in SPLITS},
        "languages": dict(sorted(Counter(record["language"] for record in records).items())),
        "rejected": dict(sorted(Counter(map(kind_of, corpus.rejected)).items())),
    }


def write(corpus: Corpus, kind: str, folder: Path) -> None:
    tables.write(folder / "records.parquet", list(corpus.records.values()), tables.RECORDS[kind])
    tables.write(folder / "rejected.parquet", corpus.rejected, tables.REJECTED)
    if corpus.facts:
        tables.write(folder / "facts.parquet", corpus.facts, tables.FACTS)
    if corpus.boxes:
        tables.write(folder / "boxes.parquet", corpus.boxes, tables.BOXES)
    if corpus.foils:
        tables.write(folder / "foils.parquet", corpus.foils, tables.FOILS)
    extras = [*corpus.extras, Extra("summary.json", summary(corpus))]
    for extra in extras:
        text = extra.content
        if not isinstance(text, str):
            text = json.dumps(text, indent=2, ensure_ascii=False) + "\n"
        (folder / extra.name).write_text(text)


def format_module(name: str, key: str) -> ModuleType:
    known = read().get("formats", {})
    if name not in known:
        choices = " | ".join(known)
        raise WrongInput(f"params.yaml: corpora.{key}.format is {name!r}: choose one of {choices}")
    return import_module(f"stages.datasets.{name}")


def main(params: Params, key: str, kind: str, format: str, source: Path, target: Path) -> None:
    if kind not in tables.RECORDS:
        choices = " | ".join(tables.RECORDS)
        raise WrongInput(f"params.yaml: corpora.{key}.kind is {kind!r}: choose one of {choices}")
    module = format_module(format, key)
    settings = load(module.Params, "formats", format)
    if not source.exists():
        raise WrongInput(f"params.yaml: corpora.{key}.path is {source}, which does not exist")
    root = source.parent if source.is_file() else source
    with output(target) as folder:
        with images.writer(folder / "images", params.shards) as add_image:
            corpus = Corpus(root, params, add_image)
            for item in bar(module.read(source, kind, settings), f"ingest {key}"):
                corpus.take(item)
        check_rejected(corpus, key)
        complete(corpus.records.values(), params)
        check_splits(corpus.records.values(), key)
        write(corpus, kind, folder)


if __name__ == "__main__":
    with stage():
        names, paths = sys.argv[1:4], map(Path, sys.argv[4:])
        main(load(Params, "ingest"), *names, *paths)
