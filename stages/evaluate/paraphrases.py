"""The paraphrases of METEOR's table that certain texts can match.

METEOR loads the whole table, 5.3 million paraphrases in 8 CPU seconds and 1.1 GB, although both
phrases of a match consist of words of the texts.
"""

import gzip
import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np

MAX_PIECES = 8  # of a word; a longer one has only its pieces, not what METEOR might join


def list_words(texts: Iterable[str]) -> set[str]:
    """The words of texts, and all that METEOR's normalization may make of them.

    It lowercases, and cuts words at punctuation.
    """
    words: set[str] = set()
    for word in {word for text in texts for word in text.split()}:
        pieces = re.findall(r"\w+|\W", word)
        ends = range(len(pieces) + 1) if len(pieces) <= MAX_PIECES else range(0)
        words.update([word, *pieces])
        words.update("".join(pieces[start:end]) for start, end in combinations(ends, 2))
    return words | {word.lower() for word in words}


def write_paraphrases(table: Path, words: set[str], target: Path) -> None:
    """Write the paraphrases whose phrases consist of `words`.

    table: METEOR's, compressed by gzip. A paraphrase has three lines, its probability, the phrase
    and what it may be replaced by; they are sorted by the bytes of the phrase.
    """
    content = gzip.decompress(table.read_bytes())
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    known = {word.encode() for word in words}

    def read_phrase(index: int) -> bytes:
        return content[ends[3 * index] + 1 : ends[3 * index + 1]]

    @cache
    def is_known(phrase: bytes) -> bool:
        return known.issuperset(phrase.split(b" "))

    everything = range(len(ends) // 3)
    with gzip.open(target, "wb", compresslevel=1) as file:
        for word in sorted(known):
            first = bisect_left(everything, word, key=read_phrase)
            # "!" is the character after the space.
            last = bisect_left(everything, word + b"!", lo=first, key=read_phrase)
            start = ends[3 * first - 1] + 1 if first else 0
            lines = content[start : ends[3 * last - 1] + 1].split(b"\n") if last > first else []
            for number, phrase, replacement in zip(*(lines[i::3] for i in range(3)), strict=False):
                if is_known(phrase) and is_known(replacement):
                    file.write(b"%s\n%s\n%s\n" % (number, phrase, replacement))
