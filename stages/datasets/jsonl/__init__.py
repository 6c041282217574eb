"""Format `jsonl`: a .jsonl file, or a folder of them, one record per line.

articles  {"article_id", "title" or "topic", "language", "split",
           "chunks": [{"image": "images/a.jpg", "text": "..."}, ...],
           or "images": ["images/a.jpg", ...] and "reference" instead of "chunks"}
captions  {"id", "language", "split", "image": "images/a.jpg", "captions": ["...", ...]},
          or "caption" instead of "captions"
tweets    {"id", "language", "split", "image", "words": ["New", "York"], "tags": ["B-LOC", "I-LOC"]}
posts     {"id", "language", "split", "image", "text": "...", "label": "positive"}

Required are `chunks` (or `images`, `reference`) of articles, `image` and `captions` (or `caption`)
of captions, `words` and `tags` of tweets, `text` and `label` of posts. All other keys may be
missing or null, and unknown keys are ignored. An image path is relative to the folder of its .jsonl
file.
`reference`, the whole text of an article, is read only if no chunk has a text; it then follows the
images. An article with one text about all its images belongs in a corpus of
`chunk.one_text_corpora`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from stages.datasets.common.files import SPLIT_ALIASES, parse_json_line, read_lines
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import (
    ArticleRecord,
    CaptionRecord,
    DatasetItem,
    ImageFile,
    PostRecord,
    Rejection,
    SentimentLabel,
    TweetRecord,
)
from stages.shared.runtime.stage import InputError

KINDS = ("articles", "captions", "tweets", "posts")


@config_class
class JsonlConfig:
    encodings: list[str] = Field(description="tried in this order for each line")


CONFIG = JsonlConfig


class _JsonlRow(BaseModel):
    model_config = ConfigDict(strict=True)

    language: str | None = None
    split: Literal["train", "validation", "val", "dev", "test"] | None = None


class _Chunk(BaseModel):
    model_config = ConfigDict(strict=True)

    image: str | None = None
    text: str | None = None


class _ArticleRow(_JsonlRow):
    article_id: str | int | None = None
    title: str | None = None
    topic: str | None = None
    chunks: list[_Chunk] = []
    images: list[str] = []
    reference: str | None = None

    @model_validator(mode="after")
    def _has_one_list_of_images(self) -> Self:
        if self.chunks and self.images:
            raise ValueError("chunks and images are both given: name the images in one of them")
        return self


class _CaptionRow(_JsonlRow):
    id: str | int | None = None
    image: str
    captions: list[str] = []
    caption: str | None = None


class _TweetRow(_JsonlRow):
    id: str | int | None = None
    image: str | None = None
    words: list[str]
    tags: list[str]


class _PostRow(_JsonlRow):
    id: str | int | None = None
    image: str | None = None
    text: str
    label: SentimentLabel


ROWS = {"articles": _ArticleRow, "captions": _CaptionRow, "tweets": _TweetRow, "posts": _PostRow}


def read(source: Path, kind: str, config: JsonlConfig) -> Iterator[DatasetItem]:
    """Yield a record or rejection per non-blank line. Raises InputError if there is no file."""
    paths = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    if not paths:
        raise InputError(f"{source} holds no .jsonl file: put one there")
    for path in paths:
        for line in read_lines(path, config.encodings, "formats.jsonl.encodings"):
            if isinstance(line, Rejection):
                yield line
            else:
                yield parse_line(*line, kind, path.parent)


def parse_line(source: str, line: str, kind: str, folder: Path) -> DatasetItem:
    """Parse one line into a record or rejection; `source` is its file:line."""
    match row := parse_json_line(ROWS[kind], source, line):
        case _ArticleRow():
            return _build_article(row, folder, source)
        case _CaptionRow():
            return _build_captioned(row, folder, source)
        case _TweetRow():
            return _build_tweet(row, folder, source)
        case _PostRow():
            return _build_post(row, folder, source)
        case _:
            return row


def _build_article(row: _ArticleRow, folder: Path, source: str) -> ArticleRecord:
    blocks: list[ImageFile | str] = [ImageFile(image, folder) for image in row.images]
    for chunk in row.chunks:
        blocks += [ImageFile(chunk.image, folder)] if chunk.image else []
        blocks += [chunk.text] if chunk.text else []
    if row.reference and not any(chunk.text for chunk in row.chunks):
        blocks.append(row.reference)
    title = row.title or row.topic or ""
    key = row.article_id
    return ArticleRecord(title=title, blocks=blocks, **_get_common_fields(row, key, source))


def _build_captioned(row: _CaptionRow, folder: Path, source: str) -> CaptionRecord:
    captions = row.captions or ([row.caption] if row.caption else [])
    image = ImageFile(row.image, folder)
    return CaptionRecord(image=image, captions=captions, **_get_common_fields(row, row.id, source))


def _build_tweet(row: _TweetRow, folder: Path, source: str) -> TweetRecord:
    image = ImageFile(row.image, folder) if row.image else None
    return TweetRecord(
        words=row.words, tags=row.tags, image=image, **_get_common_fields(row, row.id, source)
    )


def _build_post(row: _PostRow, folder: Path, source: str) -> PostRecord:
    image = ImageFile(row.image, folder) if row.image else None
    return PostRecord(
        text=row.text, label=row.label, image=image, **_get_common_fields(row, row.id, source)
    )


def _get_common_fields(row: _JsonlRow, key: str | int | None, source: str) -> dict:
    split = row.split and SPLIT_ALIASES.get(row.split, row.split)
    key = None if key is None else str(key)
    return {"source": source, "key": key, "language": row.language or None, "split": split}
