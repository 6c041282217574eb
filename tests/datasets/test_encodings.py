"""A text in a wrong encoding is never taken for a right one."""

import pytest

from stages.datasets.common.encodings import decode_file, select_plausible

CHINESE = "荞麦面放入冷水中，煮熟后捞出，加入酱油和葱花。"
OTHERS = {
    "cp1252": "Grüße aus Köln, schöne Bücher über die Straße",
    "latin-1": "Une crème légère, très sucrée, dorée au four près de la fenêtre",
    "cp850": "¡Ánimo, corazón! ¿Qué pasó mañana?",
    "mac_roman": "L\u2019été, c\u2019est déjà là",
    "cp1250": "Zażółć gęślą jaźń, źdźbło trawy",
    "cp1251": "Привет, это обычный русский текст про хлеб и погоду",
    "koi8-r": "Привет, это обычный русский текст про хлеб и погоду",
    "iso8859-7": "Καλημέρα κόσμε, το ψωμί είναι ζεστό",
    "cp1255": "שלום עולם זה טקסט על לחם",
    "cp1256": "مرحبا بالعالم هذا نص عن الخبز",
    "cp874": "สวัสดีชาวโลก วันนี้อากาศดี",
    "euc_kr": "한국어 문장을 여기에 적습니다. 오늘은 날씨가 매우 좋습니다",
    "shift_jis": "蕎麦を茹でて冷水で洗う。今日は天気がとても良い",
    "euc_jp": "蕎麦を茹でて冷水で洗う。今日は天気がとても良い",
    "big5": "把蕎麥麵放入冷水中，煮熟後撈出，加入醬油",
}


def decode(content, *encodings):
    return decode_file(content, list(encodings), "formats.x.encodings")


@pytest.mark.parametrize("encoding", OTHERS)
def test_no_other_encoding_is_taken_for_gb18030(encoding):
    assert decode(OTHERS[encoding].encode(encoding), "utf-8", "gb18030") is None


@pytest.mark.parametrize("encoding", [e for e in OTHERS if e not in ("cp1252", "latin-1")])
def test_no_other_script_is_taken_for_latin_1(encoding):
    content = OTHERS[encoding].encode(encoding)
    assert decode(content, "utf-8", "latin-1") in (None, OTHERS[encoding])


@pytest.mark.parametrize("encoding", OTHERS)
def test_an_encoding_that_is_named_alone_behind_utf_8_is_right(encoding):
    text = OTHERS[encoding]
    assert decode(text.encode(encoding), "utf-8", encoding) == text
    assert decode(text.encode(encoding), "utf-8", "gb18030", encoding) == text


@pytest.mark.parametrize(
    "text",
    [
        CHINESE,
        f"# Soba\n\n{CHINESE} With 2 cups of water.",
        "# 中文\n\n国标",
        "ももクロ 嵐",
        "It\u2019s “hot” — so…",
        'И как говорил мой дорогой товарищ:"лавки-скамейки"',
        "ΚΑΛΗΜΕΡΑ ΚΟΣΜΕ",  # GB 2312 has no accents
    ],
)
def test_gb18030_is_decoded(text):
    assert decode(text.encode("gb18030"), "utf-8", "gb18030") == text


def test_a_byte_order_mark_decides_and_nul_is_no_text():
    for encoding in ("utf-8-sig", "utf-16"):
        assert decode(CHINESE.encode(encoding), "latin-1") == CHINESE
    assert decode(b"a\0b", "utf-8") is None


@pytest.mark.parametrize("text", ["§Ä", "§a §b", "siehe §Ý 5", "¦¡ ¦¢"])
def test_a_few_western_symbols_are_not_taken_for_letters_of_gb_2312(text):
    assert decode(text.encode("cp1252"), "utf-8", "gb18030") is None


def test_an_encoding_is_judged_by_all_lines_that_fit_no_earlier_one():
    lines = [line.encode("gb18030") for line in ["荞麦", "饺子", CHINESE, CHINESE]]
    assert select_plausible([*lines, "é".encode()], ["utf-8", "gb18030"]) == ["utf-8", "gb18030"]
    assert select_plausible(lines[:2], ["utf-8", "gb18030"]) == ["utf-8"]
