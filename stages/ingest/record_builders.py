"""Records from the items of a data format: one check and one pure function per kind of corpus.

Each kind is checked before its images are loaded, so that an invalid item stores no image, and
built afterwards from the hashes of its images.

A record's id is a hash of its content:

    article          title, texts and images
    captioned image  the image
    tweet            words, tags and image
    post             text, label and image
    meme             text and image

The same article twice is therefore one record, and rows that caption the same image become one
record with all captions; neither can be in two splits. Two tweets, posts or memes with the same
text may differ in their image only; if it is unusable, the source's own id replaces it in the hash.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from unicodedata import normalize

import regex

from stages.shared.data.records import (
    SENTIMENT_LABELS,
    ArticleRecord,
    CaptionRecord,
    Fact,
    Foil,
    MemeRecord,
    PostRecord,
    SlotBox,
    TweetRecord,
)

TAG_PATTERN = regex.compile(r"O|[BI]-\S+")
# Neither white space, control and format characters (zero width), fillers nor the blank of braille.
VISIBLE_CHARACTER = regex.compile(r"[^\s\p{Cc}\p{Cf}\p{DI}\u2800]")


class RecordRejected(Exception):
    """A row that cannot be ingested; the message is the reason."""


@dataclass(frozen=True)
class BuiltRecord:
    """A record without source, language and split.

    noun: what messages call it. text: from which its language is detected. values: its columns.
    """

    id: str
    noun: str
    text: str
    values: dict[str, Any]
    facts: list[Fact] = field(default_factory=list)
    boxes: list[SlotBox] = field(default_factory=list)
    foils: list[Foil] = field(default_factory=list)


def check_article(item: ArticleRecord) -> None:
    """Raises RecordRejected if a text is not valid Unicode or there is none."""
    validate_text(item.title)
    texts = [validate_text(block) for block in item.blocks if isinstance(block, str)]
    if not any(texts):
        raise RecordRejected("empty text: the article has none")


def build_article(item: ArticleRecord, images: Sequence[str | None]) -> BuiltRecord:
    """images: the hash of each image of `item.blocks`, None if it is unusable.

    Facts and boxes of usable images are kept; their positions count those images. Foils are kept
    only if all images are usable: else texts are joined, and a foil differs from its text in more.
    """
    title = validate_text(item.title)
    texts = [validate_text(block) for block in item.blocks if isinstance(block, str)]
    hashes = iter(images)
    all_blocks = [
        {"image": None, "text": validate_text(block) or None}
        if isinstance(block, str)
        else {"image": next(hashes), "text": None}
        for block in item.blocks
    ]
    blocks = [block for block in all_blocks if block["image"] or block["text"]]
    usable = [position for position, image in enumerate(images) if image]
    return BuiltRecord(
        id=_hash_content([title, [[block["image"], block["text"]] for block in blocks]]),
        noun="article",
        text=" ".join([title, *texts]),
        values={"title": title, "blocks": blocks},
        facts=[
            replace(fact, position=usable.index(fact.position))
            for fact in item.facts
            if fact.position in usable
        ],
        boxes=[
            replace(box, position=usable.index(box.position))
            for box in item.boxes
            if box.position in usable
        ],
        foils=item.foils if len(usable) == len(images) else [],
    )


def check_captioned(item: CaptionRecord) -> None:
    """Raises RecordRejected if a caption is not valid Unicode or there is none."""
    captions = [validate_text(caption) for caption in item.captions]
    if not any(captions):
        raise RecordRejected("empty text: the image has no caption")


def build_captioned(item: CaptionRecord, image: str) -> BuiltRecord:
    """image: its hash."""
    captions = [text for caption in item.captions if (text := validate_text(caption))]
    return BuiltRecord(
        id=compute_record_id(image),
        noun="image",
        text=" ".join(captions),
        values={"image": image, "captions": captions},
        facts=item.facts,
        boxes=item.boxes,
    )


def merge_captions(record: dict[str, Any], item: CaptionRecord, captions: list[str]) -> dict:
    """`record` with the captions and the split of another row of the same image.

    Raises RecordRejected if that row is in another split or has no new caption.
    """
    source, split = record["source"], record["split"] or item.split
    if item.split not in (None, split):
        raise RecordRejected(f"duplicate id: the same image as {source}, split {split}")
    new_captions = [caption for caption in captions if caption not in record["captions"]]
    if not new_captions:
        raise RecordRejected(f"duplicate id: the same image and captions as {source}")
    return record | {"captions": record["captions"] + new_captions, "split": split}


def check_tweet(item: TweetRecord) -> None:
    """Raises RecordRejected unless every word is non-empty and has a tag O, B-TYPE or I-TYPE.

    Some words may consist of blanks or invisible characters, but not all.
    """
    if not item.words:
        raise RecordRejected("empty text: the tweet has no word")
    if len(item.words) != len(item.tags):
        raise RecordRejected(f"wrong count: {len(item.words)} words have {len(item.tags)} tags")
    for number, (word, tag) in enumerate(zip(item.words, item.tags, strict=True), start=1):
        validate_text(word)  # its result is not used here: a word of blanks keeps its tag
        if not word:
            raise RecordRejected(f"empty text: word {number} has no character")
        if not TAG_PATTERN.fullmatch(tag):
            raise RecordRejected(
                f"unknown tag: {tag[:60]!r} of word {number} is none of O, B-TYPE, I-TYPE"
            )
    if not any(map(validate_text, item.words)):
        raise RecordRejected("empty text: the tweet has no word with a visible character")


def build_tweet(item: TweetRecord, image: str | None) -> BuiltRecord:
    """image: its hash, None without a usable image."""
    return BuiltRecord(
        id=_hash_content([item.words, item.tags, image or item.key]),
        noun="tweet",
        text=" ".join(item.words),
        values={"image": image, "words": item.words, "tags": item.tags},
        facts=item.facts if image else [],
    )


def check_post(item: PostRecord) -> None:
    """Raises RecordRejected if there is no valid text or the label is unknown."""
    if not validate_text(item.text):
        raise RecordRejected("empty text: the post has none")
    if item.label not in SENTIMENT_LABELS:
        raise RecordRejected(
            f"unknown label: {item.label[:60]!r} is none of {', '.join(SENTIMENT_LABELS)}"
        )


def build_post(item: PostRecord, image: str | None) -> BuiltRecord:
    """image: its hash, None without a usable image."""
    text = validate_text(item.text)
    return BuiltRecord(
        id=_hash_content([text, item.label, image or item.key]),
        noun="post",
        text=text,
        values={"image": image, "text": text, "label": item.label},
        facts=item.facts if image else [],
    )


def check_meme(item: MemeRecord) -> None:
    """Raises RecordRejected if the text is not valid Unicode."""
    validate_text(item.text)


def build_meme(item: MemeRecord, image: str | None) -> BuiltRecord:
    """image: its hash, None without a usable image.

    Raises RecordRejected if the meme has neither text nor image.
    """
    text = validate_text(item.text)
    if not text and not image:
        raise RecordRejected("empty text: the meme has neither text nor a usable image")
    labels = [{"task": task, "label": label} for task, label in item.labels.items()]
    return BuiltRecord(
        id=_hash_content([text, image or item.key]),
        noun="meme",
        text=text,
        values={"image": image, "text": text, "labels": labels},
        facts=item.facts if image else [],
        boxes=item.boxes if image else [],
    )


def validate_text(text: str) -> str:
    """The text without surrounding whitespace; "" if it has no visible character.

    Raises RecordRejected if it is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecordRejected("undecodable text: it contains half a surrogate pair") from None
    return text.strip() if VISIBLE_CHARACTER.search(text) else ""


def compute_record_id(content: str) -> str:
    return sha256(content.encode()).hexdigest()[:16]


def _hash_content(content: list) -> str:
    """The id of a content; that of the same texts in NFD and NFC is equal."""
    composed = json.loads(normalize("NFC", json.dumps(content, ensure_ascii=False)))
    return compute_record_id(json.dumps(composed))
