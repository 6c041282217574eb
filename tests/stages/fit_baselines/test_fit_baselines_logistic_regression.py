import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stages.fit_baselines.logistic_regression import (
    TOLERANCE,
    LogisticPrediction,
    fuse_decisions,
    predict_labels,
)

GRID = [1.0, 0.01, 0.1]


def make_items(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Three classes with overlapping features of different scale, and a constant feature."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=count)
    features = generator.normal(size=(count, 6)) + 1.2 * np.eye(6)[labels]
    features = features * [1, 10, 0.1, 1, 1, 0] + 5
    return features, [f"class {label}" for label in labels]


def test_predictions_equal_those_of_scikit_learn_with_the_best_c():
    train, validation, test = (make_items(count, seed) for seed, count in enumerate((120, 60, 50)))
    prediction = predict_labels(train, validation, test[0], GRID, 300)
    accuracies = {}
    for c in sorted(GRID):
        classifier = LogisticRegression(C=c, max_iter=300, tol=TOLERANCE)
        pipeline = make_pipeline(StandardScaler(), classifier).fit(*train)
        accuracies[c] = pipeline.score(*validation)
        if c == prediction.inverse_regularization:
            assert prediction.labels == pipeline.predict(test[0]).tolist()
            expected = pipeline.predict_proba(test[0]).max(1)
            np.testing.assert_allclose(prediction.probabilities, expected, atol=0.01)
    assert accuracies[prediction.inverse_regularization] == max(accuracies.values())
    assert np.mean([a == b for a, b in zip(prediction.labels, test[1], strict=True)]) > 0.5


def test_without_validation_items_the_strongest_regularization_is_used():
    train, test = make_items(60, 0), make_items(10, 1)
    prediction = predict_labels(train, (train[0][:0], []), test[0], GRID, 300)
    assert prediction.inverse_regularization == min(GRID)


def test_decision_fusion_averages_the_probabilities_of_text_and_image():
    text = LogisticPrediction(["a", "b"], np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]), 1.0)
    image = LogisticPrediction(["a", "b"], np.array([[0.2, 0.8], [0.8, 0.2], [0.1, 0.9]]), 0.1)
    fused = fuse_decisions(text, image)
    assert fused.labels == ["a", "a", "b"]
    assert fused.probabilities == pytest.approx([0.55, 0.6, 0.8])


def test_a_single_class_is_predicted_everywhere():
    features = np.ones((3, 2))
    prediction = predict_labels((features, ["a"] * 3), (features, ["b"] * 3), features, GRID, 9)
    assert (prediction.labels, prediction.probabilities) == (["a"] * 3, [1.0] * 3)
    assert prediction.inverse_regularization is None


@pytest.mark.parametrize("count", [0, 1])
def test_few_items_are_predicted(count):
    train = make_items(30, 0)
    prediction = predict_labels(train, train, train[0][:count], GRID, 50)
    assert len(prediction.labels) == len(prediction.probabilities) == count
