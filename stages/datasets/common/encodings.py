"""Decode text files by a list of encodings, without taking a wrong one for right.

Bytes in Windows-1252 decode as GB18030 without an error, and any bytes decode as Latin-1. A text in
such an encoding is therefore accepted only if it is plausible.

common_han.txt holds the 1000 most frequent Chinese characters in the dictionary of jieba; they make
up 87 % of Chinese text, but about a quarter of the characters that other bytes are mistaken for.
"""

import codecs
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import regex

from stages.shared.runtime.stage import InputError

UTF_16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
CHINESE_CODECS = ("gb18030", "gbk", "gb2312", "hz")
WESTERN_CODECS = ("iso8859-1", "cp1252", "iso8859-15")
HAN_PATTERN = regex.compile(r"\p{Han}")
KANA_PATTERN = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
LETTER_PATTERN = regex.compile(r"\p{L}")
NON_ASCII_LETTER_PATTERN = regex.compile(r"[\p{L}--[A-Za-z]]", regex.VERSION1)
CONTROL_PATTERN = regex.compile(r"[\x80-\x9f]")
# What UTF-8 becomes in a Western encoding, such as \u00c3\u00a9 for an accented e.
MISREAD_UTF_8_PATTERN = regex.compile(r"[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u2122]")
# Quotes, dashes and full-width marks; their bytes are two symbols in Western encodings.
GB_PUNCTUATION = frozenset(
    bytes([lead, trail]).decode("gb18030") for lead in (0xA1, 0xA3) for trail in range(0xA1, 0xC0)
)
# Other letters of GB 2312, if there are several: one could be two symbols in Western encodings.
GB_SCRIPT_PATTERN = regex.compile(r"\p{Cyrillic}{3,}|\p{Greek}{3,}")
COMMON_HAN_FILE = Path(__file__).with_name("common_han.txt")
MIN_COMMON_HAN_SHARE = 0.6
MAX_NON_ASCII_SHARE = 1 / 3  # of the letters of a Western language; French has about 4 %


def decode_text(content: bytes, encodings: list[str], key: str) -> str | None:
    """Decode with the first encoding that fits. Returns None if none does, or if the text has NUL.

    content: a part of a file, such as a line, without the file's byte order mark
    key: the dotted key of config/formats.yaml that holds `encodings`, for messages.

    Raises InputError if an encoding is unknown.
    """
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except LookupError:
            raise InputError(
                f"config/formats.yaml: {key}: {encoding!r} is not an encoding: give utf-8"
            ) from None
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else text
    return None


def decode_file(content: bytes, encodings: list[str], key: str) -> str | None:
    """Decode the content of a file as `decode_text` does, but with plausible encodings only.

    A byte order mark takes precedence over `encodings` and is removed.
    """
    marked = _bom_encoding(content)
    return decode_text(content, [marked] if marked else select_plausible([content], encodings), key)


def select_plausible(parts: Iterable[bytes], encodings: list[str]) -> list[str]:
    """The encodings without those in which a file makes no plausible text.

    parts: of the file, such as its lines. An encoding is judged by the parts, taken together, that
    fit it and no earlier one.
    """
    pending = [part for part in parts if not part.isascii()]
    selected = []
    for encoding in encodings:
        try:
            codec = codecs.lookup(encoding).name
        except LookupError:  # decode_text reports it
            return encodings
        texts, others = [], []
        for part in pending:
            try:
                texts.append(part.decode(encoding))
            except UnicodeDecodeError:
                others.append(part)
        if _is_plausible("\n".join(texts), codec):
            selected.append(encoding)
            pending = others
    return selected


def _bom_encoding(content: bytes) -> str | None:
    if content.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if content.startswith(UTF_16_BOMS):
        return "utf-16"
    return None


def _is_plausible(text: str, codec: str) -> bool:
    if codec in CHINESE_CODECS:
        han, kana = HAN_PATTERN.findall(text), KANA_PATTERN.findall(text)
        if len(kana) >= len(han):
            # EUC-JP has kana at the same places, but its other characters fall into GB 2312.
            han = [character for character in han if _is_in_gb_2312(character)]
        if not han and not kana:  # a text in another script from a Chinese system
            letters = "".join(c for c in text if not c.isascii() and c not in GB_PUNCTUATION)
            return not letters or bool(GB_SCRIPT_PATTERN.fullmatch(letters))
        num_common = sum(character in _common_han() for character in han)
        return num_common >= MIN_COMMON_HAN_SHARE * len(han)
    if codec in WESTERN_CODECS:
        num_letters = len(LETTER_PATTERN.findall(text))
        num_non_ascii = len(NON_ASCII_LETTER_PATTERN.findall(text))
        is_damaged = CONTROL_PATTERN.search(text) or MISREAD_UTF_8_PATTERN.search(text)
        return not is_damaged and num_non_ascii <= MAX_NON_ASCII_SHARE * num_letters
    return True


def _is_in_gb_2312(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


@cache
def _common_han() -> frozenset[str]:
    return frozenset(COMMON_HAN_FILE.read_text(encoding="utf-8").replace("\n", ""))
