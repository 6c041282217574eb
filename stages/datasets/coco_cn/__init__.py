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
    HIDDEN,
    SPLITS,
    Splits,
    holding,
    lines,
    picture,
    pictures,
    settled,
)
from stages.shared.data.records import Captioned, Item, Reject
from stages.shared.runtime.stage import WrongInput

KINDS = ("captions",)
HUMAN, TRANSLATED = "imageid.human-written-caption.txt", "imageid.manually-translated-caption.txt"
EXTENSION = "coco-cn_ext.icap2020.txt"
FILES = {
    "human": [HUMAN],
    "translated": [TRANSLATED],
    "both": [HUMAN, TRANSLATED],
    "extension": [EXTENSION],
}
LISTS = {name: f"coco-cn_{name}.txt" for name in ("train", "val", "test")}
TYPOS = "detected-typos.txt"
SEPARATORS = {"tab": re.compile(r"([^\t]*)\t(.*)"), "whitespace": re.compile(r"\s*(\S+)\s(.*)")}
TYPO = "known typo"
APPLE_DOUBLE = "AppleDouble file: macOS wrote it beside the file of the same name"
ENCODINGS = "formats.coco_cn.encodings"


@dataclass(frozen=True)
class Params:
    captions: Literal["human", "translated", "both", "extension"]
    separator: Literal["tab", "whitespace"]
    splits: Splits
    typos: Literal["keep", "reject"]  # captions that detected-typos.txt lists
    folders: list[str]  # of the pictures, within the corpus
    encodings: list[str]  # tried in this order for each line


@dataclass
class _Picture:
    source: str  # its first caption's line
    split: str | None
    captions: dict[str, str] = field(default_factory=dict)  # caption -> its line


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """The rejects, then one row per picture. Raises WrongInput if a whole file is missing."""
    unpack = "unpack COCO-CN there, or choose other formats.coco_cn.captions in params.yaml"
    folder = holding(source, [FILES[params.captions][0]], unpack)
    for path in sorted({*source.glob(f"{HIDDEN}*"), *folder.glob(f"{HIDDEN}*")}):
        name = path.relative_to(source).as_posix()
        yield Reject(name, APPLE_DOUBLE, meant=True)
    listed: dict[str, list[str]] | None = None
    if params.captions != "extension" and params.splits != "hash":
        listed = {}
        yield from read_splits(folder, params.encodings, listed)
    found: dict[str, _Picture] = {}
    for name in FILES[params.captions]:
        yield from read_captions(folder / name, params, listed, found)
    files = pictures(source, params.folders)
    rows = (
        Captioned(
            source=one.source,
            picture=picture(name, files, source),
            captions=list(one.captions),
            key=name,
            language="zh",
            split=one.split,
        )
        for name, one in found.items()
    )
    yield from settled(rows, params.splits)


def read_splits(folder: Path, encodings: list[str], listed: dict) -> Iterator[Reject]:
    """Fill `listed` (id -> the splits that list it); yields lines that cannot be read."""
    for split, name in LISTS.items():
        if not (folder / name).is_file():
            raise WrongInput(
                f"{folder} holds no {name}: put it there, or set formats.coco_cn.splits in "
                "params.yaml to hash"
            )
        for line in lines(folder / name, encodings, ENCODINGS):
            if isinstance(line, Reject):
                yield line
            elif split not in listed.setdefault(line[1].strip(), []):
                listed[line[1].strip()].append(split)


def read_captions(
    path: Path, params: Params, listed: dict[str, list[str]] | None, found: dict[str, _Picture]
) -> Iterator[Reject]:
    """Add the captions of a file to `found`; yields lines that cannot be used.

    Raises WrongInput if the file is missing or not one of its lines has the separator.
    """
    if not path.is_file():
        raise WrongInput(
            f"{path} is missing: put it there, or choose other formats.coco_cn.captions"
        )
    typos = read_typos(path.parent, params.encodings) if params.typos == "reject" else {}
    separated = count = 0
    for line in lines(path, params.encodings, ENCODINGS):
        if isinstance(line, Reject):
            yield line
            continue
        count += 1
        source, text = line
        match = SEPARATORS[params.separator].fullmatch(text)
        if not match:
            yield Reject(source, _unseparated(params.separator))
            continue
        separated += 1
        name, caption = match[1].split("#")[0].strip(), match[2].strip()
        if fault := _fault(name, caption, listed, found, typos):
            yield Reject(source, fault, key=name or None, meant=fault.startswith(TYPO))
            continue
        split = SPLITS.get(listed[name][0], listed[name][0]) if listed is not None else None
        found.setdefault(name, _Picture(source, split)).captions[caption] = source
    if count and not separated:
        raise WrongInput(f"{path}: none of {count} lines can be read: {_unseparated('')}")


def _unseparated(separator: str) -> str:
    """Why a line is rejected that does not fall into id and caption."""
    if separator == "whitespace":
        return "no space: nothing stands between the picture's id and its caption"
    return "no tab: set formats.coco_cn.separator to whitespace to take a space for it"


def _fault(
    name: str,
    caption: str,
    listed: dict[str, list[str]] | None,
    found: dict[str, _Picture],
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
        return f"two splits: {name[:60]} is in {' and '.join(LISTS[split] for split in splits)}"
    if caption in typos:
        return f"{TYPO}: {typos[caption]}"
    if name in found and (place := found[name].captions.get(caption)):
        return f"duplicate id: the same picture and caption as {place}"
    return None


def read_typos(folder: Path, encodings: list[str]) -> dict[str, str]:
    """Caption -> where detected-typos.txt lists it. Raises WrongInput if there is no such file."""
    if not (folder / TYPOS).is_file():
        raise WrongInput(
            f"{folder} holds no {TYPOS}: put it there, or set formats.coco_cn.typos in params.yaml "
            "to keep"
        )
    listed = (line for line in lines(folder / TYPOS, encodings, ENCODINGS) if type(line) is tuple)
    return {text.replace("[", "").replace("]", "").strip(): source for source, text in listed}
