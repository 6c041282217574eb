"""Format `coco_cn`: COCO-CN, Chinese captions of MS-COCO pictures (Li et al., 2019).

coco-cn_{train,val,test}.txt                  one picture's id a line: the splits
imageid.human-written-caption.txt             ID#K <tab> caption
imageid.manually-translated-caption.txt       ID#zhm#K <space> caption; of test only
coco-cn_ext.icap2020.txt                      ID#K <tab> caption; a later addition, without splits
detected-typos.txt                            captions with what is wrong in [brackets]

They lie in the corpus' folder or in one folder within it, as the archive unpacks. The pictures,
ID.jpg, are MS-COCO's. All captions of a picture make one row. A line that cannot be used is
rejected by itself.
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
APPLE_DOUBLE_REASON = "AppleDouble file: macOS wrote it beside the file of the same name"
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
    source: str  # its first caption's line
    split: str | None
    captions: dict[str, str] = field(default_factory=dict)  # caption -> its line


def read(source: Path, kind: str, params: CocoCnConfig) -> Iterator[DatasetItem]:
    """The rejects, then one row per picture. Raises WrongInput if a whole file is missing."""
    unpack = "unpack COCO-CN there, or choose other formats.coco_cn.caption_source in params.yaml"
    folder = find_corpus_dir(source, [CAPTION_FILES[params.caption_source][0]], unpack)
    for path in sorted(
        {*source.glob(f"{APPLE_DOUBLE_PREFIX}*"), *folder.glob(f"{APPLE_DOUBLE_PREFIX}*")}
    ):
        name = path.relative_to(source).as_posix()
        yield Rejection(name, APPLE_DOUBLE_REASON, intentional=True)
    listed: dict[str, list[str]] | None = None
    if params.caption_source != "extension" and params.splits != "hash":
        listed = {}
        yield from read_splits(folder, params.encodings, listed)
    found: dict[str, _CaptionedImage] = {}
    for name in CAPTION_FILES[params.caption_source]:
        yield from read_captions(folder / name, params, listed, found)
    files = index_images(source, params.image_folders)
    rows = (
        CaptionRecord(
            source=one.source,
            image=resolve_image_file(name, files, source),
            captions=list(one.captions),
            key=name,
            language="zh",
            split=one.split,
        )
        for name, one in found.items()
    )
    yield from apply_split_policy(rows, params.splits)


def read_splits(folder: Path, encodings: list[str], listed: dict) -> Iterator[Rejection]:
    """Fill `listed` (id -> the splits that list it); yields lines that cannot be read."""
    for split, name in SPLIT_LISTS.items():
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} holds no {name}: put it there, or set formats.coco_cn.splits in "
                "params.yaml to hash"
            )
        for line in read_lines(folder / name, encodings, ENCODINGS_KEY):
            if isinstance(line, Rejection):
                yield line
            elif split not in listed.setdefault(line[1].strip(), []):
                listed[line[1].strip()].append(split)


def read_captions(
    path: Path,
    params: CocoCnConfig,
    listed: dict[str, list[str]] | None,
    found: dict[str, _CaptionedImage],
) -> Iterator[Rejection]:
    """Add the captions of a file to `found`; yields lines that cannot be used.

    Raises WrongInput if the file is missing or not one of its lines has the separator.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing: put it there, or choose other formats.coco_cn.caption_source"
        )
    typos = read_typos(path.parent, params.encodings) if params.typos == "reject" else {}
    separated = count = 0
    for line in read_lines(path, params.encodings, ENCODINGS_KEY):
        if isinstance(line, Rejection):
            yield line
            continue
        count += 1
        source, text = line
        match = SEPARATOR_PATTERNS[params.separator].fullmatch(text)
        if not match:
            yield Rejection(source, _describe_missing_separator(params.separator))
            continue
        separated += 1
        name, caption = match[1].split("#")[0].strip(), match[2].strip()
        if fault := _find_rejection_reason(name, caption, listed, found, typos):
            yield Rejection(
                source, fault, key=name or None, intentional=fault.startswith(TYPO_REASON)
            )
            continue
        split = SPLIT_ALIASES.get(listed[name][0], listed[name][0]) if listed is not None else None
        found.setdefault(name, _CaptionedImage(source, split)).captions[caption] = source
    if count and not separated:
        raise InputError(
            f"{path}: none of {count} lines can be read: {_describe_missing_separator('')}"
        )


def _describe_missing_separator(separator: str) -> str:
    """Why a line is rejected that does not fall into id and caption."""
    if separator == "whitespace":
        return "no space: nothing stands between the picture's id and its caption"
    return "no tab: set formats.coco_cn.separator to whitespace to take a space for it"


def _find_rejection_reason(
    name: str,
    caption: str,
    listed: dict[str, list[str]] | None,
    found: dict[str, _CaptionedImage],
    typos: dict[str, str],
) -> str | None:
    """Why a caption is rejected, or None. `listed` is None where no split is asked for."""
    if not name:
        return "no id: the line begins with its separator"
    if not caption:
        return "empty text: the caption has none"
    splits = [] if listed is None else listed.get(name, [])
    if listed is not None and not splits:
        return f"no split: {name[:60]} is in none of the split lists"
    if len(splits) > 1:
        return (
            f"two splits: {name[:60]} is in {' and '.join(SPLIT_LISTS[split] for split in splits)}"
        )
    if caption in typos:
        return f"{TYPO_REASON}: {typos[caption]}"
    if name in found and (place := found[name].captions.get(caption)):
        return f"duplicate id: the same picture and caption as {place}"
    return None


def read_typos(folder: Path, encodings: list[str]) -> dict[str, str]:
    """Caption -> where detected-typos.txt lists it. Raises WrongInput if there is no such file."""
    if not (folder / TYPOS_FILE).is_file():
        raise InputError(
            f"{folder} holds no {TYPOS_FILE}: put it there, or set formats.coco_cn.typos in "
            "params.yaml to keep"
        )
    listed = (
        line
        for line in read_lines(folder / TYPOS_FILE, encodings, ENCODINGS_KEY)
        if type(line) is tuple
    )
    return {text.replace("[", "").replace("]", "").strip(): source for source, text in listed}
