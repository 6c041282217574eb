"""The language of a text: by its script where that decides, by py3langid where it does not."""

from functools import cache

import regex
from py3langid.langid import MODEL_FILE, LanguageIdentifier

HAN = regex.compile(r"\p{Han}")
KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
HANGUL = regex.compile(r"\p{Hangul}")
# Words of other scripts. A Han character counts as a word, since Chinese writes no spaces.
WORD = regex.compile(r"[\p{L}--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]]{2,}", regex.VERSION1)
URL = regex.compile(r"(?:https?://|ftp://|www\.)[\x21-\x7e]+")

# What py3langid may answer. Rare languages are left out: it takes short English texts for them.
CANDIDATE_LANGUAGES = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it lt lv ms nl no pl pt ro ru sk sl "
    "sr sv sw ta te th tr uk ur vi"
)

MIN_KANA_SHARE = (
    0.1  # of the East Asian characters; real Japanese has far more, Chinese borrows a few
)
MIN_WORDS = 3  # fewer words of an alphabet say too little
MIN_PROBABILITY = 0.5  # py3langid's own, among LANGUAGES


def detect_language(text: str) -> str | None:
    """ISO 639-1 code of the text's main language, or None where the text does not tell.

    Chinese, Japanese and Korean are told by script, so that Latin brand names, units and numbers
    among Chinese characters do not matter.
    """
    text = URL.sub(" ", text)
    han, kana, hangul = (len(script.findall(text)) for script in (HAN, KANA, HANGUL))
    words = len(WORD.findall(text))
    if han + kana + hangul > words:
        if hangul > han + kana:
            return "ko"
        return "ja" if kana > MIN_KANA_SHARE * (han + kana) else "zh"
    if words < MIN_WORDS:
        return None
    language, probability = _load_identifier().classify(text)
    return str(language) if probability >= MIN_PROBABILITY else None


@cache
def _load_identifier() -> LanguageIdentifier:
    # Loaded at the first text that needs it: this takes most of a second.
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(CANDIDATE_LANGUAGES.split())
    return identifier
