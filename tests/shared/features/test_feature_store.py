import json
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.shared.features import store as feature_store
from stages.shared.features.mapped_rows import map_column
from stages.shared.runtime.stage import InputError
from tests.support.project_files import ROOT


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


def test_any_rows_are_read_from_several_row_groups_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "ROWS_PER_BATCH", 3)
    names, rows = make_images(8)
    feature_store.write_features(tmp_path, (names, rows), None)
    mapped = map_column(tmp_path / "patches.parquet", "patches")
    patches = np.stack([row["patches"] for row in rows])
    indices = np.array([[7, 0, 3], [2, 7, 5]])
    both = mapped.append(mapped)
    assert (mapped.shape, both.shape) == ((8, 4, 6), (16, 4, 6))
    for expected, actual in [
        (patches[indices], mapped[indices]),
        (patches[4], mapped[4]),
        (patches[indices], both[indices + 8]),
        (patches[:0], mapped[[]]),
        (patches, mapped.read()),
    ]:
        assert (actual.shape, actual.dtype) == (expected.shape, np.float16)
        assert actual.tobytes() == expected.tobytes()
    for index in (8, -1, [0, 8]):
        with pytest.raises(IndexError):
            mapped[index]


def test_mapped_rows_are_those_that_other_tools_read(tmp_path):
    """30,000 tokens in a row group: more than the 20,000 rows of a page by default."""
    feature_store.write_features(tmp_path, make_images(1), make_texts([100] * 300))
    table = pq.read_table(tmp_path / "tokens.parquet")
    tokens = np.concatenate([part.flatten() for part in table.column("token").chunks])
    mapped = map_column(tmp_path / "tokens.parquet", "token")
    assert mapped.shape == (30_000, 5)
    assert mapped.read().tobytes() == tokens.tobytes()


@pytest.mark.parametrize("changes", [{"data_page_size": 64}, {"compression": "zstd"}])
def test_a_file_in_another_layout_is_not_mapped(tmp_path, changes):
    feature_store.write_features(tmp_path, make_images(100), None)
    path = tmp_path / "patches.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 4} | changes
    pq.write_table(pq.read_table(path), path, **options)
    with pytest.raises(InputError, match=r"patches\.parquet was written by another version"):
        feature_store.read_features(tmp_path)


def test_own_memory_does_not_hold_the_patches(tmp_path):
    """100 MB of patches: reading a batch allocates little, in a process of its own."""
    row = {"pooled": np.ones(8, np.float16), "patches": np.ones((64, 512), np.float16)}
    names = [f"{i:064x}" for i in range(1600)]
    feature_store.write_features(tmp_path, (names, [row] * 1600), None)
    code = textwrap.dedent(f"""
        from pathlib import Path
        from stages.shared.features import store
        def own():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        before = own()
        features = store.read_features(Path({str(tmp_path)!r}))
        assert all(features.patches[[row, row + 800]].all() for row in range(800))
        print(own() - before)
    """)
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert int(output.stdout) < 60_000  # kB; pyarrow and its threads take half of them
