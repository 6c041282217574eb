import pytest

from stages.ingest.language_codes import NAMES_FILE, parse_language


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, "en") for name in ["en", "EN ", "eng", "English", "english (US)", "en-GB"]),
        *((name, "en") for name in ["en_US.UTF-8", "ENGLISH, British", "\uff45\uff4e"]),
        *((name, "de") for name in ["ger", "deu", "Deutsch", "German"]),
        *((name, "zh") for name in ["zh-Hans", "chi", "zho", "cmn", "中文", "Chinese (Taiwan)"]),
        *((name, "el") for name in ["Modern Greek", "gre", "Ελληνικά"]),
        ("pt_BR", "pt"),
        ("nb", "nb"),
        ("norsk bokmål", "nb"),
        *((name, None) for name in ["", " ", "und", "unknown", "mul"]),
    ],
)
def test_codes_and_names_become_iso_639_1(name, code):
    assert parse_language(name) == code


@pytest.mark.parametrize("name", ["xx", "Klingon", "en/fr", "engl", "0", "the English language"])
def test_another_name_is_an_error_that_quotes_it(name):
    with pytest.raises(ValueError, match=rf"{name!r} is no language: give an ISO 639-1 code"):
        parse_language(name)


def test_no_name_has_two_codes():
    rows = [line.split("\t") for line in NAMES_FILE.read_text(encoding="utf-8").splitlines()]
    names = [name.casefold() for row in rows for name in row]
    assert len(rows) == 184 and len(names) == len(set(names))
