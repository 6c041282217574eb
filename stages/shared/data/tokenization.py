"""Splitting texts into the tokens that metrics count."""

from functools import cache
from typing import Any, Literal

import regex

TokenizerName = Literal["words", "characters", "jieba"]
# Han with its extensions, and kana: scripts without spaces between words.
_UNSPACED_SCRIPTS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Marks and joiners belong to the letter before them: vowels of Hindi, Tamil and Thai are marks.
_IN_WORD = r"\p{L}\p{M}\p{N}_\u200c\u200d"
_WORD_PATTERN = regex.compile(rf"[{_IN_WORD}]+|[^{_IN_WORD}\s]")
_CHARACTER_PATTERN = regex.compile(
    rf"[{_UNSPACED_SCRIPTS}]\p{{M}}*|[[{_IN_WORD}]--[{_UNSPACED_SCRIPTS}]]+|[^{_IN_WORD}\s]",
    regex.VERSION1,
)


def tokenize_text(text: str, tokenizer: TokenizerName) -> str:
    """Lowercase tokens separated by spaces; each punctuation mark is a token.

    words: runs of letters, their marks and digits. characters: the same, but each Han or kana
    character is a token. jieba: jieba's Chinese words.
    """
    text = text.lower()
    if tokenizer == "jieba":
        return " ".join(token for token in _jieba().lcut(text) if not token.isspace())
    return " ".join((_WORD_PATTERN if tokenizer == "words" else _CHARACTER_PATTERN).findall(text))


@cache
def _jieba() -> Any:
    import jieba

    jieba.setLogLevel("ERROR")  # it logs its cache file at each start
    return jieba
