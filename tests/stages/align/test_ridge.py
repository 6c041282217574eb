import numpy as np
import pytest
from sklearn.linear_model import Ridge

from stages.align import projections, ridge
from stages.shared.retrieval.pairs import ImageTexts, PairFeatures

PENALTIES = [0.01, 1.0, 100.0]


def make_data(count, width=12, targets=5):
    random = np.random.default_rng(count)
    x, y = random.normal(size=(count, width)), random.normal(size=(count, targets))
    return x - x.mean(0), y - y.mean(0)


def in_batches(x, y, size=7):
    return ((x[start : start + size], y[start : start + size]) for start in range(0, len(x), size))


@pytest.mark.parametrize("count", [5, 12, 60])  # dual, primal with as many rows as columns, primal
def test_ridge_is_that_of_scikit_learn_and_solves_the_normal_equations(count):
    x, y = make_data(count)
    path = ridge.ridge_path(in_batches(x, y), count, 12, PENALTIES)
    for weight, penalty in zip(path, PENALTIES, strict=True):
        expected = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(x, y).coef_.T
        np.testing.assert_allclose(weight, expected, atol=1e-9)
        np.testing.assert_allclose(x.T @ (x @ weight - y) + penalty * weight, 0, atol=1e-9)


def make_features(count, seed=0, texts_per_image=2):
    """Pairs whose text vector is a linear map of the image's power-normalized features."""
    random = np.random.default_rng(seed)
    images = random.uniform(0, 1, (count, 1280)).astype(np.float16)
    inputs = np.sqrt(images.astype(np.float64))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    mapping = np.random.default_rng(9).normal(size=(1280, 384))
    texts = np.repeat(inputs @ mapping, texts_per_image, axis=0)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    splits = ["train", "train", "train", "validation"]
    pairs = [
        ImageTexts(f"{row}", [f"{row} {text}" for text in range(texts_per_image)], splits[row % 4])
        for row in range(count)
    ]
    starts = np.arange(0, count * texts_per_image + 1, texts_per_image)
    return PairFeatures(pairs, images, texts.astype(np.float16), starts)


@pytest.mark.parametrize("rows_per_batch", [7, 4096])
def test_the_projections_of_ridge_are_those_of_numpy(monkeypatch, rows_per_batch):
    monkeypatch.setattr(projections, "ROWS_PER_BATCH", rows_per_batch)
    train = projections.load_split([make_features(40)], "train")
    [fitted] = projections.fit_ridge(train, [0.5])
    x = np.sqrt(train.images.astype(np.float64))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = train.texts.astype(np.float64).reshape(30, 2, 384).mean(1)
    x_centered, y_centered = x - x.mean(0), y - y.mean(0)
    penalty = 0.5 * (x_centered**2).sum(1).mean()
    expected = np.linalg.solve(
        x_centered.T @ x_centered + penalty * np.eye(1280), x_centered.T @ y_centered
    )
    np.testing.assert_allclose(fitted.image.weight.detach().numpy().T, expected, atol=1e-4)
    np.testing.assert_allclose(fitted.image_mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(fitted.text_mean, y.mean(0), atol=1e-4)


def test_pairs_of_several_corpora_keep_their_texts():
    parts = [make_features(8, seed=1), make_features(12, seed=2, texts_per_image=3)]
    merged = projections.load_split(parts, "validation")
    assert len(merged.text_rows) == 2 + 3
    assert [merged.strings[row] for row in merged.first_texts()] == [
        "3 0",
        "7 0",
        "3 0",
        "7 0",
        "11 0",
    ]
    np.testing.assert_array_equal(merged.images[3], parts[1].images[7])
    np.testing.assert_array_equal(merged.texts[merged.text_rows[3]], parts[1].texts[21:24])
    np.testing.assert_array_equal(
        projections.mean_texts(merged, range(3, 4))[0],
        parts[1].texts[21:24].astype(np.float32).mean(0),
    )


def test_a_batch_has_distinct_images_each_with_one_of_its_texts():
    from tests.stages.align.test_align import SCHEDULE

    train = projections.load_split([make_features(40)], "train")
    ids = projections.index_strings(train.strings)
    first, again = (projections.contrast_batch(train, ids, SCHEDULE, 3) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    images = [
        train.images.astype(np.float32).tolist().index(row.tolist()) for row in first["images"]
    ]
    assert len(set(images)) == 16
    for image, text in zip(images, first["text_ids"].tolist(), strict=True):
        assert text in train.text_rows[image]
