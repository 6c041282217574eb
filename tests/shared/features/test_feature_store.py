import json
import time

import numpy as np
import pytest

from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError


def make_images(count: int, patches: int = 4, width: int = 6):
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


def make_texts(lengths: list[int], width: int = 5):
    random = np.random.default_rng(1)
    names = [f"text {i}" for i in range(len(lengths))]
    rows = [
        {
            "pooled": random.standard_normal(8).astype(np.float16),
            "tokens": random.standard_normal((length, width)).astype(np.float16),
        }
        for length in lengths
    ]
    subwords = [
        [f"{name} {index}" for index in range(length)]
        for name, length in zip(names, lengths, strict=True)
    ]
    return names, subwords, rows


def test_features_are_read_bit_for_bit_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "ROWS_PER_BATCH", 3)  # several row groups
    names, rows = make_images(8)
    texts, subwords, text_rows = make_texts([3, 1, 7, 2])
    feature_store.write_features(tmp_path, (names, iter(rows)), (texts, subwords, iter(text_rows)))
    features = feature_store.read_features(tmp_path)
    assert features.text_kind == "encoder"
    assert (features.pooled.dtype, features.patches.shape) == (np.float16, (8, 4, 6))
    for name, row in zip(names, rows, strict=True):
        index = features.image_index[name]
        assert features.pooled[index].tobytes() == row["pooled"].tobytes()
        assert features.patches[index].tobytes() == row["patches"].tobytes()
    assert features.tokens.shape == (4, 7, 5)
    assert features.subwords == subwords
    for text, row in zip(texts, text_rows, strict=True):
        index, length = features.text_index[text], len(row["tokens"])
        assert features.text_pooled[index].tobytes() == row["pooled"].tobytes()
        assert features.tokens[index][:length].tobytes() == row["tokens"].tobytes()
        assert features.token_mask[index].tolist() == [True] * length + [False] * (7 - length)
        assert not features.tokens[index][length:].any()
        assert np.array_equal(features.text_tokens(index), row["tokens"])


def test_without_text_features_the_texts_are_learned(tmp_path):
    feature_store.write_features(tmp_path, make_images(2), None)
    features = feature_store.read_features(tmp_path)
    assert features.text_kind == "learned"
    assert not features.text_index and not features.subwords
    assert features.text_pooled.size == features.tokens.size == features.token_mask.size == 0
    assert features.token_width == 0
    assert json.loads((tmp_path / "summary.json").read_text())["texts"] == 0


def test_new_images_of_further_folders_are_appended(tmp_path):
    (names, rows), (more_names, more_rows) = make_images(3), make_images(5)
    more_rows = [{name: value + 1 for name, value in row.items()} for row in more_rows]
    for name, images, texts in [
        ("a", (names, rows), make_texts([2])),
        ("b", (more_names[2:], more_rows[2:]), None),
    ]:
        (tmp_path / name).mkdir()
        feature_store.write_features(tmp_path / name, images, texts)
    first = feature_store.read_features(tmp_path / "a")
    features = feature_store.read_features(tmp_path / "a", tmp_path / "absent", tmp_path / "b")
    assert list(features.image_index) == more_names
    for name, row in zip(more_names, [*rows, *more_rows[3:]], strict=True):
        index = features.image_index[name]
        assert features.pooled[index].tobytes() == row["pooled"].tobytes()
        assert features.patches[index].tobytes() == row["patches"].tobytes()
    assert (features.text_kind, features.text_index) == (first.text_kind, first.text_index)
    assert (
        feature_store.read_features(tmp_path / "a", tmp_path / "a").image_index == first.image_index
    )


def test_reading_pooled_features_does_not_read_patches(tmp_path):
    names, rows = make_images(3)
    feature_store.write_features(tmp_path, (names, rows), None)
    (tmp_path / "patches.parquet").unlink()
    index, pooled = feature_store.read_pooled_images(tmp_path)
    assert [pooled[index[name]].tobytes() for name in names] == [
        r["pooled"].tobytes() for r in rows
    ]


def test_equal_features_give_equal_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        feature_store.write_features(tmp_path / name, make_images(5), make_texts([1, 2]))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_names_and_rows_of_different_number_are_an_error(tmp_path):
    names, rows = make_images(3)
    with pytest.raises(ValueError):
        feature_store.write_features(tmp_path, (names, rows[:2]), None)


def test_a_folder_without_features_is_named(tmp_path):
    with pytest.raises(InputError, match=r"summary\.json is missing: run `dvc repro`"):
        feature_store.read_features(tmp_path)


def test_five_thousand_images_are_read_without_python_lists(tmp_path):
    names = [f"{i:064x}" for i in range(5000)]
    row = {"pooled": np.ones(384, np.float16), "patches": np.ones((16, 128), np.float16)}
    feature_store.write_features(tmp_path, (names, [row] * 5000), None)
    started = time.process_time()
    features = feature_store.read_features(tmp_path)
    assert time.process_time() - started < 1.0  # to_pylist takes about ten times as long
    assert features.patches.shape == (5000, 16, 128)
