"""Format `coco_cn`: Chinese captions of MS-COCO images (Li et al., 2019), arXiv:1805.08661.

coco-cn_{train,val,test}.txt                  the splits: one image id per line
imageid.human-written-caption.txt             ID#K <tab> caption
imageid.manually-translated-caption.txt       ID#zhm#K <space> caption; test only
coco-cn_ext.icap2020.txt                      ID#K <tab> caption; later extension, without splits
detected-typos.txt                            captions with the errors in [brackets]

The files are in the corpus' folder or in one folder within it, as the archive unpacks. The images,
ID.jpg, are those of MS-COCO. All captions of an image make one record. Unusable lines are rejected
one by one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stages.datasets.common.files import (
    APPLE_DOUBLE_PREFIX,
    SPLIT_ALIASES,
    SplitPolicy,
    apply_split_policy,
    find_corpus_dir,
    index_images,
    read_lines,
    resolve_image_file,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import CaptionRecord, DatasetItem, Rejection
from stages.shared.runtime.stage import InputError

KINDS = ("captions",)
HUMAN_FILE, TRANSLATED_FILE = (
    "imageid.human-written-caption.txt",
    "imageid.manually-translated-caption.txt",
)
EXTENSION_FILE = "coco-cn_ext.icap2020.txt"
CAPTION_FILES = {
    "human": [HUMAN_FILE],
    "translated": [TRANSLATED_FILE],
    "both": [HUMAN_FILE, TRANSLATED_FILE],
    "extension": [EXTENSION_FILE],
}
SPLIT_LISTS = {name: f"coco-cn_{name}.txt" for name in ("train", "val", "test")}
TYPOS_FILE = "detected-typos.txt"
SEPARATOR_PATTERNS = {
    "tab": re.compile(r"([^\t]*)\t(.*)"),
    "whitespace": re.compile(r"\s*(\S+)\s(.*)"),
}
TYPO_REASON = "known typo"
APPLE_DOUBLE_REASON = "AppleDouble file: macOS metadata of the file of the same name"
ENCODINGS_KEY = "formats.coco_cn.encodings"


@config_class
class CocoCnConfig:
    caption_source: Literal["human", "translated", "both", "extension"] = Field(
        description="caption files to read; extension: iCap 2020"
    )
    separator: Literal["tab", "whitespace"] = Field(description="between image id and caption")
    splits: SplitPolicy = Field(description="published lists, by hash, or auto")
    typos: Literal["keep", "reject"] = Field(description="captions listed in detected-typos.txt")
    image_folders: list[str] = Field(description="tried in this order, within the corpus")
    encodings: list[str] = Field(description="tried in this order for each line")


CONFIG = CocoCnConfig


@dataclass
class _CaptionedImage:
    source: str  # file:line of its first caption
    split: str | None
    captions: dict[str, str] = field(default_factory=dict)  # caption -> file:line


def read(source: Path, kind: str, config: CocoCnConfig) -> Iterator[DatasetItem]:
    """Yield the rejections, then one record per image. Raises InputError if a file is missing."""
    fix = "unpack COCO-CN there, or change formats.coco_cn.caption_source in config/formats.yaml"
    folder = find_corpus_dir(source, [CAPTION_FILES[config.caption_source][0]], fix)
    for path in sorted(
        {*source.glob(f"{APPLE_DOUBLE_PREFIX}*"), *folder.glob(f"{APPLE_DOUBLE_PREFIX}*")}
    ):
        name = path.relative_to(source).as_posix()
        yield Rejection(name, APPLE_DOUBLE_REASON, intentional=True)
    splits_by_id: dict[str, list[str]] | None = None
    if config.caption_source != "extension" and config.splits != "hash":
        splits_by_id = {}
        yield from read_splits(folder, config.encodings, splits_by_id)
    images: dict[str, _CaptionedImage] = {}
    for name in CAPTION_FILES[config.caption_source]:
        yield from read_captions(folder / name, config, splits_by_id, images)
    paths = index_images(source, config.image_folders)
    rows = (
        CaptionRecord(
            source=image.source,
            image=resolve_image_file(image_id, paths, source),
            captions=list(image.captions),
            key=image_id,
            language="zh",
            split=image.split,
        )
        for image_id, image in images.items()
    )
    yield from apply_split_policy(rows, config.splits)


def read_splits(
    folder: Path, encodings: list[str], splits_by_id: dict[str, list[str]]
) -> Iterator[Rejection]:
    """Fill `splits_by_id` (image id -> splits that list it); yield unreadable lines.

    Raises InputError if a list is missing.
    """
    for split, name in SPLIT_LISTS.items():
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} holds no {name}: put it there, or set formats.coco_cn.splits in "
                "config/formats.yaml to hash"
            )
        for line in read_lines(folder / name, encodings, ENCODINGS_KEY):
            if isinstance(line, Rejection):
                yield line
            elif split not in splits_by_id.setdefault(line[1].strip(), []):
                splits_by_id[line[1].strip()].append(split)


def read_captions(
    path: Path,
    config: CocoCnConfig,
    splits_by_id: dict[str, list[str]] | None,
    images: dict[str, _CaptionedImage],
) -> Iterator[Rejection]:
    """Add the captions of a file to `images`; yield unusable lines.

    splits_by_id: None if the published splits are not used

    Raises InputError if the file is missing, or none of its lines has the separator.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing: put it there, or change formats.coco_cn.caption_source"
        )
    typos = read_typos(path.parent, config.encodings) if config.typos == "reject" else {}
    num_separated = num_lines = 0
    for line in read_lines(path, config.encodings, ENCODINGS_KEY):
        if isinstance(line, Rejection):
            yield line
            continue
        num_lines += 1
        source, text = line
        match = SEPARATOR_PATTERNS[config.separator].fullmatch(text)
        if not match:
            yield Rejection(source, _describe_missing_separator(config.separator))
            continue
        num_separated += 1
        image_id, caption = match[1].split("#")[0].strip(), match[2].strip()
        if reason := _find_rejection_reason(image_id, caption, splits_by_id, images, typos):
            is_typo = reason.startswith(TYPO_REASON)
            yield Rejection(source, reason, key=image_id or None, intentional=is_typo)
            continue
        split = None
        if splits_by_id is not None:
            split = SPLIT_ALIASES.get(splits_by_id[image_id][0], splits_by_id[image_id][0])
        images.setdefault(image_id, _CaptionedImage(source, split)).captions[caption] = source
    if num_lines and not num_separated:
        raise InputError(
            f"{path}: none of {num_lines} lines can be read: {_describe_missing_separator('')}"
        )


