"""Clean text: what stage 02 does to the texts of a corpus, and what is done to all text like them.

In this order: links go (`[words](address)` keeps its words), Unicode is normalised, invisible and
control characters go, emoji go if asked, runs of white space become one space or line end. Clean
text stays as it is when it is cleaned again.

NFKC folds full-width letters, ligatures and odd spaces, and would do two kinds of harm, so these
characters are left alone: the full-width punctuation of Chinese and Japanese, which is their
ordinary one; and fractions, powers and circled numbers, since 1½ would become 11/2 and m² m2.

The words over a meme pass the same, and then what `Overlay` asks for: links, mail addresses,
mentions and names of sites, which are watermarks more often than words, go while their dots and @
still tell what they are; only then letters become small, and punctuation and digits go. The public
code of MM-ORIENT drops dots and @ first, so that it never finds them, and all but a to z. Here
letters and marks of every script stay. An apostrophe in a word and a digit go without a trace,
other punctuation leaves a space.
"""

from functools import cache, partial
from itertools import groupby
from typing import Literal
from unicodedata import decomposition, normalize

import regex

from stages.shared.core.config import Field, config_class

URL_CHARACTER = r"[\x21-\x7e--[<>\"()]]"
URL_LAST_CHARACTER = (
    r"[\x21-\x7e--[<>\"().,;:!?'*\]]]"  # a full stop after an address is the sentence's
)
URL_PATTERN = rf"(?:(?:https?|ftp)://|www\.)(?:{URL_CHARACTER}|\({URL_CHARACTER}*\))*(?:{URL_LAST_CHARACTER}|\({URL_CHARACTER}*\))"
TO_CLOSING_BRACKET = r"[^()]*(?:\([^()]*\)[^()]*)*"  # brackets inside an address come in pairs
MARKDOWN_LINK = regex.compile(
    rf"!?\[([^\[\]]*)\]\(\s*<?{URL_PATTERN}{TO_CLOSING_BRACKET}\)", regex.VERSION1
)
URL = regex.compile(rf"[(\uff08<]\s*{URL_PATTERN}\s*[)\uff09>]|{URL_PATTERN}", regex.VERSION1)
LINE_END = regex.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")
# Not the joiners: Persian, Indian scripts and emoji need them.
INVISIBLE_CHARACTERS = regex.compile(r"[\p{Cc}\p{Cf}\p{Cs}--[\n\t\u200c\u200d]]", regex.VERSION1)
EMOJI = regex.compile(
    r"(?:[\p{Emoji_Presentation}\p{Regional_Indicator}]|\p{Emoji}\ufe0f\u20e3?|\p{Emoji}\u200d)"
    r"[\ufe0f\u200d\p{Emoji_Modifier}]*"
)
SPACES = regex.compile(r"[^\S\n]+")
SPACE_AT_LINE_END = regex.compile(r" ?\n ?")
BLANK_LINES = regex.compile(r"\n{3,}")

