"""Format `mvsa`: MVSA-Single and MVSA-Multiple (Niu et al., 2016), the sentiment of tweets.

labelResultAll.txt            ID <tab> TEXT,PICTURE: what one annotator said of each, or three such
                              pairs, of three annotators
labels.csv, label/train.txt   guid,tag: a list in which text and picture have one label already
data/ID.txt, data/ID.jpg      the tweet and its picture

They lie in the corpus' folder or in one folder within it. Of three annotators the majority counts,
for text and picture each; `merge` makes one label of the two. Rows that leave none are left out
as a rule of the corpus, not as a fault, and so are rows without label.

The corpus has no published splits. Those made here are exact shares of each label, in the order of
a hash of seed and text, and are written out as train.txt, valid.txt and test.txt: a header, then
lines `guid,label`, as the public code of MuSE reads them, and as `splits: published` does. The
lists hold every row that was read here, those too that ingest rejects as duplicates of others.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

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
    decode_text,
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
    intentional: bool = False  # rows of this kind are left out by a rule of the corpus


MISSING_ID = MvsaLabelRejection("no id: the line begins with its separator")


@dataclass(frozen=True)
class _LabelRow:
    source: str
    key: str
    label: SentimentLabel
    split: str | None


def read(source: Path, kind: str, params: MvsaConfig) -> Iterator[DatasetItem]:
    """The rejects, then the lists of splits, then a row per pair of text and picture.

    Raises WrongInput if there are no labels, or no published splits where params ask for them.
    """
    root, lists = find_label_files(source, params)
    rated: dict[str, _LabelRow] = {}
    for split, path in lists:
        for item in read_labels(path, split, params):
            if isinstance(item, Rejection):
                yield item
            elif (first := rated.setdefault(item.key, item)) is not item:
                yield Rejection(
                    item.source, f"duplicate id: stands at {first.source} too", item.key
                )
    texts = index_files(root, [params.data_folder], (".txt",))
    found = index_images(root, [params.data_folder])
    posts = []
    for row in rated.values():
        text = read_text(row, texts, root, params.encodings)
        if isinstance(text, Rejection):
            yield text
            continue
        image = resolve_image_file(row.key, found, root) if found else None
        about = {"source": row.source, "key": row.key, "split": row.split}
        posts.append(PostRecord(text=text, label=row.label, image=image, **about))
    if params.splits == "stratified":
        posts = stratify_splits(posts, params)
        yield from build_split_lists(posts)
    yield from posts


def find_label_files(
    source: Path, params: MvsaConfig
) -> tuple[Path, list[tuple[str | None, Path]]]:
    """The folder of the corpus, and its files of labels, each with its split."""
    if params.splits == "published":
        fix = (
            "put train.txt, valid.txt and test.txt there, or set formats.mvsa.splits to stratified"
        )
        root = find_corpus_dir(source, ["train.txt"], fix)
        return root, list(find_split_files(root).items())
    fix = "put it there, or name another file in formats.mvsa.label_files of params.yaml"
    root = find_corpus_dir(source, params.label_files, fix)
    return root, [
        (None, next(root / name for name in params.label_files if (root / name).is_file()))
    ]


def read_labels(
    path: Path, split: str | None, params: MvsaConfig
) -> Iterator[_LabelRow | Rejection]:
    for line in read_lines(path, params.encodings, ENCODINGS_KEY):
        if isinstance(line, Rejection):
            yield line
            continue
        source, text = line
        key, *fields = [field.strip() for field in re.split(r"[\t,]", text, maxsplit=1)]
        if key.lower() in HEADER_NAMES:
            continue
        # An annotator may have left a cell empty.
        cells = [cell for field in fields for cell in field.split("\t") if cell.strip()]
        labels = [label.strip().lower() for cell in cells for label in cell.split(",")]
        label = merge_annotations(labels, params.label_merge) if key else MISSING_ID
        if isinstance(label, MvsaLabelRejection):
            yield Rejection(source, label.reason, key or None, intentional=label.intentional)
        else:
            yield _LabelRow(source, key, label, split)


def merge_annotations(labels: list[str], merge: str) -> SentimentLabel | MvsaLabelRejection:
    """The one label of a row, whose labels are one, or those of text and picture in turn."""
    if not labels or labels[0] in NO_LABEL_VALUES:
        return MvsaLabelRejection("no label: the list has none", intentional=True)
    if unknown := [label for label in labels if label not in SENTIMENT_LABELS]:
        return MvsaLabelRejection(
            f"unknown label: {unknown[0][:60]!r} is none of {', '.join(SENTIMENT_LABELS)}"
        )
    if len(labels) == 1:
        return labels[0]
    if len(labels) % 2:
        return MvsaLabelRejection(
            f"wrong count: {len(labels)} labels, where each annotator gives two"
        )
    votes = {"text": labels[0::2], "picture": labels[1::2]}
    if merge in votes:
        votes = {merge: votes[merge]}
    found = {what: majority_vote(said) for what, said in votes.items()}
    if tied := [what for what, label in found.items() if label is None]:
        said = ", ".join(votes[tied[0]])
        return MvsaLabelRejection(f"no majority: the {tied[0]} is {said}", intentional=True)
    if label := combine_text_and_image_labels(set(found.values()), merge):
        return label
    return MvsaLabelRejection(
        f"contradiction: the text is {found['text']}, the picture {found['picture']}", True
    )


def majority_vote(labels: list[str]) -> str | None:
    """The label of more than half of the annotators."""
    label, count = Counter(labels).most_common(1)[0]
    return label if 2 * count > len(labels) else None


def combine_text_and_image_labels(labels: set[str], merge: str) -> str | None:
    """The one label of text and picture. Neutral yields by the rule of MultiSentiNet."""
    if merge == "neutral_yields" and len(labels) == 2:
        labels = labels - {"neutral"}
    return labels.pop() if len(labels) == 1 else None


def read_text(
    row: _LabelRow, found: dict[str, str], root: Path, encodings: list[str]
) -> str | Rejection:
    name = found.get(row.key)
    if name is None:
        return Rejection(row.source, f"missing text: {row.key[:60]}.txt", row.key)
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        return Rejection(row.source, f"path leaves the folder: {name}", row.key)
    try:
        text = decode_text(path.read_bytes(), encodings, ENCODINGS_KEY)
    except OSError:
        return Rejection(row.source, f"missing text: {name} cannot be read", row.key)
    if text is None:
        reason = f"undecodable file: {name} is not {' or '.join(encodings)}"
        return Rejection(row.source, reason, row.key)
    return text if text.strip() else Rejection(row.source, f"empty text: {name} has none", row.key)


def stratify_splits(posts: list[PostRecord], params: MvsaConfig) -> list[PostRecord]:
    """The posts with splits that hold the same share of every label.

    Posts of one text share a split, so that test has no text that was learned. Retweets make them:
    one post in fifteen of MVSA-Single.
    """
    counts = Counter(post.label for post in posts)
    shares = {"test": params.test_fraction, "validation": params.validation_fraction}
    room = {
        split: Counter({label: compute_split_size(share, count) for label, count in counts.items()})
        for split, share in shares.items()
    }
    same: dict[str, list[PostRecord]] = {}
    for post in posts:
        same.setdefault(post.text, []).append(post)
    splits: dict[str, str] = {}
    for text in sorted(same, key=lambda text: sha256(f"{params.seed}:{text}".encode()).digest()):
        labels = Counter(post.label for post in same[text])
        splits[text] = next((split for split in room if labels <= room[split]), "train")
        if splits[text] in room:
            room[splits[text]] -= labels
    return [replace(post, split=splits[post.text]) for post in posts]


def compute_split_size(share: float, count: int) -> int:
    """So many of `count`, rounded down; at least one, if a share is asked for and three are there.

    With shares of 0.1 this gives 3611, 450 and 450 of the 4511 pairs of MVSA-Single.
    """
    least = 1 if share and count > 2 else 0
    return max(least, int(share * count + 1e-6))  # 0.29 * 100 is 28.999999999999996


def build_split_lists(posts: list[PostRecord]) -> Iterator[ExtraFile]:
    for split, name in SPLIT_LISTS.items():
        rows = [f"{post.key},{post.label}\n" for post in posts if post.split == split]
        yield ExtraFile(name, "".join(["guid,label\n", *rows]))
