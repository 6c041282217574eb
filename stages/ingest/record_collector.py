"""A corpus while ingest takes it in: ids, duplicates, pictures, and what is rejected.

An id is a hash of what the record holds: of title, texts and pictures for an article, of the
picture for a captioned one, of words, tags and picture for a tweet, of text, label and picture for
a post, of text and picture for a meme. So the same article twice is one record, and rows that
caption the same picture become one record with all their captions; neither can stand in two splits.
Two tweets of the same words, or posts or memes of the same text, may differ in the picture alone:
where it cannot be used, the source's own id stands for it.

A picture that cannot be used is rejected by itself, as if the author had not placed it: an article
keeps its text and its other pictures, and positions of facts and foils count those; a tweet, a post
or a meme goes on without picture, unless it has no text either. A captioned picture is rejected as
a whole.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import regex

from stages.shared.core.config import Field, config_class
from stages.shared.data import image_store
from stages.shared.data.image_store import ImageError
from stages.shared.data.language import detect_language
from stages.shared.data.records import (
    SENTIMENT_LABELS,
    ArticleRecord,
    CaptionRecord,
    DatasetItem,
    ExtraFile,
    ImageBytes,
    ImageFile,
    MemeRecord,
    PostRecord,
    Record,
    Rejection,
    TweetRecord,
)

URL_PATTERN = regex.compile(r"//|(?:https?|ftp|file|data|blob|cid):", regex.IGNORECASE)
MAX_BYTES_PER_PIXEL = 8  # RGBA of 16 bits: a picture file is hardly larger, whatever its format
TAG_PATTERN = regex.compile(r"O|[BI]-\S+")


@config_class
class IngestConfig:
    num_shards: int = Field(ge=1, le=256, description="files that the images are spread over")
    max_pixels: int = Field(description="larger images are rejected before decoding")
    max_rejected_fraction: float = Field(description="rejected share that stops the stage")
    validation_fraction: float = Field(ge=0, description="share by hash, if a source has no splits")
    test_fraction: float = Field(ge=0, description="share by hash, if a source has no splits")

    def __post_init__(self) -> None:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave no training data: give a sum below 1"
            )


class RecordRejected(Exception):
    """A row that cannot be taken in; the message is the reason."""


@dataclass
class RecordCollector:
    """What has been taken in so far; pictures have gone to `add_image` already."""

    root: Path  # no picture may lie outside it
    params: IngestConfig
    add_image: Callable[[dict], None]
    records: dict[str, dict] = field(default_factory=dict)  # by id
    ids_by_key: dict[str, str] = field(default_factory=dict)  # the source's own id -> id
    rejected: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)  # rejected as params ask for: no fault
    facts: list[dict] = field(default_factory=list)
    boxes: list[dict] = field(default_factory=list)
    foils: list[dict] = field(default_factory=list)
    extras: list[ExtraFile] = field(default_factory=list)
    num_rows: int = 0  # records, and pictures that a record can go on without, taken in or not

    def add(self, item: DatasetItem) -> None:
        if isinstance(item, ExtraFile):
            self.extras.append(item)
        elif isinstance(item, Rejection) and item.intentional:
            self.skipped.append(_build_rejected_row(item, item.reason))
        else:
            self.num_rows += 1
            try:
                self._add_item(item)
            except (RecordRejected, ImageError) as error:
                self._reject(item, str(error))

    def _add_item(self, item: Record | Rejection) -> None:
        match item:
            case ArticleRecord():
                self._add_article(item)
            case CaptionRecord():
                self._add_captioned(item)
            case TweetRecord():
                self._add_tweet(item)
            case PostRecord():
                self._add_post(item)
            case MemeRecord():
                self._add_meme(item)
            case Rejection():
                raise RecordRejected(item.reason)

    def _add_article(self, item: ArticleRecord) -> None:
        title = validate_text(item.title)
        texts = [validate_text(block) for block in item.blocks if isinstance(block, str)]
        if not any(texts):
            raise RecordRejected("empty text: the article has none")
        parts = [self._build_blocks(part, item) for part in item.blocks]
        blocks = [block for part in parts for block in part]
        content = [title, [[block["image"], block["text"]] for block in blocks]]
        name = self._create_id("article", content)
        values = {"title": title, "blocks": blocks}
        self._store_record(
            item,
            name,
            self._resolve_language_and_split(item, name, " ".join([title, *texts])) | values,
        )
        self._add_annotations(item, name, parts)

    def _add_annotations(self, item: ArticleRecord, name: str, parts: list[list[dict]]) -> None:
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

    def _build_blocks(self, part: ImageBytes | ImageFile | str, item: ArticleRecord) -> list[dict]:
        """A part of an article as one block, or none if it is blank or a picture of no use."""
        if isinstance(part, str):
            return [{"image": None, "text": part.strip()}] if part.strip() else []
        image = self._add_optional_image(part, item)
        return [{"image": image, "text": None}] if image else []

    def _add_captioned(self, item: CaptionRecord) -> None:
        captions = [text for text in map(validate_text, item.captions) if text]
        if not captions:
            raise RecordRejected("empty text: the picture has no caption")
        image = self._load_image(item.image)
        name = compute_record_id(image)
        if name in self.records:
            self._merge_captions(item, self.records[name], captions)
            return
        language = item.language or detect_language(" ".join(captions))
        values = {"image": image, "captions": captions, "language": language, "split": item.split}
        self._store_record(item, name, values)
        self.facts += [{"record": name, **asdict(fact)} for fact in item.facts]
        self.boxes += [{"record": name, **asdict(box)} for box in item.boxes]

    def _merge_captions(self, item: CaptionRecord, record: dict, captions: list[str]) -> None:
        """Add a row's captions to the record of the same picture."""
        self._check_key(item, record["id"])
        split = record["split"] or item.split
        if item.split not in (None, split):
            raise RecordRejected(
                f"duplicate id: the same picture as {record['source']}, split {split}"
            )
        new = [caption for caption in captions if caption not in record["captions"]]
        if not new:
            raise RecordRejected(
                f"duplicate id: the same picture and captions as {record['source']}"
            )
        record["captions"] += new
        record["split"] = split

    def _add_tweet(self, item: TweetRecord) -> None:
        validate_tags(item)
        values = {"words": item.words, "tags": item.tags}
        self._add_labeled(item, "tweet", values, " ".join(item.words))

    def _add_post(self, item: PostRecord) -> None:
        text = validate_text(item.text)
        if not text:
            raise RecordRejected("empty text: the post has none")
        if item.label not in SENTIMENT_LABELS:
            raise RecordRejected(
                f"unknown label: {item.label[:60]!r} is none of {', '.join(SENTIMENT_LABELS)}"
            )
        self._add_labeled(item, "post", {"text": text, "label": item.label}, text)

    def _add_meme(self, item: MemeRecord) -> None:
        text = validate_text(item.text)
        image = item.image and self._add_optional_image(item.image, item)
        if not text and not image:
            raise RecordRejected("empty text: the meme has none, and no picture of use")
        name = self._create_id("meme", [text, image or item.key])
        labels = [{"task": task, "label": label} for task, label in item.labels.items()]
        values = self._resolve_language_and_split(item, name, text) | {
            "image": image,
            "text": text,
            "labels": labels,
        }
        self._store_record(item, name, values)
        if image:
            self.facts += [{"record": name, **asdict(fact)} for fact in item.facts]
            self.boxes += [{"record": name, **asdict(box)} for box in item.boxes]

    def _add_labeled(
        self, item: TweetRecord | PostRecord, what: str, values: dict, text: str
    ) -> None:
        """Keep a tweet or post: `values` beside its picture; `text` tells its language."""
        image = item.image and self._add_optional_image(item.image, item)
        name = self._create_id(what, [*values.values(), image or item.key])
        values = {"image": image} | values
        self._store_record(item, name, self._resolve_language_and_split(item, name, text) | values)
        if image:
            self.facts += [{"record": name, **asdict(fact)} for fact in item.facts]

    def _create_id(self, what: str, content: list) -> str:
        """The id of a record that holds `content`. Raises Refused if there is one already."""
        name = compute_record_id(json.dumps(content))
        if name in self.records:
            raise RecordRejected(f"duplicate id: the same {what} as {self.records[name]['source']}")
        return name

    def _resolve_language_and_split(
        self, item: ArticleRecord | TweetRecord | PostRecord | MemeRecord, name: str, text: str
    ) -> dict:
        """The item's language, perhaps none, and its split, the id's where the item has no key."""
        return {
            "language": item.language or detect_language(text),
            "split": item.split or assign_split(item.key or name, self.params),
        }

    def _store_record(self, item: Record, name: str, values: dict) -> None:
        self._check_key(item, name)
        self.records[name] = {"id": name, "source": make_printable(item.source), **values}

    def _check_key(self, item: Record, name: str) -> None:
        """Raises Refused if another record has the same id in the source."""
        if item.key is None or self.ids_by_key.setdefault(item.key, name) == name:
            return
        place = self.records[self.ids_by_key[item.key]]["source"]
        raise RecordRejected(f"duplicate id: {item.key[:60]!r} stands at {place} too")

    def _add_optional_image(self, picture: ImageBytes | ImageFile, item: Record) -> str | None:
        """Hash of a picture that its record can go on without; None if it was rejected."""
        self.num_rows += 1
        try:
            return self._load_image(picture)
        except ImageError as error:
            self._reject(item, str(error))
            return None

    def _load_image(self, picture: ImageBytes | ImageFile) -> str:
        """Hash of a picture that has been taken in. Raises WrongImage."""
        limit = self.params.max_pixels
        if isinstance(picture, ImageBytes):
            row = image_store.validate_image(picture.content, limit)
        else:
            content = read_image_file(picture, self.root, limit)
            try:
                row = image_store.validate_image(content, limit)
            except ImageError as error:
                raise ImageError(f"{error} ({picture.path[:120]})") from None
        self.add_image(row)
        return row["sha256"]

    def _reject(self, item: Record | Rejection, reason: str) -> None:
        self.rejected.append(_build_rejected_row(item, reason))


