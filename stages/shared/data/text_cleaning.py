"""Text cleaning, for the stage clean and for all texts that are treated like those of a corpus.

In this order: URLs are removed (a Markdown link keeps its text), Unicode is normalized, invisible
and control characters are removed, emoji are removed if configured, and runs of white space become
one space or line end. Cleaning is idempotent.

NFKC folds full-width letters, ligatures and unusual spaces. Two groups of characters are exempt:
the full-width punctuation of Chinese and Japanese, which is their standard punctuation; and
fractions, superscripts and circled numbers, since 1½ would become 11/2 and m² would become m2.

The overlay text of a meme is cleaned in the same way, and then by the steps of OverlayCleanConfig.
URLs, email addresses, mentions and domain names are mostly watermarks; they are removed first,
while their dots and @ still identify them. Only then is the text lowercased, and punctuation and
digits are removed. The public code of MM-ORIENT removes dots and @ first, so that it never finds
them, and then everything but a to z. Here letters and marks of all scripts are kept. Digits and an
apostrophe within a word are deleted; other punctuation becomes a space.
"""

from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from typing import Literal
from unicodedata import decomposition, normalize

import regex

from stages.shared.core.config import Field, config_class

URL_CHARACTER = r"[\x21-\x7e--[<>\"()]]"
# A full stop after a URL belongs to the sentence.
URL_LAST_CHARACTER = r"[\x21-\x7e--[<>\"().,;:!?'*\]]]"
URL_IN_BRACKETS = rf"\({URL_CHARACTER}*\)"
URL_PATTERN = (
    rf"(?:(?:https?|ftp)://|www\.)(?:{URL_CHARACTER}|{URL_IN_BRACKETS})*"
    rf"(?:{URL_LAST_CHARACTER}|{URL_IN_BRACKETS})"
)
TO_CLOSING_BRACKET = r"[^()]*(?:\([^()]*\)[^()]*)*"  # brackets within a URL are balanced
MARKDOWN_LINK = regex.compile(
    rf"!?\[([^\[\]]*)\]\(\s*<?{URL_PATTERN}{TO_CLOSING_BRACKET}\)", regex.VERSION1
)
URL = regex.compile(rf"[(\uff08<]\s*{URL_PATTERN}\s*[)\uff09>]|{URL_PATTERN}", regex.VERSION1)
LINE_END = regex.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")
# Without the joiners U+200C and U+200D, which Persian, Indian scripts and emoji need.
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

URL_ANY_CASE = regex.compile(URL.pattern, regex.VERSION1 | regex.IGNORECASE)  # HTTP://
EMAIL = regex.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@(?:[A-Za-z0-9-]++\.)+[A-Za-z0-9-]+")
MENTION = regex.compile(
    r"(?<![\p{L}\p{M}\p{N}_@])(?:@++[\p{L}\p{M}\p{N}_]++(?:\.[\p{L}\p{M}\p{N}_]++)*+)++"
)
STRAY_MARKS = r"(?<![\p{L}\p{M}\p{N}\u200c\u200d])[\p{M}\u200c\u200d]+"  # marks without a letter
PUNCTUATION = regex.compile(
    rf"(?P<emoji>{EMOJI.pattern})"
    rf"|(?P<inside>(?<=\p{{L}}\p{{M}}*)['\u2019\u02bc](?=\p{{L}})|{STRAY_MARKS})"
    r"|[^\p{L}\p{M}\p{N}\s\u200c\u200d]"
)
DIGIT = regex.compile(rf"(?P<emoji>{EMOJI.pattern})|[\p{{Nd}}\p{{No}}]")
TURKIC_LANGUAGES = ("tr", "az")
TURKIC_LOWERCASE = str.maketrans({"I": "\u0131", "\u0130": "i"})  # I is not a capital i


@config_class
class OverlayCleanConfig:
    """The section `clean.memes`: additional steps for the overlay text of memes."""

    remove_mentions: bool = Field(description="remove @names and email addresses")
    remove_domains: list[str] = Field(description="remove domain names with these endings")
    case: Literal["lower", "keep"] = Field(description="lowercase the text, or keep its case")
    punctuation: Literal["drop", "keep"] = Field(
        description="drop: keep only letters, digits and emoji"
    )
    digits: Literal["drop", "keep"] = Field(description="drop or keep digits")
    line_breaks: Literal["join", "keep"] = Field(description="join: line ends become spaces")

    def __post_init__(self) -> None:
        # With an empty ending, any word before a full stop would be removed as a domain.
        if any(not ending.strip(". ") for ending in self.remove_domains):
            raise ValueError("remove_domains names an empty ending: remove it")


