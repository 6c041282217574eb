"""Logistic regression on frozen features, with the regularization chosen on validation items."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from stages.fit_baselines.features import fit_standardization

TOLERANCE = 1e-3  # of L-BFGS; scikit-learn's 1e-4 changes no prediction and takes longer


@dataclass(frozen=True)
class LogisticPrediction:
    """The probabilities of C classes for N items and the chosen C (None: nothing fitted)."""

    classes: list[str]
    class_probabilities: np.ndarray  # (N, C)
    inverse_regularization: float | None

    @property
    def labels(self) -> list[str]:
        """The most probable class of each item."""
        return [self.classes[index] for index in self.class_probabilities.argmax(1)]

    @property
    def probabilities(self) -> list[float]:
        """Those of the labels."""
        return self.class_probabilities.max(1).tolist()


def fuse_decisions(text: LogisticPrediction, image: LogisticPrediction) -> LogisticPrediction:
    """Decision fusion (late fusion): the mean of the probabilities from text and from image."""
    assert text.classes == image.classes  # both were fitted on the same items
    mean = (text.class_probabilities + image.class_probabilities) / 2
    return LogisticPrediction(text.classes, mean, None)


def predict_labels(
    train: tuple[np.ndarray, list[str]],
    validation: tuple[np.ndarray, list[str]],
    predicted: np.ndarray,
    grid: list[float],
    max_iter: int,
) -> LogisticPrediction:
    """Fit on `train`, choose C on `validation`, predict the items of `predicted`.

    train, validation: features (N, D) and labels. The features are standardized by those of
    `train`. The strongest regularization of the best accuracy is used; without validation items,
    the strongest of all. If `train` has one label only, it is predicted everywhere.
    """
    features, labels = train
    if len(set(labels)) == 1 or not len(predicted):
        return LogisticPrediction(labels[:1], np.ones((len(predicted), 1)), None)
    mean, deviation = fit_standardization(features)
    standardized = (features - mean) / deviation
    chosen = (validation[0] - mean) / deviation
    model = LogisticRegression(max_iter=max_iter, tol=TOLERANCE, warm_start=True)
    best_accuracy, best_c, best_probabilities = -1.0, grid[0], np.zeros((0, 0))
    for inverse_regularization in sorted(grid):  # each fit starts from the previous weights
        model.set_params(C=inverse_regularization).fit(standardized, labels)
        accuracy = float(model.score(chosen, validation[1])) if validation[1] else 0.0
        if accuracy > best_accuracy:
            best_accuracy, best_c = accuracy, inverse_regularization
            best_probabilities = model.predict_proba((predicted - mean) / deviation)
    return LogisticPrediction(list(map(str, model.classes_)), best_probabilities, best_c)
