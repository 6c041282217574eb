import pytest

from stages.shared.data.language import detect_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("红烧肉的做法", "zh"),
        ("紅燒肉的做法與技巧", "zh"),
        ("肉", "zh"),
        ("食用油 15~20 g，加入 Worcestershire sauce 和 MSG，小火煮 3 min", "zh"),
        ("一块の肉，很好吃的味道", "zh"),
        ("看https://example.org/how/to/bake，很好", "zh"),
        ("これは日本語の文章です", "ja"),
        ("カレーライス", "ja"),
        ("한국어 문장입니다", "ko"),
        ("Two dogs run in the snow", "en"),
        ("a red bus on the street", "en"),
        ("I love 北京 and Shanghai very much", "en"),
        ("Der Hund läuft durch den Schnee", "de"),
        ("El perro corre por la nieve", "es"),
        ("Le chat est sur la table", "fr"),
        ("Привет, как дела, друзья", "ru"),
        ("मैं हर दिन रोटी खाता हूँ", "hi"),  # most letters stand alone between marks
        ("தமிழ் மொழி மிகவும் பழமையானது", "ta"),
    ],
)
def test_the_language_of_a_text(text, language):
    assert detect_language(text) == language


@pytest.mark.parametrize("text", ["", "100 g", "A man", "!?", "https://example.org/how/to/bake"])
def test_an_inconclusive_text_has_no_language(text):
    assert detect_language(text) is None
