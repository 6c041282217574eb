import pyarrow as pa
import pytest

from stages.shared.core.schemas import (
    CHUNKS,
    FACTS,
    PREFERENCE_PAIRS,
    RECORDS,
    read_parquet,
    write_parquet,
)
from stages.shared.runtime.stage import InputError

ARTICLE = {
    "id": "a",
    "split": "train",
    "language": "zh",
    "source": "a.md",
    "title": "红烧肉",
    "blocks": [{"image": "00ff", "text": None}, {"image": None, "text": "第一步"}],
}


def test_rows_are_read_as_written(tmp_path):
    path = tmp_path / "new" / "records.parquet"
    write_parquet(path, [ARTICLE], RECORDS["articles"])
    assert read_parquet(path, RECORDS["articles"]) == [ARTICLE]


@pytest.mark.parametrize("schema", [RECORDS["captions"], CHUNKS, PREFERENCE_PAIRS, FACTS])
def test_a_table_without_rows_keeps_its_columns(tmp_path, schema):
    write_parquet(tmp_path / "empty.parquet", [], schema)
    assert read_parquet(tmp_path / "empty.parquet", schema) == []


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ["one", "two"]:
        write_parquet(tmp_path / name, [ARTICLE] * 3, RECORDS["articles"])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_value_of_the_wrong_type_is_an_error(tmp_path):
    row = {"record": "a", "position": "first", "slot": "place", "value": "beach"}
    with pytest.raises(pa.ArrowException):
        write_parquet(tmp_path / "facts.parquet", [row], FACTS)


def test_a_missing_or_outdated_table_is_an_error_that_names_the_fix(tmp_path):
    with pytest.raises(InputError, match=r"facts.parquet is missing: run `dvc repro`"):
        read_parquet(tmp_path / "facts.parquet", FACTS)
    write_parquet(tmp_path / "facts.parquet", [], PREFERENCE_PAIRS)
    with pytest.raises(InputError, match=r"facts.parquet was written by another version"):
        read_parquet(tmp_path / "facts.parquet", FACTS)
