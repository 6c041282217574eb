"""Collect the records of a corpus: ids, duplicates, images and rejected rows.

A record's id is a hash of its content:

    article          title, texts and images
    captioned image  the image
    tweet            words, tags and image
    post             text, label and image
    meme             text and image

The same article twice is therefore one record, and rows that caption the same image become one
record with all captions; neither can be in two splits. Two tweets, posts or memes with the same
text may differ in their image only; if it is unusable, the source's own id replaces it in the hash.

An unusable image is rejected by itself, as if the author had not placed it. An article keeps its
text and its other images, and the positions of facts and foils count those. A tweet, a post or a
meme continues without image, unless it has no text either. A captioned image is rejected entirely.
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
MAX_BYTES_PER_PIXEL = 8  # RGBA with 16 bits: image files are hardly larger, whatever their format
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
    """A row that cannot be ingested; the message is the reason."""


@dataclass
class RecordCollector:
    """The records so far. Images are passed on to `add_image` at once."""

    root: Path  # image files outside it are rejected
    config: IngestConfig
    add_image: Callable[[dict], None]
    records: dict[str, dict] = field(default_factory=dict)  # by id
    ids_by_key: dict[str, str] = field(default_factory=dict)  # the source's own id -> id
    rejected: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)  # intentional rejections
    facts: list[dict] = field(default_factory=list)
    boxes: list[dict] = field(default_factory=list)
    foils: list[dict] = field(default_factory=list)
    extras: list[ExtraFile] = field(default_factory=list)
    num_rows: int = 0  # rows and optional images, including the rejected ones

    def add(self, item: DatasetItem) -> None:
        """Add a record or extra file; an unusable row is added to `rejected` or `skipped`."""
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
        kept_blocks = [self._build_blocks(block, item) for block in item.blocks]
        blocks = [block for kept in kept_blocks for block in kept]
        content = [title, [[block["image"], block["text"]] for block in blocks]]
        record_id = self._create_id("article", content)
        values = self._resolve_language_and_split(item, record_id, " ".join([title, *texts]))
        self._store_record(item, record_id, values | {"title": title, "blocks": blocks})
        self._add_annotations(item, record_id, kept_blocks)

    def _add_annotations(
        self, item: ArticleRecord, record_id: str, kept_blocks: list[list[dict]]
    ) -> None:
        """Keep an article's facts, boxes and foils.

        kept_blocks: for each of item.blocks the block that was built from it, or none.
        """
        is_kept = [
            bool(kept)
            for block, kept in zip(item.blocks, kept_blocks, strict=True)
            if not isinstance(block, str)
        ]
        positions = [position for position, kept in enumerate(is_kept) if kept]
        for rows, annotations in ((self.facts, item.facts), (self.boxes, item.boxes)):
            rows += [
                {"record": record_id, **asdict(annotation)}
                | {"position": positions.index(annotation.position)}
                for annotation in annotations
                if annotation.position in positions
            ]
        if all(is_kept):  # else texts are joined, and a foil differs from its text in more
            self.foils += [{"record": record_id, **asdict(foil)} for foil in item.foils]

    def _build_blocks(self, block: ImageBytes | ImageFile | str, item: ArticleRecord) -> list[dict]:
        """One block, or none if `block` is a blank text or an unusable image."""
        if isinstance(block, str):
            return [{"image": None, "text": block.strip()}] if block.strip() else []
        image = self._add_optional_image(block, item)
        return [{"image": image, "text": None}] if image else []

    def _add_captioned(self, item: CaptionRecord) -> None:
        captions = [text for text in map(validate_text, item.captions) if text]
        if not captions:
            raise RecordRejected("empty text: the image has no caption")
        image = self._load_image(item.image)
        record_id = compute_record_id(image)
        if record_id in self.records:
            self._merge_captions(item, self.records[record_id], captions)
            return
        language = item.language or detect_language(" ".join(captions))
        values = {"image": image, "captions": captions, "language": language, "split": item.split}
        self._store_record(item, record_id, values)
        self.facts += [{"record": record_id, **asdict(fact)} for fact in item.facts]
        self.boxes += [{"record": record_id, **asdict(box)} for box in item.boxes]

    def _merge_captions(self, item: CaptionRecord, record: dict, captions: list[str]) -> None:
        """Add a row's captions to the record of the same image."""
        self._check_key(item, record["id"])
        split = record["split"] or item.split
        if item.split not in (None, split):
            raise RecordRejected(
                f"duplicate id: the same image as {record['source']}, split {split}"
            )
        new_captions = [caption for caption in captions if caption not in record["captions"]]
        if not new_captions:
            raise RecordRejected(f"duplicate id: the same image and captions as {record['source']}")
        record["captions"] += new_captions
        record["split"] = split

    def _add_tweet(self, item: TweetRecord) -> None:
        validate_tags(item)
        values = {"words": item.words, "tags": item.tags}
        self._add_text_with_image(item, "tweet", values, " ".join(item.words))

    def _add_post(self, item: PostRecord) -> None:
        text = validate_text(item.text)
        if not text:
            raise RecordRejected("empty text: the post has none")
        if item.label not in SENTIMENT_LABELS:
            raise RecordRejected(
                f"unknown label: {item.label[:60]!r} is none of {', '.join(SENTIMENT_LABELS)}"
            )
        self._add_text_with_image(item, "post", {"text": text, "label": item.label}, text)

    def _add_meme(self, item: MemeRecord) -> None:
        text = validate_text(item.text)
        image = item.image and self._add_optional_image(item.image, item)
        if not text and not image:
            raise RecordRejected("empty text: the meme has neither text nor a usable image")
        record_id = self._create_id("meme", [text, image or item.key])
        labels = [{"task": task, "label": label} for task, label in item.labels.items()]
        values = self._resolve_language_and_split(item, record_id, text)
        self._store_record(
            item, record_id, values | {"image": image, "text": text, "labels": labels}
        )
        if image:
            self.facts += [{"record": record_id, **asdict(fact)} for fact in item.facts]
            self.boxes += [{"record": record_id, **asdict(box)} for box in item.boxes]

    def _add_text_with_image(
        self, item: TweetRecord | PostRecord, noun: str, values: dict, text: str
    ) -> None:
        """Add a tweet or post: `values` and its image. The language is detected from `text`."""
        image = item.image and self._add_optional_image(item.image, item)
        record_id = self._create_id(noun, [*values.values(), image or item.key])
        common = self._resolve_language_and_split(item, record_id, text)
        self._store_record(item, record_id, common | {"image": image} | values)
        if image:
            self.facts += [{"record": record_id, **asdict(fact)} for fact in item.facts]

    def _create_id(self, noun: str, content: list) -> str:
        """The id of a record with this content. Raises RecordRejected if the record exists."""
        record_id = compute_record_id(json.dumps(content))
        if record_id in self.records:
            source = self.records[record_id]["source"]
            raise RecordRejected(f"duplicate id: the same {noun} as {source}")
        return record_id

    def _resolve_language_and_split(
        self, item: ArticleRecord | TweetRecord | PostRecord | MemeRecord, record_id: str, text: str
    ) -> dict:
        """The language, None if it cannot be detected, and the split."""
        return {
            "language": item.language or detect_language(text),
            "split": item.split or assign_split(item.key or record_id, self.config),
        }

    def _store_record(self, item: Record, record_id: str, values: dict) -> None:
        self._check_key(item, record_id)
        source = make_printable(item.source)
        self.records[record_id] = {"id": record_id, "source": source, **values}

    def _check_key(self, item: Record, record_id: str) -> None:
        """Raises RecordRejected if another record has the same id in the source."""
        if item.key is None or self.ids_by_key.setdefault(item.key, record_id) == record_id:
            return
        source = self.records[self.ids_by_key[item.key]]["source"]
        raise RecordRejected(f"duplicate id: {item.key[:60]!r} is already used at {source}")

    def _add_optional_image(self, image: ImageBytes | ImageFile, item: Record) -> str | None:
        """Hash of an image that its record can do without; None if the image is rejected."""
        self.num_rows += 1
        try:
            return self._load_image(image)
        except ImageError as error:
            self._reject(item, str(error))
            return None

    def _load_image(self, image: ImageBytes | ImageFile) -> str:
        """Validate an image and store it. Returns its hash. Raises ImageError."""
        max_pixels = self.config.max_pixels
        if isinstance(image, ImageBytes):
            row = image_store.validate_image(image.content, max_pixels)
        else:
            content = read_image_file(image, self.root, max_pixels)
            try:
                row = image_store.validate_image(content, max_pixels)
            except ImageError as error:
                raise ImageError(f"{error} ({image.path[:120]})") from None
        self.add_image(row)
        return row["sha256"]

    def _reject(self, item: Record | Rejection, reason: str) -> None:
        self.rejected.append(_build_rejected_row(item, reason))


