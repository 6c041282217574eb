"""Format `vist`: VIST, English stories about Flickr photos (Huang et al., 2016).

articles  {train,val,test}.story-in-sequence.json, in the corpus' folder or in sis/: a story is an
          article of five photos with a sentence each, its album's title the title
captions  {train,val,test}.description-in-isolation.json, in the corpus' folder or in dii/: several
          captions a photo

A file is {"albums": [{"id", "title"}, ...], "annotations": [[{...}], ...]}: every annotation is a
list of one. The photos' files are named by their Flickr id. The files are the splits; a photo in
two of them would let training see what is tested, so the later story, or photo, is rejected.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from stages.datasets.common.files import (
    SPLIT_ALIASES,
    describe_validation_error,
    index_images,
    resolve_image_file,
)
from stages.shared.core import config
from stages.shared.data.records import (
    ArticleRecord,
    CaptionRecord,
    DatasetItem,
    ImageFile,
    Rejection,
)
from stages.shared.runtime.stage import InputError

KINDS = ("articles", "captions")
TIERS = {  # by kind: the folder and the end of the files' names
    "articles": ("sis", "story-in-sequence.json"),
    "captions": ("dii", "description-in-isolation.json"),
}


def validate_unicode(text: str) -> str:
    """The text. Raises UnicodeEncodeError, a ValueError, if it holds half a surrogate pair."""
    text.encode()
    return text


UnicodeText = Annotated[str, AfterValidator(validate_unicode)]
StringId = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]


@config.config_class
class VistConfig:
    text_version: Literal["original", "tokenised"] = config.Field(
        description="as typed, or lower case with [male] for names"
    )
    image_folders: list[str] = config.Field(description="image folders within the corpus")


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


@dataclass(frozen=True)
class _AnnotatedText:
    source: str  # file:annotations.NUMBER
    text: str
    row: _DescriptionRow


def read(source: Path, kind: str, params: VistConfig) -> Iterator[DatasetItem]:
    """Rejects and rows, file by file. Raises WrongInput if a file as a whole is no VIST."""
    files = index_images(source, params.image_folders)
    shown: dict[str, str] = {}  # photo -> the first file with a row that shows it
    for split, path in find_annotation_files(source, kind).items():
        content = load_annotations(path)
        titles = get_album_titles(content.get("albums"))
        groups: dict[str, list[_AnnotatedText]] = {}  # by story, or by photo
        for item in parse_annotations(content["annotations"], path.name, kind, params.text_version):
            if isinstance(item, Rejection):
                yield item
            else:
                row = item.row
                name = row.story_id if isinstance(row, _SentenceRow) else row.photo_flickr_id
                groups.setdefault(name, []).append(item)
        for name, group in groups.items():
            photos = {one.row.photo_flickr_id for one in group}
            elsewhere = sorted(one for one in photos if shown.get(one, path.name) != path.name)
            if elsewhere:
                fault = f"two splits: photo {elsewhere[0]} is in {shown[elsewhere[0]]} too"
                yield Rejection(group[0].source, fault, key=name)
                continue
            shown |= dict.fromkeys(photos, path.name)
            found = {photo: resolve_image_file(photo, files, source) for photo in photos}
            common = {"key": name, "language": "en", "split": SPLIT_ALIASES.get(split, split)}
            if kind == "articles":
                yield from build_article(group, found, titles, common)
            else:
                yield build_captioned(group, found[name], common)


def find_annotation_files(source: Path, kind: str) -> dict[str, Path]:
    """The files of a kind that are there, by split. Raises WrongInput if there is none."""
    folder, end = TIERS[kind]
    places = {
        split: [source / f"{split}.{end}", source / folder / f"{split}.{end}"]
        for split in ("train", "val", "test")
    }
    found = {
        split: next(path for path in paths if path.is_file())
        for split, paths in places.items()
        if any(path.is_file() for path in paths)
    }
    if not found:
        raise InputError(
            f"{source} holds neither train.{end} nor {folder}/train.{end}: unpack them there and "
            "give that folder; stories are articles, descriptions are captions"
        )
    return found


def load_annotations(path: Path) -> dict:
    """The content of a file. Raises WrongInput if it is not JSON with annotations."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise InputError(f"{path} holds no list of annotations: it is no file of VIST")
    return content


def get_album_titles(albums: object) -> dict[str, str]:
    """Title by album, of those that have one."""
    rows = [row for row in albums if isinstance(row, dict)] if isinstance(albums, list) else []
    titled = [row for row in rows if isinstance(row.get("title"), str)]
    return {str(row.get("id")): row["title"] for row in titled}


def parse_annotations(
    annotations: list[object], file: str, kind: str, which: str
) -> Iterator[_AnnotatedText | Rejection]:
    """The annotations of a file with the text that is asked for, or a Reject each."""
    key = {"original": "original_text", "tokenised": "text"}[which]
    for number, annotation in enumerate(annotations):
        source = f"{file}:annotations.{number}"
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
    group: list[_AnnotatedText], found: dict[str, ImageFile], titles: dict[str, str], common: dict
) -> Iterator[ArticleRecord | Rejection]:
    """The sentences of one story as an article, and a Reject for each place that is taken."""
    places: dict[int, _AnnotatedText] = {}
    for one in group:
        first = places.setdefault(one.row.worker_arranged_photo_order, one)
        if first is not one:
            fault = f"duplicate id: the same place in the story as {first.source}"
            yield Rejection(one.source, fault, key=common["key"])
    blocks: list[ImageFile | str] = []
    for _, one in sorted(places.items()):
        blocks += [found[one.row.photo_flickr_id], one.text]
    title = titles.get(group[0].row.album_id, "")
    yield ArticleRecord(source=group[0].source, title=title, blocks=blocks, **common)


def build_captioned(group: list[_AnnotatedText], photo: ImageFile, common: dict) -> CaptionRecord:
    captions = list(dict.fromkeys(one.text for one in group))
    return CaptionRecord(source=group[0].source, image=photo, captions=captions, **common)
