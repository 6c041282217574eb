"""Entity and class metrics, with values derived by hand, seqeval and scikit-learn."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as seqeval_default
from seqeval.metrics.v1 import precision_recall_fscore_support as seqeval_scheme
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from stages.shared.metrics import classification as classification_metrics
from stages.shared.metrics.classification import (
    compute_class_scores,
    compute_entity_scores,
    extract_entities,
    extract_lenient_entities,
    extract_strict_entities,
)
from stages.shared.metrics.common import bootstrap_standard_errors, round_metrics

DRAWS = 200
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-A-B", "I-A-B", "B", "I"]


def scores(gold: list[str], predicted: list[str]) -> dict:
    """Entity scores of items; each item is a string of tags separated by spaces."""
    sides = [[item.split() for item in side] for side in (gold, predicted)]
    return compute_entity_scores(extract_entities(*sides), DRAWS, seed=0)


@pytest.mark.parametrize(
    ("tags", "lenient", "strict"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}, {("PER", 0, 2), ("LOC", 3, 4)}),
        ("O I-PER I-PER", {("PER", 1, 3)}, set()),
        ("B-PER I-LOC O", {("PER", 0, 1), ("LOC", 1, 2)}, {("PER", 0, 1)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}, {("PER", 0, 1), ("PER", 1, 3)}),
        ("O O", set(), set()),
        ("", set(), set()),
    ],
)
def test_an_orphan_i_tag_begins_a_lenient_entity_but_no_strict_one(tags, lenient, strict):
    assert extract_lenient_entities(tags.split()) == lenient
    assert extract_strict_entities(tags.split()) == strict


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_lenient_entities_are_those_of_seqeval(tags):
    expected = {(kind, first, last + 1) for kind, first, last in get_entities(tags)}
    assert extract_lenient_entities(tags) == expected


def test_entity_scores_match_values_derived_by_hand():
    """Gold: PER, LOC; PER. Predicted: PER correct, LOC one word too long; LOC at the span of PER.

    1 of 3 predicted is correct, and of 3 gold; the spans: 2 of 3. PER: 1 of 1, of 2 gold: F1 2/3.
    LOC: 0 of 2.
    """
    result = scores(["B-PER I-PER O B-LOC O", "B-PER O"], ["B-PER I-PER O B-LOC I-LOC", "B-LOC O"])
    for rule in ("lenient", "strict"):
        assert [result[rule][name] for name in ("right", "predicted", "gold")] == [1, 3, 3]
        assert result[rule]["f1"] == pytest.approx(1 / 3)
        person, place = (result[rule]["by_type"][name] for name in ("PER", "LOC"))
        assert (person["precision"], person["recall"]) == (1, 0.5)
        assert person["f1"] == pytest.approx(2 / 3)
        assert (place["f1"], place["predicted"], place["gold"]) == (0, 2, 1)
    assert result["spans"]["f1"] == pytest.approx(2 / 3) and "by_type" not in result["spans"]


def test_f1_without_its_standard_error_is_the_same_value():
    gold, predicted = [["B-PER", "O", "B-LOC"], ["B-PER", "O"]], [["B-PER", "O", "O"], ["O", "O"]]
    entities = extract_entities(gold, predicted)
    f1 = classification_metrics.compute_entity_f1(entities["lenient"])
    assert f1 == pytest.approx(2 * 1 / (1 + 3))
    assert f1 == pytest.approx(compute_entity_scores(entities, DRAWS, seed=0)["lenient"]["f1"])


def test_the_confusion_table_counts_each_span_once():
    """The same items: PER as PER, PER as LOC, a missed LOC, and a LOC without a gold entity."""
    result = scores(["B-PER I-PER O B-LOC O", "B-PER O"], ["B-PER I-PER O B-LOC I-LOC", "B-LOC O"])
    assert result["confusion"] == {
        "LOC": {"LOC": 0, "PER": 0, "(none)": 1},
        "PER": {"LOC": 1, "PER": 1, "(none)": 0},
        "(none)": {"LOC": 1, "PER": 0},
    }


def random_tags(generator: random.Random, choices: list[str]) -> list[str]:
    """Random tags: orphans, changes of type inside an entity, tags without a type."""
    return generator.choices(choices, k=generator.randrange(0, 9))


@pytest.mark.parametrize("seed", range(60))
def test_entity_scores_equal_those_of_seqeval_on_random_and_invalid_tags(seed):
    """Counts and every digit of precision, recall and F1 are equal, in total and by type."""
    generator = random.Random(seed)
    # Few tags make some items almost valid, and some types occur on one side only.
    choices = [generator.sample(TAGS, generator.randrange(1, len(TAGS))) for _ in range(2)]
    gold = [random_tags(generator, choices[0]) for _ in range(generator.randrange(1, 30))]
    predicted = [
        [tag if generator.random() < 0.5 else generator.choice(choices[1]) for tag in item]
        for item in gold
    ]
    result = compute_entity_scores(extract_entities(gold, predicted), DRAWS, seed=0)
    for rule, (oracle, options) in {
        "lenient": (seqeval_default, {}),
        "strict": (seqeval_scheme, {"scheme": IOB2}),
    }.items():
        expected = oracle(gold, predicted, average="micro", zero_division=0, **options)
        assert expected == tuple(result[rule][n] for n in ("precision", "recall", "f1", "gold"))
        by_type = oracle(gold, predicted, average=None, zero_division=0, **options)
        names = sorted(result[rule]["by_type"])
        for column, name in zip(by_type, ("precision", "recall", "f1", "gold"), strict=True):
            assert list(column) == [result[rule]["by_type"][kind][name] for kind in names]


def test_a_type_that_is_only_predicted_scores_zero_and_lowers_precision():
    lenient = scores(["B-PER O"], ["B-PER B-NEW"])["lenient"]
    new = lenient["by_type"]["NEW"]
    assert [new[n] for n in ("precision", "recall", "f1", "predicted", "gold")] == [0, 0, 0, 1, 0]
    assert (lenient["precision"], lenient["recall"]) == (0.5, 1)


def test_scores_are_zero_without_a_warning_if_there_are_no_entities():
    missed = scores(["B-PER O", "O"], ["O O", "O"])["lenient"]
    assert [missed[name] for name in ("precision", "recall", "f1", "gold")] == [0, 0, 0, 1]
    nothing = scores(["O O", "O"], ["O O", "O"])
    assert nothing["lenient"]["f1"] == 0 and nothing["lenient"]["by_type"] == {}
    assert nothing["confusion"] == {"(none)": {}}


def test_the_bootstrap_error_matches_the_binomial_error_where_f1_is_a_proportion():
    """One gold and one predicted entity per item: F1 is the proportion of correct ones, .8 of 400.

    Its error is sqrt(.8 x .2 / 400) = .02, and 1000 draws estimate it to 1 / sqrt(2000) of itself.
    """
    counts = np.array([[1, 1, 1]] * 320 + [[0, 1, 1]] * 80)[:, None]

    def bootstrap(seed: int) -> float:
        (error,) = bootstrap_standard_errors(counts, classification_metrics.compute_f1, 1000, seed)
        return error

    assert bootstrap(0) == pytest.approx(0.02, rel=0.08)
    assert bootstrap(0) == bootstrap(0) != bootstrap(1)


def test_the_error_is_zero_for_identical_items_and_unavailable_for_a_single_item():
    identical = scores(["B-PER O"] * 5, ["B-PER B-PER"] * 5)["lenient"]
    assert identical["f1"] == pytest.approx(2 / 3) and identical["standard_error"] < 1e-9
    single = scores(["B-PER O"], ["B-PER B-PER"])
    assert round_metrics(single)["lenient"]["standard_error"] == "unavailable"


def test_class_scores_match_values_derived_by_hand():
    """Gold a a b, predicted a b b: a 1 of 1, of 2 gold; b 1 of 2, of 1 gold; F1 2/3 each.

    Accuracy 2/3; correct 1, 0, 1: deviations 1/3, -2/3, 1/3, so s^2 = 1/3, the error 1/3.
    """
    result = compute_class_scores(["a", "a", "b"], ["a", "b", "b"], DRAWS, seed=0)
    assert result["accuracy"] == pytest.approx({"value": 2 / 3, "standard_error": 1 / 3})
    assert result["weighted_f1"]["value"] == result["macro_f1"]["value"] == pytest.approx(2 / 3)
    assert result["by_class"]["a"]["precision"] == 1 and result["by_class"]["a"]["recall"] == 0.5
    assert result["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"a": 0, "b": 1}}


@pytest.mark.parametrize("seed", range(20))
def test_class_scores_equal_those_of_scikit_learn_even_if_a_side_lacks_a_class(seed):
    generator = random.Random(seed)
    gold = generator.choices(["negative", "neutral", "positive"], [seed % 3, 1, 2], k=12)
    predicted = generator.choices(["negative", "neutral", "new"], [1, 2, seed % 2], k=12)
    result = compute_class_scores(gold, predicted, DRAWS, seed=0)
    assert result["accuracy"]["value"] == pytest.approx(accuracy_score(gold, predicted))
    for average in ("weighted", "macro"):
        expected = f1_score(gold, predicted, average=average, zero_division=0)
        assert result[f"{average}_f1"]["value"] == pytest.approx(expected)
    kinds = sorted({*gold, *predicted})
    expected = precision_recall_fscore_support(gold, predicted, labels=kinds, zero_division=0)
    for column, name in zip(expected, ("precision", "recall", "f1", "gold"), strict=True):
        assert list(column) == pytest.approx([result["by_class"][kind][name] for kind in kinds])


def test_the_error_of_macro_f1_ignores_classes_that_a_sample_lacks():
    """All correct: every sample scores 1, though most lack the only item of class b."""
    labels = ["a"] * 9 + ["b"]
    result = compute_class_scores(labels, labels, DRAWS, seed=0)
    assert result["macro_f1"] == {"value": 1, "standard_error": 0}
    assert result["weighted_f1"] == {"value": 1, "standard_error": 0}
    assert result["by_class"]["b"]["standard_error"] > 0
    assert math.isnan(
        compute_class_scores(["a"], ["a"], DRAWS, seed=0)["accuracy"]["standard_error"]
    )
