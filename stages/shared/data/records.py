"""What a dataset format hands to ingest. A format is one file stages/datasets/<format>.py with

    KINDS = ("captions",)       # of corpora that it reads: articles | captions | tweets | posts |
                                # memes

    @dataclass(frozen=True)
    class Params: ...           # filled from formats.<format> of params.yaml

    def read(source: Path, kind: str, params: Params) -> Iterator[Item]: ...

`kind` is the corpus' kind, one of KINDS. `read` yields rows one at a time and opens no picture
file: ingest checks, decodes and hashes pictures, gives ids, and decides languages and splits where
the row leaves them open. What a format cannot read it yields as Reject. It raises WrongInput only
if the source as a whole is wrong.
"""

import codecs
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from stages.shared.runtime.stage import InputError

SPLITS = ("train", "validation", "test")
UNDETERMINED_LANGUAGE = "und"  # language; BCP 47: undetermined
SentimentLabel = Literal["negative", "neutral", "positive"]  # of a post
SENTIMENT_LABELS = get_args(SentimentLabel)


@dataclass(frozen=True)
class ImageBytes:
    """A picture in memory: the bytes of its file."""

    content: bytes


@dataclass(frozen=True)
class ImageFile:
    """A picture as the source names it, unchecked: it may be missing, remote or outside."""

    path: str
    folder: Path  # that `path` is relative to


@dataclass(frozen=True)
class Fact:
    """What is true of the picture at `position` (counted from 0), known only for drawn corpora."""

    position: int
    slot: str
    value: str


@dataclass(frozen=True)
class SlotBox:
    """Where a slot is seen in the picture at `position`, in shares of its width and height."""

    position: int
    slot: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Foil:
    """The reference text at `position` with the value of one picture slot changed."""

    position: int
    slot: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ArticleRecord:
    source: str  # where the row stands: file, or file:line
    title: str
    blocks: list[ImageBytes | ImageFile | str]  # in reading order
    # The source's own id, or path; the second row with the same one is rejected.
    key: str | None = None
    language: str | None = None  # ISO 639-1; None: ingest detects it
    split: str | None = None  # one of SPLITS; None: ingest decides by hash
    facts: list[Fact] = field(default_factory=list)  # positions count the pictures of `blocks`
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
    """Words with a tag each: O, or B-TYPE | I-TYPE where an entity begins | goes on."""

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
    """A text, and perhaps a picture, with one sentiment."""

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
    """A picture with words over it, and a label of each task that somebody judged it on.

    The corpus' tasks, each with all of its labels in order, are an Extra: {task: [label, ...]} as
    tasks.json.
    """

    source: str
    text: str  # the words over the picture; empty: the source does not give them
    labels: dict[str, str]  # task -> label; of a task that nobody judged nothing
    image: ImageBytes | ImageFile | None = None
    key: str | None = None
    language: str | None = None
    split: str | None = None
    facts: list[Fact] = field(default_factory=list)  # position 0
    boxes: list[SlotBox] = field(default_factory=list)  # position 0


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be taken in. `reason` is "what is wrong" or "what is wrong: details"."""

    source: str
    reason: str
    key: str | None = None
    intentional: bool = (
        False  # left out as params ask for; it counts for nothing in ingest.max_rejected
    )


@dataclass(frozen=True)
class ExtraFile:
    """A file that ingest writes beside the records, such as ceilings.json: a dict becomes JSON."""

    name: str
    content: dict | str


Record = ArticleRecord | CaptionRecord | TweetRecord | PostRecord | MemeRecord
DatasetItem = Record | Rejection | ExtraFile


def decode_text(content: bytes, encodings: list[str], name: str) -> str | None:
    """The text of a file in the first encoding that fits, or None if none does.

    A byte order mark decides before them and is taken off. A text with NUL is no text. Raises
    WrongInput if an encoding is unknown; `name` is the key of params.yaml that lists them.
    """
    for encoding in [_bom_encoding(content)] if _bom_encoding(content) else encodings:
        try:
            text = content.decode(encoding)
        except LookupError:
            raise InputError(
                f"params.yaml: {name}: {encoding!r} is no encoding: give utf-8"
            ) from None
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else text
    return None


def _bom_encoding(content: bytes) -> str | None:
    if content.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return None
