"""Clean text: what stage 02 does to the texts of a corpus, and what is done to all text like them.

In this order: links go (`[words](address)` keeps its words), Unicode is normalised, invisible and
control characters go, emoji go if asked, runs of white space become one space or line end. Clean
text stays as it is when it is cleaned again.

NFKC folds full-width letters, ligatures and odd spaces, and would do two kinds of harm, so these
characters are left alone: the full-width punctuation of Chinese and Japanese, which is their
ordinary one; and fractions, powers and circled numbers, since 1½ would become 11/2 and m² m2.
"""

from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Literal
from unicodedata import decomposition, normalize

import regex

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
