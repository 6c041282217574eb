"""Image-text pairs of the records of any corpus."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class ImageTexts:
    """An image (sha256) with the texts that describe it, at least one."""

    image: str
    texts: list[str]
    split: str


def collect_pairs(records: list[dict], kind: str, languages: list[str]) -> list[ImageTexts]:
    """Each image of the records in these languages with its texts, sorted by hash.

    An image of several records keeps the texts of the first. The text of an article's image is the
    first one between it and the next image; images without text make no pair.
    """
    pairs: dict[str, ImageTexts] = {}
    for record in records:
        if record["language"] in languages:
            for image, texts in _list_pairs(record, kind):
                if image and (texts := [text for text in texts if text]):
                    pairs.setdefault(image, ImageTexts(image, texts, record["split"]))
    return [pairs[image] for image in sorted(pairs)]


def _list_pairs(record: dict, kind: str) -> Iterable[tuple[str | None, list[str]]]:
    match kind:
        case "articles":
            return _list_article_pairs(record["blocks"])
        case "captions":
            return [(record["image"], record["captions"])]
        case "tweets":
            return [(record["image"], [" ".join(record["words"])])]
        case _:
            return [(record["image"], [record["text"]])]


def _list_article_pairs(blocks: list[dict]) -> list[tuple[str, list[str]]]:
    return [
        (block["image"], [after["text"]]) for block, after in pairwise(blocks) if block["image"]
    ]


def select_held_out(pairs: list[ImageTexts], max_pairs: int) -> tuple[str, list[ImageTexts]]:
    """The split on which retrieval is measured, and its first `max_pairs` pairs by hash.

    It is the test split, or validation if that has more than one pair and test has not.
    """
    by_split = {
        split: [pair for pair in pairs if pair.split == split] for split in ("test", "validation")
    }
    split = "test" if len(by_split["test"]) > 1 else "validation"
    return split, by_split[split][:max_pairs]
