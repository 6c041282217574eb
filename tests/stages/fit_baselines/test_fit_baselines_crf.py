"""The CRF against the enumeration of all tag sequences, and what it learns."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from stages.fit_baselines.config import CrfConfig
from stages.fit_baselines.crf import LinearChainCrf, evaluate_f1, predict_tags

NUM_TAGS, WIDTH = 3, 4
CONFIG = CrfConfig(seed=0, max_epochs=40, patience=10, batch_size=8, learning_rate=0.1)


def make_model() -> LinearChainCrf:
    """With random weights and a standardization that is not the identity."""
    generator = torch.Generator().manual_seed(1)
    mean = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    model = LinearChainCrf(mean, np.full(WIDTH, 2, np.float32), NUM_TAGS)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    return model


def make_features(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(2)
    return [generator.normal(size=(length, WIDTH)).astype(np.float32) for length in lengths]


def score(model: LinearChainCrf, features: np.ndarray, tags: tuple[int, ...]) -> float:
    """The exponent of p(y | x), term by term."""
    crf, x = model.transitions, (features - model.mean.numpy()) / model.deviation.numpy()
    emissions = model.emissions.weight.detach().numpy() @ x.T  # (K, W)
    emissions += model.emissions.bias.detach().numpy()[:, None]
    total = crf.start_transitions[tags[0]].item() + crf.end_transitions[tags[-1]].item()
    total += sum(emissions[tag, position] for position, tag in enumerate(tags))
    return total + sum(crf.transitions[a, b].item() for a, b in pairwise(tags))


def enumerate_scores(model: LinearChainCrf, features: np.ndarray) -> dict[tuple[int, ...], float]:
    sequences = product(range(NUM_TAGS), repeat=len(features))
    return {tags: score(model, features, tags) for tags in sequences}


def test_the_loss_equals_the_enumeration_of_all_tag_sequences():
    model, features = make_model(), make_features(4, 1, 3)
    tags = [[0, 2, 1, 1], [2], [1, 1, 0]]
    expected = []
    for item, gold in zip(features, tags, strict=True):
        scores = enumerate_scores(model, item)
        log_normalizer = np.log(np.sum(np.exp(list(scores.values()))))
        expected.append(log_normalizer - scores[tuple(gold)])
    assert model.loss(features, tags).item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_decoding_finds_the_most_probable_of_all_tag_sequences(batch_size):
    model, features = make_model(), make_features(5, 1, 0, 3)
    expected = []
    for item in features:
        scores = enumerate_scores(model, item) if len(item) else {}
        expected.append(list(max(scores, key=lambda tags: scores[tags], default=())))
    assert model.decode(features, batch_size) == expected


def make_items(count: int, seed: int) -> tuple[list[np.ndarray], list[list[str]]]:
    """Words whose features tell where an entity begins; the word after it always continues it."""
    generator = np.random.default_rng(seed)
    features, tags = [], []
    for _ in range(count):
        begins = generator.integers(0, 4)
        row = ["O"] * 6
        row[begins : begins + 2] = ["B-PER", "I-PER"]
        x = generator.normal(scale=0.1, size=(6, WIDTH)).astype(np.float32)
        x[begins, 0] += 2
        features.append(x)
        tags.append(row)
    return features, tags


def test_it_learns_transitions_that_no_single_word_shows():
    train, validation, test = make_items(60, 0), make_items(20, 1), make_items(20, 2)
    tags, epochs = predict_tags(train, validation, test[0], CONFIG)
    assert evaluate_f1(tags, test[1]) == 1 and 1 <= epochs <= CONFIG.max_epochs


def test_the_same_seed_gives_the_same_tags_and_the_global_generator_is_not_used():
    train, validation, test = make_items(30, 0), make_items(10, 1), make_items(10, 2)
    state = torch.random.get_rng_state()
    first = predict_tags(train, validation, test[0], CONFIG)
    torch.manual_seed(99)
    assert predict_tags(train, validation, test[0], CONFIG) == first
    torch.random.set_rng_state(state)


def test_without_validation_items_all_epochs_are_used():
    train = make_items(10, 0)
    _, epochs = predict_tags(train, ([], []), train[0][:2], CONFIG)
    assert epochs == CONFIG.max_epochs


def test_truncated_words_and_texts_without_words_are_not_predicted():
    features, tags = make_items(10, 0)
    train = [features[0][:4], *features[1:], features[0][:0]], [*tags, []]
    predicted, _ = predict_tags(train, ([], []), train[0], CONFIG)
    assert [len(row) for row in predicted] == [4, *[6] * 9, 0]
