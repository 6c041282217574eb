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

from stages.datasets.common.files import files, holding, lines, picture, pictures, split_files
from stages.shared.data.records import LABELS, Extra, Item, Label, Post, Reject, decode
from stages.shared.runtime.stage import WrongInput

KINDS = ("posts",)
HEADERS = ("id", "guid")
NO_LABEL = ("", "null")
LISTS = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
ENCODINGS = "formats.mvsa.encodings"


@dataclass(frozen=True)
class Params:
    labels: list[str]  # files within the corpus, the first that is there
    folder: str  # of texts and pictures, within the corpus
    merge: Literal["neutral_yields", "agree", "text", "picture"]
    splits: Literal["stratified", "published"]
    validation: float  # shares of each label
    test: float
    seed: int
    encodings: list[str]  # tried in this order, for each text and each line of the labels

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise WrongInput(
                f"params.yaml: formats.mvsa.validation {self.validation} and test {self.test} "
                "leave nothing to train on: give shares of 0 or more that sum to less than 1"
            )


@dataclass(frozen=True)
class Fault:
    reason: str
    meant: bool = False  # rows of this kind are left out by a rule of the corpus


NO_ID = Fault("no id: the line begins with its separator")


@dataclass(frozen=True)
class _Rated:
    source: str
    key: str
    label: Label
    split: str | None


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """The rejects, then the lists of splits, then a row per pair of text and picture.

    Raises WrongInput if there are no labels, or no published splits where params ask for them.
    """
    root, lists = label_files(source, params)
    rated: dict[str, _Rated] = {}
    for split, path in lists:
        for item in read_labels(path, split, params):
            if isinstance(item, Reject):
                yield item
            elif (first := rated.setdefault(item.key, item)) is not item:
                yield Reject(item.source, f"duplicate id: stands at {first.source} too", item.key)
    texts = files(root, [params.folder], (".txt",))
    found = pictures(root, [params.folder])
    posts = []
    for row in rated.values():
        text = read_text(row, texts, root, params.encodings)
        if isinstance(text, Reject):
            yield text
            continue
        image = picture(row.key, found, root) if found else None
        about = {"source": row.source, "key": row.key, "split": row.split}
        posts.append(Post(text=text, label=row.label, picture=image, **about))
    if params.splits == "stratified":
        posts = stratified(posts, params)
        yield from written_lists(posts)
    yield from posts


def label_files(source: Path, params: Params) -> tuple[Path, list[tuple[str | None, Path]]]:
    """The folder of the corpus, and its files of labels, each with its split."""
    if params.splits == "published":
        fix = (
            "put train.txt, valid.txt and test.txt there, or set formats.mvsa.splits to stratified"
        )
        root = holding(source, ["train.txt"], fix)
        return root, list(split_files(root).items())
    fix = "put it there, or name another file in formats.mvsa.labels of params.yaml"
    root = holding(source, params.labels, fix)
    return root, [(None, next(root / name for name in params.labels if (root / name).is_file()))]


def read_labels(path: Path, split: str | None, params: Params) -> Iterator[_Rated | Reject]:
    for line in lines(path, params.encodings, ENCODINGS):
        if isinstance(line, Reject):
            yield line
            continue
        source, text = line
        key, *fields = [field.strip() for field in re.split(r"[\t,]", text, maxsplit=1)]
        if key.lower() in HEADERS:
            continue
        # An annotator may have left a cell empty.
        cells = [cell for field in fields for cell in field.split("\t") if cell.strip()]
        labels = [label.strip().lower() for cell in cells for label in cell.split(",")]
        label = merged(labels, params.merge) if key else NO_ID
        if isinstance(label, Fault):
            yield Reject(source, label.reason, key or None, meant=label.meant)
        else:
            yield _Rated(source, key, label, split)


def merged(labels: list[str], merge: str) -> Label | Fault:
    """The one label of a row, whose labels are one, or those of text and picture in turn."""
    if not labels or labels[0] in NO_LABEL:
        return Fault("no label: the list has none", meant=True)
    if unknown := [label for label in labels if label not in LABELS]:
        return Fault(f"unknown label: {unknown[0][:60]!r} is none of {', '.join(LABELS)}")
    if len(labels) == 1:
        return labels[0]
    if len(labels) % 2:
        return Fault(f"wrong count: {len(labels)} labels, where each annotator gives two")
    votes = {"text": labels[0::2], "picture": labels[1::2]}
    if merge in votes:
        votes = {merge: votes[merge]}
    found = {what: majority(said) for what, said in votes.items()}
    if tied := [what for what, label in found.items() if label is None]:
        said = ", ".join(votes[tied[0]])
        return Fault(f"no majority: the {tied[0]} is {said}", meant=True)
    if label := agreed(set(found.values()), merge):
        return label
    return Fault(
        f"contradiction: the text is {found['text']}, the picture {found['picture']}", True
    )


def majority(labels: list[str]) -> str | None:
    """The label of more than half of the annotators."""
    label, count = Counter(labels).most_common(1)[0]
    return label if 2 * count > len(labels) else None


def agreed(labels: set[str], merge: str) -> str | None:
    """The one label of text and picture. Neutral yields by the rule of MultiSentiNet."""
    if merge == "neutral_yields" and len(labels) == 2:
        labels = labels - {"neutral"}
    return labels.pop() if len(labels) == 1 else None


def read_text(row: _Rated, found: dict[str, str], root: Path, encodings: list[str]) -> str | Reject:
    name = found.get(row.key)
    if name is None:
        return Reject(row.source, f"missing text: {row.key[:60]}.txt", row.key)
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        return Reject(row.source, f"path leaves the folder: {name}", row.key)
    try:
        text = decode(path.read_bytes(), encodings, ENCODINGS)
    except OSError:
        return Reject(row.source, f"missing text: {name} cannot be read", row.key)
    if text is None:
        reason = f"undecodable file: {name} is not {' or '.join(encodings)}"
        return Reject(row.source, reason, row.key)
    return text if text.strip() else Reject(row.source, f"empty text: {name} has none", row.key)


def stratified(posts: list[Post], params: Params) -> list[Post]:
    """The posts with splits that hold the same share of every label.

    Posts of one text share a split, so that test has no text that was learned. Retweets make them:
    one post in fifteen of MVSA-Single.
    """
    counts = Counter(post.label for post in posts)
    shares = {"test": params.test, "validation": params.validation}
    room = {
        split: Counter({label: part(share, count) for label, count in counts.items()})
        for split, share in shares.items()
    }
    same: dict[str, list[Post]] = {}
    for post in posts:
        same.setdefault(post.text, []).append(post)
    splits: dict[str, str] = {}
    for text in sorted(same, key=lambda text: sha256(f"{params.seed}:{text}".encode()).digest()):
        labels = Counter(post.label for post in same[text])
        splits[text] = next((split for split in room if labels <= room[split]), "train")
        if splits[text] in room:
            room[splits[text]] -= labels
    return [replace(post, split=splits[post.text]) for post in posts]


def part(share: float, count: int) -> int:
    """So many of `count`, rounded down; at least one, if a share is asked for and three are there.

    With shares of 0.1 this gives 3611, 450 and 450 of the 4511 pairs of MVSA-Single.
    """
    least = 1 if share and count > 2 else 0
    return max(least, int(share * count + 1e-6))  # 0.29 * 100 is 28.999999999999996


def written_lists(posts: list[Post]) -> Iterator[Extra]:
    for split, name in LISTS.items():
        rows = [f"{post.key},{post.label}\n" for post in posts if post.split == split]
        yield Extra(name, "".join(["guid,label\n", *rows]))
