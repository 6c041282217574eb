"""Format `mvsa`: MVSA-Single and MVSA-Multiple (Niu et al., 2016), the sentiment of tweets.

labelResultAll.txt            ID <tab> TEXT,IMAGE: the labels of one annotator, or three such pairs
                              of three annotators
labels.csv, label/train.txt   guid,tag: a list with one label for text and image together
data/ID.txt, data/ID.jpg      the tweet and its image

The files are in the corpus' folder or in one folder within it. Three annotators are reduced to
their majority, for text and image separately, and `label_merge` combines the two labels. Rows
without label, or whose labels cannot be combined, are left out intentionally.

The corpus has no published splits. The stratified splits hold exact fractions of each label, in the
order of a hash of seed and text, and are written to train.txt, valid.txt and test.txt: a header,
then lines `guid,label`, as the public code of MuSE and `splits: published` read them. The lists
contain every row read here, including rows that ingest rejects as duplicates.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from stages.datasets.common.encodings import decode_file
from stages.datasets.common.files import (
    find_corpus_dir,
    find_split_files,
    index_files,
    index_images,
    read_lines,
    resolve_image_file,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import (
    SENTIMENT_LABELS,
    DatasetItem,
    ExtraFile,
    PostRecord,
    Rejection,
    SentimentLabel,
)

KINDS = ("posts",)
HEADER_NAMES = ("id", "guid")
NO_LABEL_VALUES = ("", "null")
SPLIT_LISTS = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
ENCODINGS_KEY = "formats.mvsa.encodings"


@config_class
class MvsaConfig:
    label_files: list[str] = Field(description="the first that exists in the corpus is read")
    data_folder: str = Field(description="folder of texts and images within the corpus")
    label_merge: Literal["neutral_yields", "agree", "text", "picture"] = Field(
        description="how text and image labels become one"
    )
    splits: Literal["stratified", "published"] = Field(description="made here, or read from lists")
    validation_fraction: float = Field(ge=0, description="share of each label, if stratified")
    test_fraction: float = Field(ge=0, description="share of each label, if stratified")
    seed: int = Field(description="seed of the stratified splits")
    encodings: list[str] = Field(description="tried in this order for each text and label line")

    def __post_init__(self) -> None:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave no training data: give a sum below 1"
            )


CONFIG = MvsaConfig


@dataclass(frozen=True)
class MvsaLabelRejection:
    reason: str
    intentional: bool = False  # left out by a rule of the corpus


MISSING_ID = MvsaLabelRejection("no id: the line begins with the separator")


@dataclass(frozen=True)
class _LabelRow:
    source: str
    key: str
    label: SentimentLabel
    split: str | None


def read(source: Path, kind: str, config: MvsaConfig) -> Iterator[DatasetItem]:
    """Yield the rejections, then the split lists, then a record per pair of text and image.

    Raises InputError if there is no label file, or a published split is configured but missing.
    """
    root, label_files = find_label_files(source, config)
    label_rows: dict[str, _LabelRow] = {}
    for split, path in label_files:
        for item in read_labels(path, split, config):
            if isinstance(item, Rejection):
                yield item
            elif (first := label_rows.setdefault(item.key, item)) is not item:
                reason = f"duplicate id: already used at {first.source}"
                yield Rejection(item.source, reason, item.key)
    text_paths = index_files(root, [config.data_folder], (".txt",))
    image_paths = index_images(root, [config.data_folder])
    posts = []
    for row in label_rows.values():
        text = read_text(row, text_paths, root, config.encodings)
        if isinstance(text, Rejection):
            yield text
            continue
        image = resolve_image_file(row.key, image_paths, root) if image_paths else None
        common = {"source": row.source, "key": row.key, "split": row.split}
        posts.append(PostRecord(text=text, label=row.label, image=image, **common))
    if config.splits == "stratified":
        posts = stratify_splits(posts, config)
        yield from build_split_lists(posts)
    yield from posts


def find_label_files(
    source: Path, config: MvsaConfig
) -> tuple[Path, list[tuple[str | None, Path]]]:
    """The folder of the corpus, and its label files with their split (None if not published).

    Raises InputError if there is none.
    """
    if config.splits == "published":
        fix = (
            "put train.txt, valid.txt and test.txt there, or set formats.mvsa.splits to stratified"
        )
        root = find_corpus_dir(source, ["train.txt"], fix)
        return root, list(find_split_files(root).items())
    fix = "put it there, or add another file to formats.mvsa.label_files of config/formats.yaml"
    root = find_corpus_dir(source, config.label_files, fix)
    path = next(root / name for name in config.label_files if (root / name).is_file())
    return root, [(None, path)]


def read_labels(
    path: Path, split: str | None, config: MvsaConfig
) -> Iterator[_LabelRow | Rejection]:
    """Yield the label of each row of a label file, or a rejection."""
    for line in read_lines(path, config.encodings, ENCODINGS_KEY):
        if isinstance(line, Rejection):
            yield line
            continue
        source, text = line
        key, *fields = [field.strip() for field in re.split(r"[\t,]", text, maxsplit=1)]
        if key.lower() in HEADER_NAMES:
            continue
        # The cells of some annotators are empty.
        cells = [cell for field in fields for cell in field.split("\t") if cell.strip()]
        labels = [label.strip().lower() for cell in cells for label in cell.split(",")]
        label = merge_annotations(labels, config.label_merge) if key else MISSING_ID
        if isinstance(label, MvsaLabelRejection):
            yield Rejection(source, label.reason, key or None, intentional=label.intentional)
        else:
            yield _LabelRow(source, key, label, split)


def merge_annotations(labels: list[str], merge: str) -> SentimentLabel | MvsaLabelRejection:
    """Combine the labels of one row.

    labels: one label, or alternating text and image labels, a pair for each annotator
    merge: MvsaConfig.label_merge
    """
    if not labels or labels[0] in NO_LABEL_VALUES:
        return MvsaLabelRejection("no label: the row has none", intentional=True)
    names: dict[str, SentimentLabel] = {label: label for label in SENTIMENT_LABELS}
    known: list[SentimentLabel] = [names[label] for label in labels if label in names]
    if unknown := [label for label in labels if label not in names]:
        return MvsaLabelRejection(
            f"unknown label: {unknown[0][:60]!r} is none of {', '.join(SENTIMENT_LABELS)}"
        )
    if len(known) == 1:
        return known[0]
    if len(labels) % 2:
        return MvsaLabelRejection(
            f"wrong count: {len(labels)} labels, but each annotator gives two"
        )
    votes = {"text": known[0::2], "picture": known[1::2]}
    if merge in votes:
        votes = {merge: votes[merge]}
    majorities: dict[str, SentimentLabel | None] = {
        modality: majority_vote(votes[modality]) for modality in votes
    }
    if tied := [modality for modality, label in majorities.items() if label is None]:
        name = "image" if tied[0] == "picture" else "text"
        reason = f"no majority: the {name} is {', '.join(votes[tied[0]])}"
        return MvsaLabelRejection(reason, intentional=True)
    chosen: set[SentimentLabel] = {label for label in majorities.values() if label}
    if label := combine_text_and_image_labels(chosen, merge):
        return label
    reason = f"contradiction: the text is {majorities['text']}, the image {majorities['picture']}"
    return MvsaLabelRejection(reason, intentional=True)


def majority_vote(labels: list[SentimentLabel]) -> SentimentLabel | None:
    """The label that more than half of the annotators chose, or None."""
    label, count = Counter(labels).most_common(1)[0]
    return label if 2 * count > len(labels) else None


def combine_text_and_image_labels(labels: set[SentimentLabel], merge: str) -> SentimentLabel | None:
    """The one label of text and image, or None if they contradict each other.

    neutral_yields: a label other than neutral wins over neutral, as in MultiSentiNet (Xu & Mao,
    2017).
    """
    if merge == "neutral_yields" and len(labels) == 2:
        labels = labels - {"neutral"}
    return labels.pop() if len(labels) == 1 else None


def read_text(
    row: _LabelRow, text_paths: dict[str, str], root: Path, encodings: list[str]
) -> str | Rejection:
    """The text of a row, or a rejection if it is missing, outside `root`, undecodable or blank."""
    name = text_paths.get(normalize("NFC", row.key))
    if name is None:
        return Rejection(row.source, f"missing text: {row.key[:60]}.txt", row.key)
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        return Rejection(row.source, f"path leaves the folder: {name}", row.key)
    try:
        text = decode_file(path.read_bytes(), encodings, ENCODINGS_KEY)
    except OSError:
        return Rejection(row.source, f"missing text: {name} cannot be read", row.key)
    if text is None:
        reason = f"undecodable file: {name} is not {' or '.join(encodings)}"
        return Rejection(row.source, reason, row.key)
    return text if text.strip() else Rejection(row.source, f"empty text: {name} has none", row.key)


def stratify_splits(posts: list[PostRecord], config: MvsaConfig) -> list[PostRecord]:
    """Assign splits that hold the same fraction of every label.

    Posts with the same text share a split, so that no test text occurs in training. Retweets are
    such posts: one in fifteen of MVSA-Single.
    """
    counts = Counter(post.label for post in posts)
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    capacity = {
        split: Counter(
            {label: compute_split_size(fraction, count) for label, count in counts.items()}
        )
        for split, fraction in fractions.items()
    }
    posts_by_text: dict[str, list[PostRecord]] = {}
    for post in posts:
        posts_by_text.setdefault(post.text, []).append(post)
    splits: dict[str, str] = {}
    for text in sorted(
        posts_by_text, key=lambda text: sha256(f"{config.seed}:{text}".encode()).digest()
    ):
        labels = Counter(post.label for post in posts_by_text[text])
        splits[text] = next((split for split in capacity if labels <= capacity[split]), "train")
        if splits[text] in capacity:
            capacity[splits[text]] -= labels
    return [replace(post, split=splits[post.text]) for post in posts]


def compute_split_size(fraction: float, count: int) -> int:
    """`fraction * count`, rounded down; at least 1 if the fraction is not 0 and `count` is over 2.

    With fractions of 0.1 this gives 3611, 450 and 450 of the 4511 pairs of MVSA-Single.
    """
    minimum = 1 if fraction and count > 2 else 0
    return max(minimum, int(fraction * count + 1e-6))  # 0.29 * 100 is 28.999999999999996


def build_split_lists(posts: list[PostRecord]) -> Iterator[ExtraFile]:
    """Yield train.txt, valid.txt and test.txt."""
    for split, name in SPLIT_LISTS.items():
        rows = [f"{post.key},{post.label}\n" for post in posts if post.split == split]
        yield ExtraFile(name, "".join(["guid,label\n", *rows]))
