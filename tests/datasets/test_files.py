"""Lines of files, JSON values and names, as other programs write them."""

from unicodedata import normalize

import pytest
from pydantic import BaseModel

from stages.datasets.common.files import (
    index_images,
    parse_json_line,
    read_lines,
    resolve_image_file,
)
from stages.shared.data.records import ImageFile, Rejection
from tests.support.published_corpus import write_image


class Row(BaseModel):
    text: str | None = None
    values: list[float | None] = []


def parse(line):
    row = parse_json_line(Row, "a.jsonl:1", line)
    return row.reason if isinstance(row, Rejection) else row


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ('{"text": NaN}', Row()),
        ('{"text": "NaN"}', Row(text="NaN")),
        ('{"values": [1, NaN]}', Row(values=[1, None])),
        ('{"text": "é\\u00e9", "values": [NaN]}', Row(text="éé", values=[None])),
    ],
)
def test_nan_is_a_missing_value(line, row):
    assert parse(line) == row


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": Infinity}', "wrong field: text: "),
        ('{"text": NaN, "values": [-Infinity', "not JSON: "),
        ('{"text": "a", "text": "b"}', "not JSON: the key 'text' occurs twice"),
        ('{"values": [{"b": 1, "b": 1}]}', "not JSON: the key 'b' occurs twice"),
        ('{"text": ' + "[" * 100_000, "not JSON: "),
    ],
)
def test_a_value_that_would_be_lost_is_rejected_by_name(line, reason):
    assert parse(line).startswith(reason)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_lines_do_not_depend_on_encoding_and_line_end(tmp_path, encoding, line_end):
    lines = ["把面放入水中，煮好以后加入油", "", "two\u2028parts", "end"]
    (tmp_path / "a.txt").write_bytes(line_end.join(lines).encode(encoding))
    assert list(read_lines(tmp_path / "a.txt", ["utf-8", "gb18030"], "key")) == [
        ("a.txt:1", lines[0]),
        ("a.txt:3", lines[2]),
        ("a.txt:4", lines[3]),
    ]


def test_names_are_compared_in_nfc(tmp_path):
    composed, decomposed = (normalize(form, "café") for form in ("NFC", "NFD"))
    write_image(tmp_path / "images" / f"{decomposed}.png")
    paths = index_images(tmp_path, ["images"])
    for name in (composed, decomposed):
        file = ImageFile(f"images/{decomposed}.png", tmp_path)
        assert resolve_image_file(name, paths, tmp_path) == file
