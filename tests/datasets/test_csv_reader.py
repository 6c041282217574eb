"""Quotes in tables: letters between tabs, and never around other rows."""

import csv
import io

import pytest

from stages.datasets.common.csv_reader import read_csv
from stages.shared.data.records import Rejection

HEADER = ["image", "text", "label"]


def read(tmp_path, content, name="a.tsv"):
    """The rows as lists of cells; a rejection as its line number."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    _, rows = read_csv(tmp_path / name, ["utf-8"], "formats.x.encodings")
    return [
        int(row.source.split(":")[1]) if isinstance(row, Rejection) else list(row[1].values())
        for row in rows
    ]


def join(rows, delimiter):
    return "".join(delimiter.join(row) + "\n" for row in [HEADER, *rows])


def write(rows, delimiter, **options):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n", **options).writerows([HEADER, *rows])
    return file.getvalue()


def test_quotes_between_tabs_are_letters(tmp_path):
    rows = [
        ["m0", '"When the soup is cold', "positive"],
        ["m1", "plain", "negative"],
        ["m2", 'and nobody cares"', "negative"],
        ["m3", '"What?" she asked', "positive"],
        ["m4", '5" of snow', "positive"],
        ["m5", '"quoted"', "negative"],
        ["m6", '"', "negative"],
    ]
    assert read(tmp_path, join(rows, "\t")) == rows
    assert read(tmp_path, join(rows, "\t").replace("\n", "\r\n")) == rows


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_cells_that_a_csv_writer_quoted_are_read_back(tmp_path, delimiter):
    rows = [["m0", 'say "no" now', "a"], ["m1", "two\nlines", "b"], ["m2", '"all"', "c"]]
    assert read(tmp_path, write(rows, delimiter), "a.csv") == rows
    assert read(tmp_path, write(rows[:1], delimiter), "a.csv") == rows[:1]
    assert read(tmp_path, write(rows[1:2], delimiter), "a.csv") == rows[1:2]
    quoted = write([["m0", "plain", "a"]], delimiter, quoting=csv.QUOTE_ALL)
    assert read(tmp_path, quoted, "a.csv") == [["m0", "plain", "a"]]


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_rows_between_two_quotes_are_rejected_by_their_lines(tmp_path, delimiter):
    rows = [["m0", '"open', "a"], ["m1", "plain", "b"], ["m2", 'close"', "c"], ["m3", "x", "d"]]
    assert read(tmp_path, join(rows, delimiter), "a.csv") == [2, 3, 4, rows[3]]


@pytest.mark.parametrize("gap", [1, 12])
def test_rows_with_known_labels_between_two_quotes_are_read(tmp_path, gap):
    rows = [[f"m{n}", f"text {n}", "yes" if n % 2 else "no"] for n in range(10 + gap)]
    first, last = 4, 5 + gap
    lines = join(rows, ",").splitlines()
    lines[1 + first] = f'm{first},"open, with a comma,no'
    lines[1 + last] = f'm{last},close",yes'
    read_back: list = list(rows)
    read_back[first], read_back[last] = 2 + first, 2 + last
    assert read(tmp_path, "\n".join(lines), "a.csv") == read_back


def test_lines_of_a_text_that_are_no_rows_stay_in_it(tmp_path):
    rows = [[f"m{n}", f"text {n}", "yes" if n % 2 else "no"] for n in range(8)]
    text = "to buy\nmilk, eggs, bread\nno, two, yes please\nand soup"
    assert read(tmp_path, write([*rows, ["m8", text, "no"]], ","), "a.csv")[-1][1] == text


def test_a_text_over_lines_may_contain_the_delimiter(tmp_path):
    rows = [["m0", "soup, soup\nand more, soup,", "a"], ["m1", "\n", "b"]]
    rows += [["m2", "one, two\nthree, four", "c"], ["a, b\nc, d", "", ""]]
    assert read(tmp_path, write(rows, ","), "a.csv") == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_changes_nothing(tmp_path, encoding):
    content = write([["m0", "thé", "a"]], ",")
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    assert read(tmp_path, (mark + content).encode(encoding)) == [["m0", "thé", "a"]]
