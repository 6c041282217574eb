"""Format `flickr8k_cn`: Flickr8k-CN (Li et al., 2016) as pairs.jsonl beside its pictures.

{"image": "a.jpg", "split": "train", "en": [...], "zhc": [...], "zhb": [...], "zhm": [...]}

en   the English captions of Flickr8k      zhb  machine translations of them
zhc  captions written in Chinese           zhm  translations by people, of test only

A line is one picture with the captions of the lists that params name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.datasets.common.files import SPLITS, Splits, lines, reason, settled
from stages.shared.data.records import Captioned, Extra, Item, PictureFile, Reject
from stages.shared.runtime.stage import WrongInput

KINDS = ("captions",)
FILE = "pairs.jsonl"
LANGUAGES = {"en": "en", "zhc": "zh", "zhb": "zh", "zhm": "zh"}
TEST_ONLY = "zhm"


@dataclass(frozen=True)
class Params:
    captions: list[Literal["en", "zhc", "zhb", "zhm"]]
    splits: Splits
    folder: str  # of the pictures, within the corpus
    encodings: list[str]  # tried in this order for each line

    def __post_init__(self) -> None:
        if len({LANGUAGES[name] for name in self.captions}) != 1:
            raise WrongInput(
                f"params.yaml: formats.flickr8k_cn.captions is {self.captions}: give [en], or some "
                "of [zhc, zhb, zhm]; a corpus has one language"
            )


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)

    image: str
    split: Literal["train", "validation", "val", "dev", "test"] | None = None
    en: list[str] = []
    zhc: list[str] = []
    zhb: list[str] = []
    zhm: list[str] = []


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """The rejects, then one row per line. Raises WrongInput if there is nothing to read."""
    path = source if source.is_file() else source / FILE
    if not path.is_file():
        raise WrongInput(f"{source} holds no {FILE}: put it there")
    rows: list[Captioned] = []
    omitted = 0
    for item in parsed(path, params):
        if isinstance(item, Reject):
            yield item
        elif item.captions:
            rows.append(item)
        elif params.captions == [TEST_ONLY] and item.split != "test":
            omitted += 1  # as published, so nothing is wrong
        else:
            names = " or ".join(params.captions)
            yield Reject(item.source, f"empty text: no caption in {names}", key=item.key)
    if omitted and not rows:
        raise WrongInput(
            f"{path}: all {omitted} pictures are outside test and have no {TEST_ONLY}: name "
            "another list in formats.flickr8k_cn.captions of params.yaml"
        )
    if omitted:
        yield Extra("omitted.json", {f"pictures outside test, without {TEST_ONLY}": omitted})
    yield from settled(rows, params.splits)


def parsed(path: Path, params: Params) -> Iterator[Captioned | Reject]:
    """A row per line, its captions perhaps none, and a Reject per blank caption or broken line."""
    for line in lines(path, params.encodings, "formats.flickr8k_cn.encodings"):
        if isinstance(line, Reject):
            yield line
            continue
        source, text = line
        try:
            row = _Row.model_validate_json(text)
        except ValidationError as error:
            yield Reject(source, reason(error))
            continue
        captions = []
        for name in params.captions:
            for place, caption in enumerate(getattr(row, name)):
                if caption.strip():
                    captions.append(caption)
                else:
                    yield Reject(source, f"empty text: {name}.{place}", key=row.image)
        yield Captioned(
            source=source,
            picture=PictureFile(row.image, path.parent / params.folder),
            captions=captions,
            key=row.image,
            language=LANGUAGES[params.captions[0]],
            split=row.split and SPLITS.get(row.split, row.split),
        )