EAST_ASIAN_LANGUAGES = ("zh", "ja")
FULL_WIDTH_PUNCTUATION = regex.compile(
    r"[\u2026\u2025\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
NFKC_EXEMPT_FORMS = ("<fraction>", "<super>", "<sub>", "<circle>", "<square>")  # unicodedata


URL_ANY_CASE = regex.compile(URL.pattern, regex.VERSION1 | regex.IGNORECASE)  # memes shout: HTTP://
EMAIL = regex.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@(?:[A-Za-z0-9-]++\.)+[A-Za-z0-9-]+")
MENTION = regex.compile(r"(?<![\p{L}\p{N}_@])(?:@++[\p{L}\p{M}\p{N}_]++(?:\.[\p{L}\p{N}_]++)*+)++")
STRAY_MARKS = r"(?<![\p{L}\p{M}\p{N}\u200c\u200d])[\p{M}\u200c\u200d]+"  # marks of no letter
PUNCTUATION = regex.compile(
    rf"(?P<emoji>{EMOJI.pattern})"
    rf"|(?P<inside>(?<=\p{{L}}\p{{M}}*)['\u2019\u02bc](?=\p{{L}})|{STRAY_MARKS})"
    r"|[^\p{L}\p{M}\p{N}\s\u200c\u200d]"
)
DIGIT = regex.compile(rf"(?P<emoji>{EMOJI.pattern})|[\p{{Nd}}\p{{No}}]")
TURKIC_LANGUAGES = ("tr", "az")
TURKIC_LOWERCASE = str.maketrans({"I": "\u0131", "\u0130": "i"})  # there I is no capital i


@config_class
class OverlayCleanConfig:
    """What is done to the words over a meme beyond what is done to every text."""

    remove_mentions: bool  # take out @names and mail addresses
    remove_domains: list[str]  # endings of names of sites, which are taken out
    case: Literal["lower", "keep"]
    punctuation: Literal["drop", "keep"]
    digits: Literal["drop", "keep"]
    line_breaks: Literal["join", "keep"]

    def __post_init__(self) -> None:
        # With an empty ending, any word before a full stop would be removed as a domain.
        if any(not ending.strip(". ") for ending in self.remove_domains):
            raise ValueError("remove_domains names an empty ending: remove it")


@config_class
class CleanConfig:
    unicode_form: Literal["NFKC", "NFC"]
    remove_urls: bool  # take out addresses
    emoji: Literal["keep", "drop"]
    memes: OverlayCleanConfig


def clean_text(text: str, language: str, params: CleanConfig) -> str:
    """A clean text, possibly empty; cleaning it again changes nothing."""
    while (cleaned := _clean_once(text, language, params)) != text:
        text = cleaned  # one step can uncover work for another: a link in full-width letters
    return text


def _clean_once(text: str, language: str, params: CleanConfig) -> str:
    if params.remove_urls:
        text = URL.sub("", MARKDOWN_LINK.sub(r"\1", text))
    text = INVISIBLE_CHARACTERS.sub("", LINE_END.sub("\n", text))
    text = (
        normalize_nfkc(text, language) if params.unicode_form == "NFKC" else normalize("NFC", text)
    )
    if params.emoji == "drop":
        text = EMOJI.sub("", text)
    return BLANK_LINES.sub("\n\n", SPACE_AT_LINE_END.sub("\n", SPACES.sub(" ", text))).strip()


def normalize_nfkc(text: str, language: str) -> str:
    """NFKC but for the characters that the head of this file names."""
    keep = partial(_is_nfkc_exempt, east_asian=language in EAST_ASIAN_LANGUAGES)
    runs = ((kept, "".join(characters)) for kept, characters in groupby(text, keep))
    return normalize("NFC", "".join(run if kept else normalize("NFKC", run) for kept, run in runs))


@cache
def _is_nfkc_exempt(character: str, east_asian: bool) -> bool:
    if decomposition(character).startswith(NFKC_EXEMPT_FORMS):
        return True
    return east_asian and character != "\u3000" and bool(FULL_WIDTH_PUNCTUATION.match(character))


def clean_overlay_text(text: str, language: str, params: CleanConfig) -> str:
    """The clean words over a meme, possibly none; cleaning them again changes nothing."""
    while (cleaned := _clean_overlay_once(text, language, params)) != text:
        text = cleaned  # without its digits a word can be the name of a site
    return text


def _clean_overlay_once(text: str, language: str, params: CleanConfig) -> str:
    asked = params.memes
    if params.remove_urls:
        text = URL_ANY_CASE.sub(" ", MARKDOWN_LINK.sub(r"\1", text))
    text = clean_text(text, language, params)
    if asked.remove_mentions:
        text = MENTION.sub(" ", EMAIL.sub(" ", text))
    if asked.remove_domains:
        text = _site_pattern(tuple(asked.remove_domains)).sub(" ", text)
    if asked.case == "lower":
        text = (text.translate(TURKIC_LOWERCASE) if language in TURKIC_LANGUAGES else text).lower()
    if asked.punctuation == "drop":
        text = PUNCTUATION.sub(lambda m: m["emoji"] or ("" if m["inside"] else " "), text)
    if asked.digits == "drop":
        text = DIGIT.sub(lambda m: m["emoji"] or "", text)
    return clean_text(
        text.replace("\n", " ") if asked.line_breaks == "join" else text, language, params
    )


@cache
def _site_pattern(endings: tuple[str, ...]) -> regex.Pattern:
    """The name of a site that ends in one of these, with the path that follows it."""
    longest_first = sorted((ending.removeprefix(".") for ending in endings), key=len, reverse=True)
    ending = "|".join(map(regex.escape, longest_first))
    # Each name begins in one place only: long runs of letters and dots cost no more than others.
    begin = r"(?<![A-Za-z0-9@_-])(?<![A-Za-z0-9_-]\.)"
    # Recognised text has spaces before the dot: imgflip .com
    name = rf"{begin}[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)* ?\.(?:{ending})(?![A-Za-z0-9_-])"
    return regex.compile(rf"{name}(?:[/?#][\x21-\x7e]*+)?", regex.IGNORECASE)