@config_class
class CleanConfig:
    """The section `clean`."""

    unicode_form: Literal["NFKC", "NFC"] = Field(description="Unicode normalization form")
    remove_urls: bool = Field(description="remove URLs; Markdown links keep their text")
    emoji: Literal["keep", "drop"] = Field(description="keep or drop emoji")
    memes: OverlayCleanConfig = Field(description="additional steps for text on memes")


def clean_text(text: str, language: str, config: CleanConfig) -> str:
    """The clean text, which may be empty. language: its ISO 639-1 code. Idempotent."""
    while (cleaned := _clean_once(text, language, config)) != text:
        text = cleaned  # one step may enable another, as for a URL in full-width letters
    return text


def _clean_once(text: str, language: str, config: CleanConfig) -> str:
    if config.remove_urls:
        text = URL.sub("", MARKDOWN_LINK.sub(r"\1", text))
    text = INVISIBLE_CHARACTERS.sub("", LINE_END.sub("\n", text))
    if config.unicode_form == "NFKC":
        text = normalize_nfkc(text, language)
    else:
        text = normalize("NFC", text)
    if config.emoji == "drop":
        text = EMOJI.sub("", text)
    return BLANK_LINES.sub("\n\n", SPACE_AT_LINE_END.sub("\n", SPACES.sub(" ", text))).strip()


def normalize_nfkc(text: str, language: str) -> str:
    """NFKC, except for the characters that the docstring of this module lists."""
    is_exempt = partial(_is_nfkc_exempt, east_asian=language in EAST_ASIAN_LANGUAGES)
    runs = ((exempt, "".join(characters)) for exempt, characters in groupby(text, is_exempt))
    folded = (run if exempt else normalize("NFKC", run) for exempt, run in runs)
    return normalize("NFC", "".join(folded))


@cache
def _is_nfkc_exempt(character: str, east_asian: bool) -> bool:
    if decomposition(character).startswith(NFKC_EXEMPT_FORMS):
        return True
    return east_asian and character != "\u3000" and bool(FULL_WIDTH_PUNCTUATION.match(character))


def keep_sentences(config: CleanConfig) -> CleanConfig:
    """`config` with the case, punctuation and digits of overlay text kept."""
    kept = {"case": "keep", "punctuation": "keep", "digits": "keep"}
    return replace(config, memes=replace(config.memes, **kept))


def clean_overlay_text(text: str, language: str, config: CleanConfig) -> str:
    """The clean text of a meme, which may be empty. language: its ISO 639-1 code. Idempotent."""
    while (cleaned := _clean_overlay_once(text, language, config)) != text:
        text = cleaned  # without its digits, a word may become a domain name
    return text


def _clean_overlay_once(text: str, language: str, config: CleanConfig) -> str:
    steps = config.memes
    if config.remove_urls:
        text = URL_ANY_CASE.sub(" ", MARKDOWN_LINK.sub(r"\1", text))
    text = clean_text(text, language, config)
    if steps.remove_mentions:
        text = MENTION.sub(" ", EMAIL.sub(" ", text))
    if steps.remove_domains:
        text = _domain_pattern(tuple(steps.remove_domains)).sub(" ", text)
    if steps.case == "lower":
        text = (text.translate(TURKIC_LOWERCASE) if language in TURKIC_LANGUAGES else text).lower()
    if steps.punctuation == "drop":
        text = PUNCTUATION.sub(lambda m: m["emoji"] or ("" if m["inside"] else " "), text)
    if steps.digits == "drop":
        text = DIGIT.sub(lambda m: m["emoji"] or "", text)
    if steps.line_breaks == "join":
        text = text.replace("\n", " ")
    return clean_text(text, language, config)


@cache
def _domain_pattern(endings: tuple[str, ...]) -> regex.Pattern:
    """A pattern of domain names with one of these endings, and of the path that follows."""
    longest_first = sorted((ending.removeprefix(".") for ending in endings), key=len, reverse=True)
    ending = "|".join(map(regex.escape, longest_first))
    # A name can begin at one place only, so that long runs of letters and dots take linear time.
    begin = r"(?<![A-Za-z0-9@_-])(?<![A-Za-z0-9_-]\.)"
    # Recognized text may have a space before the dot: imgflip .com
    name = rf"{begin}[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)* ?\.(?:{ending})(?![A-Za-z0-9_-])"
    return regex.compile(rf"{name}(?:[/?#][\x21-\x7e]*+)?", regex.IGNORECASE)
