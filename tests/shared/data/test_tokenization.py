import pytest

from stages.shared.data.tokenization import tokenize_text


@pytest.mark.parametrize(
    ("text", "tokenizer", "tokens"),
    [
        ("The Cat's mat, 2nd\n one!", "words", "the cat ' s mat , 2nd one !"),
        ("Zoë isst Äpfel.", "words", "zoë isst äpfel ."),
        ("Zoe\u0308 isst", "words", "zoe\u0308 isst"),
        ("हिन्दी में लिखो।", "words", "हिन्दी में लिखो ।"),
        ("தமிழ் மொழி", "words", "தமிழ் மொழி"),
        ("ที่นี่ ดี", "words", "ที่นี่ ดี"),
        ("नमस्\u200dते, שָׁלוֹם", "words", "नमस्\u200dते , שָׁלוֹם"),
        ("हिन्दी 中か\u3099文 2nd", "characters", "हिन्दी 中 か\u3099 文 2nd"),
        ("加入白糖200ml、搅拌。", "characters", "加 入 白 糖 200ml 、 搅 拌 。"),
        ("ケーキを焼く cake", "characters", "ケ ー キ を 焼 く cake"),
        ("加入白糖、 搅拌。", "jieba", "加入 白糖 、 搅拌 。"),
        ("  ", "words", ""),
    ],
)
def test_each_tokenizer_splits_a_text_as_expected(text, tokenizer, tokens):
    assert tokenize_text(text, tokenizer) == tokens
