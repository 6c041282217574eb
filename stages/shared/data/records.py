"""Records that a dataset format passes to ingest.

A format is a package `stages/datasets/<format>` with

    KINDS = ("captions",)      # kinds of corpora that it reads: articles | captions | tweets |
                               # posts | memes
    CONFIG = MyFormatConfig    # a config class, filled from formats.<format> of config/formats.yaml

    def read(source: Path, kind: str, config: MyFormatConfig) -> Iterator[DatasetItem]: ...

`kind` is the kind of the corpus, one of KINDS. `read` yields one row at a time and opens no image
file: ingest validates, decodes and hashes the images, creates the ids, and chooses the language and
split of a row that leaves them open. A row that the format cannot parse becomes a Rejection. `read`
raises InputError only if the source as a whole is unusable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

SPLITS = ("train", "validation", "test")
UNDETERMINED_LANGUAGE = "und"  # BCP 47
SentimentLabel = Literal["negative", "neutral", "positive"]  # of a post
SENTIMENT_LABELS: tuple[SentimentLabel, ...] = get_args(SentimentLabel)


@dataclass(frozen=True)
class ImageBytes:
    """An image in memory: the bytes of its file."""

    content: bytes


@dataclass(frozen=True)
class ImageFile:
    """An image as the source names it, not validated: it may be missing, remote or outside."""

    path: str
    folder: Path  # `path` is relative to it


@dataclass(frozen=True)
class Fact:
    """The true value of a slot in the image at `position` (from 0); only in synthetic corpora."""

    position: int
    slot: str
    value: str


@dataclass(frozen=True)
class SlotBox:
    """Where the image at `position` shows a slot, as fractions of its width and height."""

    position: int
    slot: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Foil:
    """The reference text at `position` with the value of one image slot changed."""

    position: int
    slot: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ArticleRecord:
    source: str  # where the row is: file, or file:line
    title: str
    blocks: Sequence[ImageBytes | ImageFile | str]  # in reading order
    # The id or path in the source; a second row with the same key is rejected.
    key: str | None = None
    language: str | None = None  # a code or name; None: ingest detects it
    split: str | None = None  # one of SPLITS; None: ingest assigns it by hash
    facts: list[Fact] = field(default_factory=list)  # positions count the images of `blocks`
    boxes: list[SlotBox] = field(default_factory=list)
    foils: list[Foil] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class CaptionRecord:
    source: str
    image: ImageBytes | ImageFile
    captions: list[str]
    key: str | None = None
    language: str | None = None
    split: str | None = None
    facts: list[Fact] = field(default_factory=list)  # position 0
    boxes: list[SlotBox] = field(default_factory=list)  # position 0


@dataclass(frozen=True, kw_only=True)
class TweetRecord:
    """Words with one BIO tag each: O, B-TYPE at the start of an entity, I-TYPE inside it."""

    source: str
    words: list[str]
    tags: list[str]
    image: ImageBytes | ImageFile | None = None
    key: str | None = None
    language: str | None = None
    split: str | None = None
    facts: list[Fact] = field(default_factory=list)  # position 0


@dataclass(frozen=True, kw_only=True)
class PostRecord:
    """A text with one sentiment label and an optional image."""

    source: str
    text: str
    label: SentimentLabel
    image: ImageBytes | ImageFile | None = None
    key: str | None = None
    language: str | None = None
    split: str | None = None
    facts: list[Fact] = field(default_factory=list)  # position 0


@dataclass(frozen=True, kw_only=True)
class MemeRecord:
    """An image with text over it, and a label for each task that it is annotated for.

    The format lists the labels of every task, in order, in the ExtraFile tasks.json:
    {task: [label, ...]}.
    """

    source: str
    text: str  # text over the image; empty if the source does not give it
    labels: dict[str, str]  # task -> label; tasks without annotation are absent
    image: ImageBytes | ImageFile | None = None
    key: str | None = None
    language: str | None = None
    split: str | None = None
    facts: list[Fact] = field(default_factory=list)  # position 0
    boxes: list[SlotBox] = field(default_factory=list)  # position 0


@dataclass(frozen=True)
class Rejection:
    """A row that ingest cannot use. `reason` is "category" or "category: details".

    intentional: the parameters ask to leave the row out, so it does not count towards
        ingest.max_rejected_fraction.
    """

    source: str
    reason: str
    key: str | None = None
    intentional: bool = False


@dataclass(frozen=True)
class ExtraFile:
    """A file that ingest writes next to the records, such as ceilings.json; a dict becomes JSON."""

    name: str
    content: dict | str


Record = ArticleRecord | CaptionRecord | TweetRecord | PostRecord | MemeRecord
DatasetItem = Record | Rejection | ExtraFile