def _build_rejected_row(item: Record | Rejection, reason: str) -> dict:
    key = item.key and make_printable(item.key)
    return {"source": make_printable(item.source), "id": key, "reason": make_printable(reason)}


def read_image_file(image: ImageFile, root: Path, max_pixels: int) -> bytes:
    """The bytes of an image file.

    Raises ImageError if it is remote, outside `root`, missing, unreadable or far too large.
    """
    name = image.path[:120]
    if URL_PATTERN.match(image.path):
        raise ImageError(f"remote image: addresses are not fetched ({name})")
    try:
        path = (image.folder / image.path).resolve()
        if Path(image.path).is_absolute() or not path.is_relative_to(root.resolve()):
            raise ImageError(f"path leaves the folder: {name}")
        if not path.is_file():
            raise ImageError(f"missing image: {name}")
        if path.stat().st_size > MAX_BYTES_PER_PIXEL * max_pixels:
            raise ImageError(f"image larger than max_pixels: {path.stat().st_size} bytes ({name})")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError):  # no permission, NUL in the name, a link loop
        raise ImageError(f"missing image: {name!r} cannot be read") from None


def validate_tags(item: TweetRecord) -> None:
    """Raises RecordRejected unless every word is non-empty and has a tag O, B-TYPE or I-TYPE."""
    if not item.words:
        raise RecordRejected("empty text: the tweet has no word")
    if len(item.words) != len(item.tags):
        raise RecordRejected(f"wrong count: {len(item.words)} words have {len(item.tags)} tags")
    for number, (word, tag) in enumerate(zip(item.words, item.tags, strict=True), start=1):
        validate_text(word)  # its result is not used: a word of blanks keeps its tag
        if not word:
            raise RecordRejected(f"empty text: word {number} has no character")
        if not TAG_PATTERN.fullmatch(tag):
            raise RecordRejected(
                f"unknown tag: {tag[:60]!r} of word {number} is none of O, B-TYPE, I-TYPE"
            )


def validate_text(text: str) -> str:
    """The text without surrounding whitespace. Raises RecordRejected if it is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecordRejected("undecodable text: it contains half a surrogate pair") from None
    return text.strip()


def make_printable(name: str) -> str:
    """Replace the characters of a file name that are not valid Unicode."""
    return name.encode(errors="replace").decode()


def compute_record_id(content: str) -> str:
    return sha256(content.encode()).hexdigest()[:16]


def assign_split(key: str, config: IngestConfig) -> str:
    """The split of a key by its hash alone, so that other records do not affect it."""
    content = key.encode(errors="surrogatepass")  # a path may not be valid Unicode
    fraction = int(sha256(content).hexdigest()[:8], 16) / 16**8  # in [0, 1)
    if fraction < config.test_fraction:
        return "test"
    if fraction < config.test_fraction + config.validation_fraction:
        return "validation"
    return "train"
