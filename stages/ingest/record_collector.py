"""Collect the records of a corpus: duplicates, images and rejected rows.

stages/ingest/record_builders.py checks and builds the records and documents their ids.

An unusable image is rejected by itself, as if the author had not placed it. An article keeps its
text and its other images, and the positions of facts and foils count those. A tweet, a post or a
meme continues without image, unless it has no text either. A captioned image is rejected entirely.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

from stages.ingest.image_files import read_image_file
from stages.ingest.language_codes import parse_language
from stages.ingest.record_builders import (
    BuiltRecord,
    RecordRejected,
    build_article,
    build_captioned,
    build_meme,
    build_post,
    build_tweet,
    check_article,
    check_captioned,
    check_meme,
    check_post,
    check_tweet,
    merge_captions,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data import image_store
from stages.shared.data.image_store import ImageError
from stages.shared.data.language import detect_language
from stages.shared.data.records import (
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
                self._add_record(item)
            except (RecordRejected, ImageError) as error:
                self._reject(item, str(error))

    def _add_record(self, item: Record | Rejection) -> None:
        if isinstance(item, Rejection):
            raise RecordRejected(item.reason)
        item = _normalize_item(item)
        built = self._build_record(item)
        existing = self.records.get(built.id)
        if existing and isinstance(item, CaptionRecord):
            self._check_key(item, built.id)
            self.records[built.id] = merge_captions(existing, item, built.values["captions"])
            return
        if existing:
            raise RecordRejected(f"duplicate id: the same {built.noun} as {existing['source']}")
        self._check_key(item, built.id)
        self.records[built.id] = {
            "id": built.id,
            "source": make_printable(item.source),
            "language": item.language or detect_language(built.text),
            "split": self._choose_split(item, built.id),
            **built.values,
        }
        self.facts += [{"record": built.id, **asdict(fact)} for fact in built.facts]
        self.boxes += [{"record": built.id, **asdict(box)} for box in built.boxes]
        self.foils += [{"record": built.id, **asdict(foil)} for foil in built.foils]

    def _build_record(self, item: Record) -> BuiltRecord:
        """Check an item, store its images and build its record."""
        match item:
            case ArticleRecord():
                check_article(item)
                images = [block for block in item.blocks if not isinstance(block, str)]
                return build_article(
                    item, [self._add_optional_image(image, item) for image in images]
                )
            case CaptionRecord():
                check_captioned(item)
                return build_captioned(item, self._load_image(item.image))
            case TweetRecord():
                check_tweet(item)
                return build_tweet(item, self._add_optional_image(item.image, item))
            case PostRecord():
                check_post(item)
                return build_post(item, self._add_optional_image(item.image, item))
            case MemeRecord():
                check_meme(item)
                return build_meme(item, self._add_optional_image(item.image, item))

    def _choose_split(self, item: Record, record_id: str) -> str | None:
        """None: chosen when all captions of an image are known, as they may name its split."""
        if isinstance(item, CaptionRecord):
            return item.split
        return item.split or assign_split(item.key or record_id, self.config)

    def _check_key(self, item: Record, record_id: str) -> None:
        """Raises RecordRejected if another record has the same id in the source."""
        if item.key is None or self.ids_by_key.setdefault(item.key, record_id) == record_id:
            return
        source = self.records[self.ids_by_key[item.key]]["source"]
        raise RecordRejected(f"duplicate id: {item.key[:60]!r} is already used at {source}")

    def _add_optional_image(self, image: ImageBytes | ImageFile | None, item: Record) -> str | None:
        """Hash of an image that its record can do without.

        None if there is none, or if it is rejected.
        """
        if image is None:
            return None
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


def _normalize_item(item: Record) -> Record:
    """The item with its key in NFC, and its language as an ISO 639-1 code.

    Raises RecordRejected if the source names no language that we know.
    """
    try:
        language = item.language and parse_language(item.language)
    except ValueError as error:
        raise RecordRejected(f"wrong field: language: {error}") from None
    key = item.key and normalize("NFC", item.key)
    return replace(item, key=key, language=language or None)


def _build_rejected_row(item: Record | Rejection, reason: str) -> dict:
    key = item.key and make_printable(item.key)
    return {"source": make_printable(item.source), "id": key, "reason": make_printable(reason)}


def make_printable(name: str) -> str:
    """Replace the characters of a file name that are not valid Unicode."""
    return name.encode(errors="replace").decode()


def assign_split(key: str, config: IngestConfig) -> str:
    """The split of a key by its hash alone, so that other records do not affect it."""
    content = key.encode(errors="surrogatepass")  # a path may not be valid Unicode
    fraction = int(sha256(content).hexdigest()[:8], 16) / 16**8  # in [0, 1)
    if fraction < config.test_fraction:
        return "test"
    if fraction < config.test_fraction + config.validation_fraction:
        return "validation"
    return "train"
