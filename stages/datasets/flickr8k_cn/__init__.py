"""Format `flickr8k_cn`: Flickr8k-CN (Li et al., 2016) as pairs.jsonl with an image folder.

{"image": "a.jpg", "split": "train", "en": [...], "zhc": [...], "zhb": [...], "zhm": [...]}

en   the English captions of Flickr8k      zhb  machine translations of them
zhc  captions written in Chinese           zhm  human translations, test only

A line is one image; its captions come from the lists in formats.flickr8k_cn.caption_sets.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stages.datasets.common.files import (
    SPLIT_ALIASES,
    SplitPolicy,
    apply_split_policy,
    parse_json_line,
    read_lines,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import CaptionRecord, DatasetItem, ExtraFile, ImageFile, Rejection
from stages.shared.runtime.stage import InputError

KINDS = ("captions",)
PAIRS_FILE = "pairs.jsonl"
CAPTION_LANGUAGES = {"en": "en", "zhc": "zh", "zhb": "zh", "zhm": "zh"}
TEST_ONLY_CAPTIONS = "zhm"


@config_class
class Flickr8kCnConfig:
    caption_sets: list[Literal["en", "zhc", "zhb", "zhm"]] = Field(
        description="caption lists to read, all in one language"
    )
    splits: SplitPolicy = Field(description="published splits, by hash, or auto")
    image_folder: str = Field(description="image folder within the corpus")
    encodings: list[str] = Field(description="tried in this order for each line")

    def __post_init__(self) -> None:
        if len({CAPTION_LANGUAGES[name] for name in self.caption_sets}) != 1:
            raise ValueError(
                f"caption_sets is {self.caption_sets}: give [en], or some of [zhc, zhb, zhm], "
                "since a corpus has one language"
            )


CONFIG = Flickr8kCnConfig


class _Flickr8kCnRow(BaseModel):
    model_config = ConfigDict(strict=True)

    image: str
    split: Literal["train", "validation", "val", "dev", "test"] | None = None
    en: list[str] = []
    zhc: list[str] = []
    zhb: list[str] = []
    zhm: list[str] = []


def read(source: Path, kind: str, config: Flickr8kCnConfig) -> Iterator[DatasetItem]:
    """Yield the rejections, then one record per line.

    Raises InputError if the file is missing, or no line has a caption in `caption_sets`.
    """
    path = source if source.is_file() else source / PAIRS_FILE
    if not path.is_file():
        raise InputError(f"{source} holds no {PAIRS_FILE}: put it there")
    rows: list[CaptionRecord] = []
    num_omitted = 0
    for item in parse_file(path, config):
        if isinstance(item, Rejection):
            yield item
        elif item.captions:
            rows.append(item)
        elif config.caption_sets == [TEST_ONLY_CAPTIONS] and item.split != "test":
            num_omitted += 1  # published without them, so not a fault
        else:
            names = " or ".join(config.caption_sets)
            yield Rejection(item.source, f"empty text: no caption in {names}", key=item.key)
    if num_omitted and not rows:
        raise InputError(
            f"{path}: all {num_omitted} images are outside test and have no {TEST_ONLY_CAPTIONS}: "
            "name another list in formats.flickr8k_cn.caption_sets of config/formats.yaml"
        )
    if num_omitted:
        yield ExtraFile(
            "omitted.json", {f"pictures outside test, without {TEST_ONLY_CAPTIONS}": num_omitted}
        )
    yield from apply_split_policy(rows, config.splits)


def parse_file(path: Path, config: Flickr8kCnConfig) -> Iterator[CaptionRecord | Rejection]:
    """Yield a record per line, possibly without captions, and a rejection per fault."""
    for line in read_lines(path, config.encodings, "formats.flickr8k_cn.encodings"):
        if isinstance(line, Rejection):
            yield line
            continue
        source, text = line
        row = parse_json_line(_Flickr8kCnRow, source, text)
        if isinstance(row, Rejection):
            yield row
            continue
        captions = []
        for name in config.caption_sets:
            for index, caption in enumerate(getattr(row, name)):
                if caption.strip():
                    captions.append(caption)
                else:
                    yield Rejection(source, f"empty text: {name}.{index}", key=row.image)
        yield CaptionRecord(
            source=source,
            image=ImageFile(row.image, path.parent / config.image_folder),
            captions=captions,
            key=row.image,
            language=CAPTION_LANGUAGES[config.caption_sets[0]],
            split=row.split and SPLIT_ALIASES.get(row.split, row.split),
        )
