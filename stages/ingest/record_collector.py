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

from stages.shared.data import image_store
from stages.shared.data.image_store import WrongImage
from stages.shared.data.language import detect
from stages.shared.data.records import (
    LABELS,
    Article,
    Captioned,
    Extra,
    Item,
    Meme,
    Picture,
    PictureFile,
    Post,
    Record,
    Reject,
    Tweet,
)
from stages.shared.runtime.stage import WrongInput

ADDRESS = regex.compile(r"//|(?:https?|ftp|file|data|blob|cid):", regex.IGNORECASE)
BYTES_PER_PIXEL = 8  # RGBA of 16 bits: a picture file is hardly larger, whatever its format
TAG = regex.compile(r"O|[BI]-\S+")


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
    left_out: list[dict] = field(default_factory=list)  # rejected as params ask for: no fault
    facts: list[dict] = field(default_factory=list)
    boxes: list[dict] = field(default_factory=list)
    foils: list[dict] = field(default_factory=list)
    extras: list[Extra] = field(default_factory=list)
    rows: int = 0  # records, and pictures that a record can go on without, taken in or not

    def take(self, item: Item) -> None:
        if isinstance(item, Extra):
            self.extras.append(item)
        elif isinstance(item, Reject) and item.meant:
            self.left_out.append(_row(item, item.reason))
        else:
            self.rows += 1
            try:
                self._take(item)
            except (Refused, WrongImage) as error:
                self._reject(item, str(error))

    def _take(self, item: Record | Reject) -> None:
        match item:
            case Article():
                self._take_article(item)
            case Captioned():
                self._take_captioned(item)
            case Tweet():
                self._take_tweet(item)
            case Post():
                self._take_post(item)
            case Meme():
                self._take_meme(item)
            case Reject():
                raise Refused(item.reason)

    def _take_article(self, item: Article) -> None:
        title = checked(item.title)
        texts = [checked(block) for block in item.blocks if isinstance(block, str)]
        if not any(texts):
            raise Refused("empty text: the article has none")
        parts = [self._blocks(part, item) for part in item.blocks]
        blocks = [block for part in parts for block in part]
        content = [title, [[block["image"], block["text"]] for block in blocks]]
        name = self._new("article", content)
        values = {"title": title, "blocks": blocks}
        self._keep(item, name, self._settled(item, name, " ".join([title, *texts])) | values)
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
        image = self._optional(part, item)
        return [{"image": image, "text": None}] if image else []

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

    def _take_tweet(self, item: Tweet) -> None:
        check_words(item)
        values = {"words": item.words, "tags": item.tags}
        self._take_labelled(item, "tweet", values, " ".join(item.words))

    def _take_post(self, item: Post) -> None:
        text = checked(item.text)
        if not text:
            raise Refused("empty text: the post has none")
        if item.label not in LABELS:
            raise Refused(f"unknown label: {item.label[:60]!r} is none of {', '.join(LABELS)}")
        self._take_labelled(item, "post", {"text": text, "label": item.label}, text)

    def _take_meme(self, item: Meme) -> None:
        text = checked(item.text)
        image = item.picture and self._optional(item.picture, item)
        if not text and not image:
            raise Refused("empty text: the meme has none, and no picture of use")
        name = self._new("meme", [text, image or item.key])
        labels = [{"task": task, "label": label} for task, label in item.labels.items()]
        values = self._settled(item, name, text) | {"image": image, "text": text, "labels": labels}
        self._keep(item, name, values)
        if image:
            self.facts += [{"record": name, **asdict(fact)} for fact in item.facts]
            self.boxes += [{"record": name, **asdict(box)} for box in item.boxes]

    def _take_labelled(self, item: Tweet | Post, what: str, values: dict, text: str) -> None:
        """Keep a tweet or post: `values` beside its picture; `text` tells its language."""
        image = item.picture and self._optional(item.picture, item)
        name = self._new(what, [*values.values(), image or item.key])
        values = {"image": image} | values
        self._keep(item, name, self._settled(item, name, text) | values)
        if image:
            self.facts += [{"record": name, **asdict(fact)} for fact in item.facts]

    def _new(self, what: str, content: list) -> str:
        """The id of a record that holds `content`. Raises Refused if there is one already."""
        name = identifier(json.dumps(content))
        if name in self.records:
            raise Refused(f"duplicate id: the same {what} as {self.records[name]['source']}")
        return name

    def _settled(self, item: Article | Tweet | Post | Meme, name: str, text: str) -> dict:
        """The item's language, perhaps none, and its split, the id's where the item has no key."""
        return {
            "language": item.language or detect(text),
            "split": item.split or split_of(item.key or name, self.params),
        }

    def _keep(self, item: Record, name: str, values: dict) -> None:
        self._check_key(item, name)
        self.records[name] = {"id": name, "source": printable(item.source), **values}

    def _check_key(self, item: Record, name: str) -> None:
        """Raises Refused if another record has the same id in the source."""
        if item.key is None or self.keys.setdefault(item.key, name) == name:
            return
        place = self.records[self.keys[item.key]]["source"]
        raise Refused(f"duplicate id: {item.key[:60]!r} stands at {place} too")

    def _optional(self, picture: Picture | PictureFile, item: Record) -> str | None:
        """Hash of a picture that its record can go on without; None if it was rejected."""
        self.rows += 1
        try:
            return self._image(picture)
        except WrongImage as error:
            self._reject(item, str(error))
            return None

    def _image(self, picture: Picture | PictureFile) -> str:
        """Hash of a picture that has been taken in. Raises WrongImage."""
        limit = self.params.max_pixels
        if isinstance(picture, Picture):
            row = image_store.inspect(picture.content, limit)
        else:
            content = read_picture(picture, self.root, limit)
            try:
                row = image_store.inspect(content, limit)
            except WrongImage as error:
                raise WrongImage(f"{error} ({picture.path[:120]})") from None
        self.add_image(row)
        return row["sha256"]

    def _reject(self, item: Record | Reject, reason: str) -> None:
        self.rejected.append(_row(item, reason))


def _row(item: Record | Reject, reason: str) -> dict:
    key = item.key and printable(item.key)
    return {"source": printable(item.source), "id": key, "reason": printable(reason)}


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


def check_words(item: Tweet) -> None:
    """Raises Refused unless every word has characters, and a tag that is O, B-TYPE or I-TYPE."""
    if not item.words:
        raise Refused("empty text: the tweet has no word")
    if len(item.words) != len(item.tags):
        raise Refused(f"wrong count: {len(item.words)} words have {len(item.tags)} tags")
    for number, (word, tag) in enumerate(zip(item.words, item.tags, strict=True), start=1):
        checked(word)  # a word of blanks alone is one: its tag must stay beside it
        if not word:
            raise Refused(f"empty text: word {number} has no character")
        if not TAG.fullmatch(tag):
            raise Refused(f"unknown tag: {tag[:60]!r} of word {number}, neither O, B-* nor I-*")


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
