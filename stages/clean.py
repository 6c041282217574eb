"""Clean the texts of a corpus and keep the originals beside them.

python -m stages.clean KIND SOURCE TARGET

reads   SOURCE/records.parquet   RECORDS[KIND] of stages/shared/tables.py
writes  TARGET/records.parquet   CLEAN[KIND]
        TARGET/summary.json      records by split, texts changed, what became empty and was dropped

In this order: links go (`[words](address)` keeps its words), Unicode is normalised, invisible and
control characters go, emoji go if asked, runs of white space become one space or line end. Clean
text stays as it is when it is cleaned again.

Of a tweet each word is cleaned by itself, and one that would become empty stays as it is, beside
its tag; so does the text of a post, beside its label.

NFKC folds full-width letters, ligatures and odd spaces, and would do two kinds of harm, so these
characters are left alone: the full-width punctuation of Chinese and Japanese, which is their
ordinary one; and fractions, powers and circled numbers, since 1½ would become 11/2 and m² m2.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Literal
from unicodedata import decomposition, normalize

import regex

from stages.shared import tables
from stages.shared.params import load
from stages.shared.progress import bar
from stages.shared.records import SPLITS
from stages.shared.stage import output, stage

IN_ADDRESS = r"[\x21-\x7e--[<>\"()]]"
LAST = r"[\x21-\x7e--[<>\"().,;:!?'*\]]]"  # a full stop after an address is the sentence's
ADDRESS = (
    rf"(?:(?:https?|ftp)://|www\.)(?:{IN_ADDRESS}|\({IN_ADDRESS}*\))*(?:{LAST}|\({IN_ADDRESS}*\))"
)
TO_BRACKET = r"[^()]*(?:\([^()]*\)[^()]*)*"  # brackets inside an address come in pairs
WORDED_LINK = regex.compile(rf"!?\[([^\[\]]*)\]\(\s*<?{ADDRESS}{TO_BRACKET}\)", regex.VERSION1)
LINK = regex.compile(rf"[(\uff08<]\s*{ADDRESS}\s*[)\uff09>]|{ADDRESS}", regex.VERSION1)
LINE_END = regex.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")
# Not the joiners: Persian, Indian scripts and emoji need them.
INVISIBLE = regex.compile(r"[\p{Cc}\p{Cf}\p{Cs}--[\n\t\u200c\u200d]]", regex.VERSION1)
EMOJI = regex.compile(
    r"(?:[\p{Emoji_Presentation}\p{Regional_Indicator}]|\p{Emoji}\ufe0f\u20e3?|\p{Emoji}\u200d)"
    r"[\ufe0f\u200d\p{Emoji_Modifier}]*"
)
SPACES = regex.compile(r"[^\S\n]+")
SPACE_AT_LINE_END = regex.compile(r" ?\n ?")
BLANK_LINES = regex.compile(r"\n{3,}")

EAST_ASIAN = ("zh", "ja")
FULL_WIDTH = regex.compile(
    r"[\u2026\u2025\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
KEPT_FORMS = ("<fraction>", "<super>", "<sub>", "<circle>", "<square>")  # unicodedata


@dataclass(frozen=True)
class Params:
    unicode: Literal["NFKC", "NFC"]
    links: bool  # take out addresses
    emoji: Literal["keep", "drop"]


def clean(text: str, language: str, params: Params) -> str:
    """A clean text, possibly empty; cleaning it again changes nothing."""
    while (cleaned := _clean_once(text, language, params)) != text:
        text = cleaned  # one step can uncover work for another: a link in full-width letters
    return text


def _clean_once(text: str, language: str, params: Params) -> str:
    if params.links:
        text = LINK.sub("", WORDED_LINK.sub(r"\1", text))
    text = INVISIBLE.sub("", LINE_END.sub("\n", text))
    text = fold(text, language) if params.unicode == "NFKC" else normalize("NFC", text)
    if params.emoji == "drop":
        text = EMOJI.sub("", text)
    return BLANK_LINES.sub("\n\n", SPACE_AT_LINE_END.sub("\n", SPACES.sub(" ", text))).strip()


def fold(text: str, language: str) -> str:
    """NFKC but for the characters that the head of this file names."""
    keep = partial(_is_kept, east_asian=language in EAST_ASIAN)
    runs = ((kept, "".join(characters)) for kept, characters in groupby(text, keep))
    return normalize("NFC", "".join(run if kept else normalize("NFKC", run) for kept, run in runs))


@cache
def _is_kept(character: str, east_asian: bool) -> bool:
    if decomposition(character).startswith(KEPT_FORMS):
        return True
    return east_asian and character != "\u3000" and bool(FULL_WIDTH.match(character))


def clean_article(record: dict, tidy: Callable[[str], str]) -> dict:
    """The CLEAN row of an article; a title that would become empty stays as it was."""
    blocks = [
        {**block, "text": tidy(block["text"] or "") or None, "original": block["text"]}
        for block in record["blocks"]
    ]
    return {
        **record,
        "title": tidy(record["title"]) or record["title"],
        "title_original": record["title"],
        "blocks": [block for block in blocks if block["image"] or block["text"]],
    }


def clean_captioned(record: dict, tidy: Callable[[str], str]) -> dict:
    pairs = [(tidy(caption), caption) for caption in record["captions"]]
    pairs = [(clean, original) for clean, original in pairs if clean]
    return {
        **record,
        "captions": [clean for clean, _ in pairs],
        "originals": [original for _, original in pairs],
    }


def clean_tweet(record: dict, tidy: Callable[[str], str]) -> dict:
    """The CLEAN row of a tweet, with as many words as before."""
    words = [tidy(word) or word for word in record["words"]]
    return {**record, "words": words, "originals": record["words"]}


def clean_post(record: dict, tidy: Callable[[str], str]) -> dict:
    return {**record, "text": tidy(record["text"]) or record["text"], "original": record["text"]}


CLEANERS = {
    "articles": clean_article,
    "captions": clean_captioned,
    "tweets": clean_tweet,
    "posts": clean_post,
}


def texts(row: dict, kind: str) -> list[tuple[str, str]]:
    """The texts of a CLEAN row, each with its original; of a tweet, its words."""
    match kind:
        case "articles":
            return [(block["text"], block["original"]) for block in row["blocks"] if block["text"]]
        case "captions":
            return list(zip(row["captions"], row["originals"], strict=True))
        case "tweets":
            return list(zip(row["words"], row["originals"], strict=True))
        case _:
            return [(row["text"], row["original"])]


def size(record: dict, kind: str) -> int:
    """How many texts a record of ingest has."""
    match kind:
        case "articles":
            return sum(block["text"] is not None for block in record["blocks"])
        case "captions":
            return len(record["captions"])
        case "tweets":
            return len(record["words"])
        case _:
            return 1


def summary(before: list[dict], after: list[dict], kind: str) -> dict:
    """Counts of records and texts, and of those that were changed or left empty and dropped."""
    splits = Counter(row["split"] for row in after if texts(row, kind))
    pairs = [pair for row in after for pair in texts(row, kind)]
    total = sum(size(record, kind) for record in before)
    return {
        "records": {split: splits[split] for split in SPLITS},
        "records_dropped": len(before) - splits.total(),
        "texts": total,
        "texts_changed": sum(text != original for text, original in pairs),
        "texts_dropped": total - len(pairs),
    }


def main(params: Params, kind: str, source: Path, target: Path) -> None:
    records = tables.read(source / "records.parquet", tables.RECORDS[kind])
    rows = []
    with output(target) as folder:
        for record in bar(records, "clean"):
            tidy = partial(clean, language=record["language"], params=params)
            rows.append(CLEANERS[kind](record, tidy))
        kept = [row for row in rows if texts(row, kind)]
        tables.write(folder / "records.parquet", kept, tables.CLEAN[kind])
        counts = json.dumps(summary(records, rows, kind), indent=2)
        (folder / "summary.json").write_text(counts + "\n")


if __name__ == "__main__":
    with stage():
        main(load(Params, "clean"), sys.argv[1], *map(Path, sys.argv[2:]))
