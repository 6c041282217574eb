"""Format `vist`: VIST, English stories about Flickr photos (Huang et al., 2016), arXiv:1604.03968.

articles  {train,val,test}.story-in-sequence.json, in the corpus' folder or in sis/: a story is an
          article of five photos with one sentence each; its title is that of the album
captions  {train,val,test}.description-in-isolation.json, in the corpus' folder or in dii/: several
          captions per photo

A file is {"albums": [{"id", "title"}, ...], "annotations": [[{...}], ...]}: every annotation is a
list with one element. Image files are named after the Flickr id of the photo. Each file is a split.
A photo in two splits would leak test data into training, so the later story or photo is rejected.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
)

from stages.datasets.common.files import (
    SPLIT_ALIASES,
    describe_validation_error,
    index_images,
    resolve_image_file,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import (
    ArticleRecord,
    CaptionRecord,
    DatasetItem,
    ImageFile,
    Rejection,
)
from stages.shared.runtime.stage import InputError

KINDS = ("articles", "captions")
TIERS = {  # by kind: the folder and the suffix of the file names
    "articles": ("sis", "story-in-sequence.json"),
    "captions": ("dii", "description-in-isolation.json"),
}


def validate_unicode(text: str) -> str:
    """The text. Raises UnicodeEncodeError, a ValueError, if it contains half a surrogate pair."""
    text.encode()
    return text


UnicodeText = Annotated[str, AfterValidator(validate_unicode)]
StringId = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]


@config_class
class VistConfig:
    text_version: Literal["original", "tokenised"] = Field(
        description="as typed, or lower case with [male] for names"
    )
    image_folders: list[str] = Field(description="image folders within the corpus")


CONFIG = VistConfig


class _DescriptionRow(BaseModel):
    model_config = ConfigDict(strict=True)

    photo_flickr_id: StringId
    original_text: UnicodeText | None = None
    text: UnicodeText | None = None


class _SentenceRow(_DescriptionRow):
    album_id: StringId
    story_id: StringId
    worker_arranged_photo_order: int


ANNOTATION_ADAPTERS = {
    "articles": TypeAdapter(Annotated[list[_SentenceRow], Field(min_length=1, max_length=1)]),
    "captions": TypeAdapter(Annotated[list[_DescriptionRow], Field(min_length=1, max_length=1)]),
}


RowT_co = TypeVar("RowT_co", bound=_DescriptionRow, covariant=True)


@dataclass(frozen=True)
class _AnnotatedText(Generic[RowT_co]):
    source: str  # file:annotations.NUMBER
    text: str
    row: RowT_co


def read(source: Path, kind: str, config: VistConfig) -> Iterator[DatasetItem]:
    """Yield rejections and records, file by file. Raises InputError if a file is not from VIST."""
    image_paths = index_images(source, config.image_folders)
    first_files: dict[str, str] = {}  # photo id -> the first file that uses it
    for split, path in find_annotation_files(source, kind).items():
        content = load_annotations(path)
        titles = get_album_titles(content.get("albums"))
        groups: dict[str, list[_AnnotatedText]] = {}  # by story id, or by photo id
        for item in parse_annotations(content["annotations"], path.name, kind, config.text_version):
            if isinstance(item, Rejection):
                yield item
            else:
                row = item.row
                key = row.story_id if isinstance(row, _SentenceRow) else row.photo_flickr_id
                groups.setdefault(key, []).append(item)
        for key, group in groups.items():
            photo_ids = {item.row.photo_flickr_id for item in group}
            repeated = sorted(
                photo_id
                for photo_id in photo_ids
                if first_files.get(photo_id, path.name) != path.name
            )
            if repeated:
                reason = f"two splits: photo {repeated[0]} is in {first_files[repeated[0]]} too"
                yield Rejection(group[0].source, reason, key=key)
                continue
            first_files |= dict.fromkeys(photo_ids, path.name)
            images = {
                photo_id: resolve_image_file(photo_id, image_paths, source)
                for photo_id in photo_ids
            }
            common = {"key": key, "language": "en", "split": SPLIT_ALIASES.get(split, split)}
            if kind == "articles":
                yield from build_article(group, images, titles, common)
            else:
                yield build_captioned(group, images[key], common)


def find_annotation_files(source: Path, kind: str) -> dict[str, Path]:
    """The existing files of a kind by split. Raises InputError if there is none."""
    folder, suffix = TIERS[kind]
    candidates = {
        split: [source / f"{split}.{suffix}", source / folder / f"{split}.{suffix}"]
        for split in ("train", "val", "test")
    }
    paths = {
        split: next(path for path in paths if path.is_file())
        for split, paths in candidates.items()
        if any(path.is_file() for path in paths)
    }
    if not paths:
        raise InputError(
            f"{source} holds neither train.{suffix} nor {folder}/train.{suffix}: unpack them there "
            "and give that folder; stories are articles, descriptions are captions"
        )
    return paths


def load_annotations(path: Path) -> dict:
    """The content of a file. Raises InputError if it is not JSON with annotations."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise InputError(f"{path} holds no list of annotations: it is not a VIST file")
    return content


def get_album_titles(albums: object) -> dict[str, str]:
    """Title by album id, for albums with a title."""
    rows = [row for row in albums if isinstance(row, dict)] if isinstance(albums, list) else []
    titled = [row for row in rows if isinstance(row.get("title"), str)]
    return {str(row.get("id")): row["title"] for row in titled}


def parse_annotations(
    annotations: list[object], file_name: str, kind: str, text_version: str
) -> Iterator[_AnnotatedText | Rejection]:
    """Yield each annotation with the chosen version of its text, or a rejection."""
    key = {"original": "original_text", "tokenised": "text"}[text_version]
    for number, annotation in enumerate(annotations):
        source = f"{file_name}:annotations.{number}"
        try:
            (row,) = ANNOTATION_ADAPTERS[kind].validate_python(annotation)
        except ValidationError as error:
            yield Rejection(source, describe_validation_error(error))
            continue
        text = getattr(row, key)
        if text is None:
            yield Rejection(source, f"wrong field: 0.{key}: Field required")
        elif not text.strip():
            yield Rejection(source, f"empty text: {key}", key=row.photo_flickr_id)
        else:
            yield _AnnotatedText(source, text, row)


def build_article(
    sentences: list[_AnnotatedText[_SentenceRow]],
    images: dict[str, ImageFile],
    titles: dict[str, str],
    common: dict,
) -> Iterator[ArticleRecord | Rejection]:
    """Yield a rejection for each sentence whose position is taken, then the story as an article.

    common: the fields that articles and captions share
    """
    by_position: dict[int, _AnnotatedText[_SentenceRow]] = {}
    for sentence in sentences:
        first = by_position.setdefault(sentence.row.worker_arranged_photo_order, sentence)
        if first is not sentence:
            reason = f"duplicate id: the same position in the story as {first.source}"
            yield Rejection(sentence.source, reason, key=common["key"])
    blocks: list[ImageFile | str] = []
    for _, sentence in sorted(by_position.items()):
        blocks += [images[sentence.row.photo_flickr_id], sentence.text]
    title = titles.get(sentences[0].row.album_id, "")
    yield ArticleRecord(source=sentences[0].source, title=title, blocks=blocks, **common)


def build_captioned(
    descriptions: list[_AnnotatedText], image: ImageFile, common: dict
) -> CaptionRecord:
    """The descriptions of one photo as its captions, without repetitions."""
    captions = list(dict.fromkeys(description.text for description in descriptions))
    return CaptionRecord(source=descriptions[0].source, image=image, captions=captions, **common)
