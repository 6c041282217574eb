import json
import time

import numpy as np
import pytest

from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError


def pictures(count: int, patches: int = 4, width: int = 6):
    random = np.random.default_rng(0)
    names = [f"{i:064x}" for i in range(count)]
    rows = [
        {
            "pooled": random.standard_normal(8).astype(np.float16),
            "patches": random.standard_normal((patches, width)).astype(np.float16),
        }
        for _ in names
    ]
    return names, rows


def texts(lengths: list[int], width: int = 5):
    random = np.random.default_rng(1)
    names = [f"text {i}" for i in range(len(lengths))]
    rows = [
        {
            "pooled": random.standard_normal(8).astype(np.float16),
            "tokens": random.standard_normal((length, width)).astype(np.float16),
        }
        for length in lengths
    ]
    pieces = [
        [f"{name} {place}" for place in range(length)]
        for name, length in zip(names, lengths, strict=True)
    ]
    return names, pieces, rows


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "ROWS_PER_BATCH", 3)  # several row groups
    (names, rows), (words, pieces, spoken) = pictures(8), texts([3, 1, 7, 2])
    feature_store.write_features(tmp_path, (names, iter(rows)), (words, pieces, iter(spoken)))
    found = feature_store.read_features(tmp_path)
    assert found.text_kind == "encoder"
    assert (found.pooled.dtype, found.patches.shape) == (np.float16, (8, 4, 6))
    for name, row in zip(names, rows, strict=True):
        place = found.image_index[name]
        assert found.pooled[place].tobytes() == row["pooled"].tobytes()
        assert found.patches[place].tobytes() == row["patches"].tobytes()
    assert found.tokens.shape == (4, 7, 5)
    assert found.subwords == pieces
    for word, row in zip(words, spoken, strict=True):
        place, length = found.text_index[word], len(row["tokens"])
        assert found.text_pooled[place].tobytes() == row["pooled"].tobytes()
        assert found.tokens[place, :length].tobytes() == row["tokens"].tobytes()
        assert found.token_mask[place].tolist() == [True] * length + [False] * (7 - length)
        assert not found.tokens[place, length:].any()


def test_without_text_features_the_texts_are_learned(tmp_path):
    feature_store.write_features(tmp_path, pictures(2), None)
    found = feature_store.read_features(tmp_path)
    assert found.text_kind == "learned"
    assert found.text_index is found.text_pooled is found.tokens is found.token_mask is None
    assert found.subwords is None
    assert json.loads((tmp_path / "summary.json").read_text())["texts"] == 0


def test_pictures_of_further_folders_follow_and_those_known_already_do_not(tmp_path):
    (names, rows), (more, others) = pictures(3), pictures(5)
    others = [{name: value + 1 for name, value in row.items()} for row in others]
    for name, given, said in [
        ("a", (names, rows), texts([2])),
        ("b", (more[2:], others[2:]), None),
    ]:
        (tmp_path / name).mkdir()
        feature_store.write_features(tmp_path / name, given, said)
    alone = feature_store.read_features(tmp_path / "a")
    found = feature_store.read_features(tmp_path / "a", tmp_path / "absent", tmp_path / "b")
    assert list(found.image_index) == more
    for name, row in zip(more, [*rows, *others[3:]], strict=True):
        place = found.image_index[name]
        assert found.pooled[place].tobytes() == row["pooled"].tobytes()
        assert found.patches[place].tobytes() == row["patches"].tobytes()
    assert (found.text_kind, found.text_index) == (alone.text_kind, alone.text_index)
    assert (
        feature_store.read_features(tmp_path / "a", tmp_path / "a").image_index == alone.image_index
    )


def test_what_needs_pooled_features_only_reads_no_patches(tmp_path):
    names, rows = pictures(3)
    feature_store.write_features(tmp_path, (names, rows), None)
    (tmp_path / "patches.parquet").unlink()
    index, pooled = feature_store.read_pooled_images(tmp_path)
    assert [pooled[index[name]].tobytes() for name in names] == [
        r["pooled"].tobytes() for r in rows
    ]


def test_equal_features_give_equal_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        feature_store.write_features(tmp_path / name, pictures(5), texts([1, 2]))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_names_and_rows_must_be_as_many(tmp_path):
    names, rows = pictures(3)
    with pytest.raises(ValueError):
        feature_store.write_features(tmp_path, (names, rows[:2]), None)


def test_a_folder_without_features_is_named(tmp_path):
    with pytest.raises(InputError, match=r"summary\.json is missing: run `dvc repro`"):
        feature_store.read_features(tmp_path)


def test_five_thousand_pictures_are_read_faster_than_python_lists_could(tmp_path):
    names = [f"{i:064x}" for i in range(5000)]
    row = {"pooled": np.ones(384, np.float16), "patches": np.ones((16, 128), np.float16)}
    feature_store.write_features(tmp_path, (names, [row] * 5000), None)
    started = time.process_time()
    found = feature_store.read_features(tmp_path)
    assert time.process_time() - started < 1.0  # to_pylist takes about ten times as long
    assert found.patches.shape == (5000, 16, 128)