def _build_rejected_row(item: Record | Rejection, reason: str) -> dict:
    key = item.key and make_printable(item.key)
    return {"source": make_printable(item.source), "id": key, "reason": make_printable(reason)}


def read_image_file(picture: ImageFile, root: Path, max_pixels: int) -> bytes:
    """The bytes of a picture's file. Raises WrongImage if it is remote, outside or missing."""
    name = picture.path[:120]
    if URL_PATTERN.match(picture.path):
        raise ImageError(f"remote image: addresses are not fetched ({name})")
    try:
        path = (picture.folder / picture.path).resolve()
        if Path(picture.path).is_absolute() or not path.is_relative_to(root.resolve()):
            raise ImageError(f"path leaves the folder: {name}")
        if not path.is_file():
            raise ImageError(f"missing image: {name}")
        if path.stat().st_size > MAX_BYTES_PER_PIXEL * max_pixels:
            raise ImageError(f"image larger than max_pixels: {path.stat().st_size} bytes ({name})")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError):  # no right to read, NUL in the name, a link loop
        raise ImageError(f"missing image: {name!r} cannot be read") from None


def validate_tags(item: TweetRecord) -> None:
    """Raises Refused unless every word has characters, and a tag that is O, B-TYPE or I-TYPE."""
    if not item.words:
        raise RecordRejected("empty text: the tweet has no word")
    if len(item.words) != len(item.tags):
        raise RecordRejected(f"wrong count: {len(item.words)} words have {len(item.tags)} tags")
    for number, (word, tag) in enumerate(zip(item.words, item.tags, strict=True), start=1):
        validate_text(word)  # a word of blanks alone is one: its tag must stay beside it
        if not word:
            raise RecordRejected(f"empty text: word {number} has no character")
        if not TAG_PATTERN.fullmatch(tag):
            raise RecordRejected(
                f"unknown tag: {tag[:60]!r} of word {number}, neither O, B-* nor I-*"
            )


def validate_text(text: str) -> str:
    """The text without space around it. Raises Refused if it is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecordRejected("undecodable text: it holds half a surrogate pair") from None
    return text.strip()


def make_printable(name: str) -> str:
    """A file's name with what is no Unicode in it replaced."""
    return name.encode(errors="replace").decode()


def compute_record_id(content: str) -> str:
    return sha256(content.encode()).hexdigest()[:16]


def assign_split(name: str, params: IngestConfig) -> str:
    """The split of a name, by its hash alone: other records coming or going do not change it."""
    content = name.encode(errors="surrogatepass")  # a path may hold what is no Unicode
    place = int(sha256(content).hexdigest()[:8], 16) / 16**8  # [0, 1)
    if place < params.test_fraction:
        return "test"
    return "validation" if place < params.test_fraction + params.validation_fraction else "train"