def _describe_missing_separator(separator: str) -> str:
    if separator == "whitespace":
        return "no space: the image id and the caption are not separated"
    return "no tab: set formats.coco_cn.separator to whitespace if a space separates the fields"


def _find_rejection_reason(
    image_id: str,
    caption: str,
    splits_by_id: dict[str, list[str]] | None,
    images: dict[str, _CaptionedImage],
    typos: dict[str, str],
) -> str | None:
    """The reason to reject a caption, or None."""
    if not image_id:
        return "no id: the line begins with the separator"
    if not caption:
        return "empty text: the caption has none"
    splits = [] if splits_by_id is None else splits_by_id.get(image_id, [])
    if splits_by_id is not None and not splits:
        return f"no split: {image_id[:60]} is in none of the split lists"
    if len(splits) > 1:
        lists = " and ".join(SPLIT_LISTS[split] for split in splits)
        return f"two splits: {image_id[:60]} is in {lists}"
    if caption in typos:
        return f"{TYPO_REASON}: {typos[caption]}"
    if image_id in images and (source := images[image_id].captions.get(caption)):
        return f"duplicate id: the same image and caption as {source}"
    return None


def read_typos(folder: Path, encodings: list[str]) -> dict[str, str]:
    """Caption -> file:line in detected-typos.txt. Raises InputError if the file is missing."""
    if not (folder / TYPOS_FILE).is_file():
        raise InputError(
            f"{folder} holds no {TYPOS_FILE}: put it there, or set formats.coco_cn.typos in "
            "config/formats.yaml to keep"
        )
    lines = (
        line
        for line in read_lines(folder / TYPOS_FILE, encodings, ENCODINGS_KEY)
        if type(line) is tuple
    )
    return {text.replace("[", "").replace("]", "").strip(): source for source, text in lines}
