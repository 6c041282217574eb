"""Format `jsonl`: a .jsonl file, or a folder of them, one record a line, pictures beside them.

articles  {"article_id", "title" or "topic", "language", "split",
           "chunks": [{"image": "images/a.jpg", "text": "..."}, ...], "reference"}
captions  {"id", "language", "split", "image": "images/a.jpg", "captions": ["...", ...]},
          or "caption" instead of "captions"

Everything but `chunks` (or `reference`) and `image` with its captions may be missing or null. Other
keys are ignored. A picture's path is relative to the folder of its .jsonl file. `reference`, the
whole text of an article, is read only where no chunk has a text; it then follows the pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.datasets.reading import SPLITS, reason
from stages.shared.records import Article, Captioned, Item, PictureFile, Reject, decode
from stages.shared.stage import WrongInput


@dataclass(frozen=True)
class Params:
    encodings: list[str]  # tried in this order for each line


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)

    language: str | None = None
    split: Literal["train", "validation", "val", "dev", "test"] | None = None


class _Chunk(BaseModel):
    model_config = ConfigDict(strict=True)

    image: str | None = None
    text: str | None = None


class _ArticleRow(_Row):
    article_id: str | int | None = None
    title: str | None = None
    topic: str | None = None
    chunks: list[_Chunk] = []
    reference: str | None = None


class _CaptionRow(_Row):
    id: str | int | None = None
    image: str
    captions: list[str] = []
    caption: str | None = None


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """One row, or Reject, per line that is not blank. Raises WrongInput if there is no file."""
    paths = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    if not paths:
        raise WrongInput(f"{source} holds no .jsonl file: put one there")
    for path in paths:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield parse(line, kind, path.parent, f"{path.name}:{number}", params.encodings)


def parse(line: bytes, kind: str, folder: Path, source: str, encodings: list[str]) -> Item:
    """One line as a row; `source` names the line."""
    text = decode(line, encodings, "formats.jsonl.encodings")
    if text is None:
        return Reject(source, f"undecodable line: not {' or '.join(encodings)}")
    try:
        if kind == "articles":
            return _article(_ArticleRow.model_validate_json(text), folder, source)
        return _captioned(_CaptionRow.model_validate_json(text), folder, source)
    except ValidationError as error:
        return Reject(source, reason(error))


def _article(row: _ArticleRow, folder: Path, source: str) -> Article:
    blocks: list[PictureFile | str] = []
    for chunk in row.chunks:
        blocks += [PictureFile(chunk.image, folder)] if chunk.image else []
        blocks += [chunk.text] if chunk.text else []
    if row.reference and not any(chunk.text for chunk in row.chunks):
        blocks.append(row.reference)
    title = row.title or row.topic or ""
    key = row.article_id
    return Article(title=title, blocks=blocks, **_common(row, key, source))


def _captioned(row: _CaptionRow, folder: Path, source: str) -> Captioned:
    captions = row.captions or ([row.caption] if row.caption else [])
    picture = PictureFile(row.image, folder)
    return Captioned(picture=picture, captions=captions, **_common(row, row.id, source))


def _common(row: _Row, key: str | int | None, source: str) -> dict:
    language = row.language and row.language.replace("_", "-").split("-")[0].lower()
    split = row.split and SPLITS.get(row.split, row.split)
    key = None if key is None else str(key)
    return {"source": source, "key": key, "language": language or None, "split": split}
