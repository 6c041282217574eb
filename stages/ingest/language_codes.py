"""ISO 639-1 codes from what sources write as a language: codes, English and own names.

languages.tsv has a row per language: its ISO 639-1 code, its ISO 639-2 codes, and its names.
"""

from functools import cache
from pathlib import Path
from unicodedata import normalize

import regex

NAMES_FILE = Path(__file__).with_name("languages.tsv")
# What follows the language itself, as in en-US, en_US, English (US) and English, British.
REGION_PATTERN = regex.compile(r"\s*[-_(,].*", regex.DOTALL)
UNDETERMINED_NAMES = ("", "und", "mis", "mul", "zxx", "unknown", "null", "none", "nan", "n/a")


def parse_language(name: str) -> str | None:
    """The ISO 639-1 code of a language, or None if the source leaves it open.

    name: a code of ISO 639-1, ISO 639-2 or BCP 47, or a name. Raises ValueError if it is none.
    """
    key = _normalize(name)
    if key in UNDETERMINED_NAMES:
        return None
    codes = _read_codes()
    code = codes.get(key) or codes.get(REGION_PATTERN.sub("", key))
    if code is None:
        raise ValueError(f"{name[:60]!r} is no language: give an ISO 639-1 code such as en")
    return code


@cache
def _read_codes() -> dict[str, str]:
    """Code by normalized code or name."""
    rows = [line.split("\t") for line in NAMES_FILE.read_text(encoding="utf-8").splitlines()]
    return {_normalize(name): row[0] for row in rows for name in row}


def _normalize(name: str) -> str:
    return " ".join(normalize("NFKC", name).casefold().split())
