"""Language detection: by script where that is decisive, else by py3langid."""

from functools import cache

import regex
from py3langid.langid import MODEL_FILE, LanguageIdentifier

HAN = regex.compile(r"\p{Han}")
KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
HANGUL = regex.compile(r"\p{Hangul}")
# Words of other scripts, whose vowels may be marks. A Han character counts as a word, since Chinese
# has no spaces.
EAST_ASIAN = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"
WORD = regex.compile(
    rf"[\p{{L}}--[{EAST_ASIAN}]][[\p{{L}}\p{{M}}]--[{EAST_ASIAN}]]+", regex.VERSION1
)
URL = regex.compile(r"(?:https?://|ftp://|www\.)[\x21-\x7e]+")

# Without rare languages, which py3langid confuses with short English texts.
CANDIDATE_LANGUAGES = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it lt lv ms nl no pl pt ro ru sk sl "
    "sr sv sw ta te th tr uk ur vi"
)

# Share of kana in the East Asian characters; Japanese has far more, Chinese borrows a few.
MIN_KANA_SHARE = 0.1
MIN_WORDS = 3  # fewer words of an alphabet are inconclusive
MIN_PROBABILITY = 0.5  # of py3langid, over CANDIDATE_LANGUAGES


def detect_language(text: str) -> str | None:
    """ISO 639-1 code of the text's main language, or None if the text is inconclusive.

    Chinese, Japanese and Korean are detected by script, so that Latin brand names, units and
    numbers between Chinese characters do not matter.
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
    # Loaded on first use: it takes most of a second.
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(CANDIDATE_LANGUAGES.split())
    return identifier
