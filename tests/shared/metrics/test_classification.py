import math
import random

import numpy as np
import pytest
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as by_default
from seqeval.metrics.v1 import precision_recall_fscore_support as by_scheme
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
from stages.shared.metrics.common import round_metrics

DRAWS = 200
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-A-B", "I-A-B", "B", "I"]


def scores(gold: list[str], predicted: list[str]) -> dict:
    """Of items written as words of tags, an item a string."""
    sides = [[item.split() for item in side] for side in (gold, predicted)]
    return compute_entity_scores(extract_entities(*sides), DRAWS, seed=0)


@pytest.mark.parametrize(
    ("tags", "leniently", "strictly"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}, {("PER", 0, 2), ("LOC", 3, 4)}),
        ("O I-PER I-PER", {("PER", 1, 3)}, set()),
        ("B-PER I-LOC O", {("PER", 0, 1), ("LOC", 1, 2)}, {("PER", 0, 1)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}, {("PER", 0, 1), ("PER", 1, 3)}),
        ("O O", set(), set()),
        ("", set(), set()),
    ],
)
def test_an_orphan_begins_an_entity_leniently_and_is_nobodys_strictly(tags, leniently, strictly):
    assert extract_lenient_entities(tags.split()) == leniently
    assert extract_strict_entities(tags.split()) == strictly


def test_figures_by_hand():
    """Gold: PER, LOC; PER. Predicted: PER right, LOC one word too long; LOC at the place of PER.

    1 of 3 right and of 3 gold; the places: 2 of 3. PER: 1 of 1, of 2 gold: F1 2/3. LOC: 0 of 2.
    """
    found = scores(["B-PER I-PER O B-LOC O", "B-PER O"], ["B-PER I-PER O B-LOC I-LOC", "B-LOC O"])
    for rule in ("lenient", "strict"):
        assert [found[rule][name] for name in ("right", "predicted", "gold")] == [1, 3, 3]
        assert found[rule]["f1"] == pytest.approx(1 / 3)
        person, place = (found[rule]["by_type"][name] for name in ("PER", "LOC"))
        assert (person["precision"], person["recall"]) == (1, 0.5)
        assert person["f1"] == pytest.approx(2 / 3)
        assert (place["f1"], place["predicted"], place["gold"]) == (0, 2, 1)
    assert found["spans"]["f1"] == pytest.approx(2 / 3) and "by_type" not in found["spans"]


def test_f1_alone_is_the_same_figure():
    gold, predicted = [["B-PER", "O", "B-LOC"], ["B-PER", "O"]], [["B-PER", "O", "O"], ["O", "O"]]
    found = extract_entities(gold, predicted)
    assert classification_metrics.compute_entity_f1(found["lenient"]) == pytest.approx(
        2 * 1 / (1 + 3)
    )
    whole = compute_entity_scores(found, DRAWS, seed=0)["lenient"]["f1"]
    assert classification_metrics.compute_entity_f1(found["lenient"]) == pytest.approx(whole)


def test_what_was_taken_for_what_counts_places_once():
    """The same items: PER as PER, PER as LOC, LOC missed, a LOC where there is nothing."""
    found = scores(["B-PER I-PER O B-LOC O", "B-PER O"], ["B-PER I-PER O B-LOC I-LOC", "B-LOC O"])
    assert found["confusion"] == {
        "LOC": {"LOC": 0, "PER": 0, "(none)": 1},
        "PER": {"LOC": 1, "PER": 1, "(none)": 0},
        "(none)": {"LOC": 1, "PER": 0},
    }


def broken(generator: random.Random, likely: list[str]) -> list[str]:
    """Tags without any order: orphans, changes of type inside an entity, tags without a type."""
    return generator.choices(likely, k=generator.randrange(0, 9))


@pytest.mark.parametrize("seed", range(60))
def test_seqeval_agrees_exactly_on_random_and_broken_tags(seed):
    """In counts and in every digit of precision, recall and F1, in total and by type."""
    generator = random.Random(seed)
    # Few kinds of tags make some draws all but valid, and some types known to one side only.
    likely = [generator.sample(TAGS, generator.randrange(1, len(TAGS))) for _ in range(2)]
    gold = [broken(generator, likely[0]) for _ in range(generator.randrange(1, 30))]
    predicted = [
        [tag if generator.random() < 0.5 else generator.choice(likely[1]) for tag in item]
        for item in gold
    ]
    found = compute_entity_scores(extract_entities(gold, predicted), DRAWS, seed=0)
    for rule, (oracle, how) in {
        "lenient": (by_default, {}),
        "strict": (by_scheme, {"scheme": IOB2}),
    }.items():
        theirs = oracle(gold, predicted, average="micro", zero_division=0, **how)
        assert theirs == tuple(found[rule][n] for n in ("precision", "recall", "f1", "gold"))
        by_type = oracle(gold, predicted, average=None, zero_division=0, **how)
        names = sorted(found[rule]["by_type"])
        for column, name in zip(by_type, ("precision", "recall", "f1", "gold"), strict=True):
            assert list(column) == [found[rule]["by_type"][kind][name] for kind in names]


def test_a_type_that_only_the_predictions_have_scores_nothing_and_costs_precision():
    found = scores(["B-PER O"], ["B-PER B-NEW"])["lenient"]
    new = found["by_type"]["NEW"]
    assert [new[n] for n in ("precision", "recall", "f1", "predicted", "gold")] == [0, 0, 0, 1, 0]
    assert (found["precision"], found["recall"]) == (0.5, 1)


def test_no_entity_predicted_or_none_at_all_scores_nothing_without_a_warning():
    missed = scores(["B-PER O", "O"], ["O O", "O"])["lenient"]
    assert [missed[name] for name in ("precision", "recall", "f1", "gold")] == [0, 0, 0, 1]
    nothing = scores(["O O", "O"], ["O O", "O"])
    assert nothing["lenient"]["f1"] == 0 and nothing["lenient"]["by_type"] == {}
    assert nothing["confusion"] == {"(none)": {}}


def test_the_bootstrap_gives_the_error_that_is_known_where_f1_is_a_share():
    """One gold and one predicted entity an item: F1 is the share of right ones, .8 of 400; its
    error is sqrt(.8 x .2 / 400) = .02, and 1000 draws know it to 1 / sqrt(2000) of itself."""
    counts = np.array([[1, 1, 1]] * 320 + [[0, 1, 1]] * 80)[:, None]
    (found,) = classification_metrics.bootstrap_standard_errors(
        counts, classification_metrics.compute_f1, 1000, seed=0
    )
    assert found == pytest.approx(0.02, rel=0.08)
    assert (
        found
        == classification_metrics.bootstrap_standard_errors(
            counts, classification_metrics.compute_f1, 1000, seed=0
        )[0]
    )
    assert (
        found
        != classification_metrics.bootstrap_standard_errors(
            counts, classification_metrics.compute_f1, 1000, seed=1
        )[0]
    )


def test_items_that_are_all_alike_have_no_error_and_a_single_one_an_unknown():
    alike = scores(["B-PER O"] * 5, ["B-PER B-PER"] * 5)["lenient"]
    assert alike["f1"] == pytest.approx(2 / 3) and alike["standard_error"] < 1e-9
    single = scores(["B-PER O"], ["B-PER B-PER"])
    assert round_metrics(single)["lenient"]["standard_error"] == "unavailable"


def test_class_figures_by_hand():
    """Gold a a b, predicted a b b: a 1 of 1, of 2 gold; b 1 of 2, of 1 gold; F1 2/3 each.

    Accuracy 2/3; right 1, 0, 1: deviations 1/3, -2/3, 1/3, so s^2 = 1/3, the error 1/3.
    """
    found = compute_class_scores(["a", "a", "b"], ["a", "b", "b"], DRAWS, seed=0)
    assert found["accuracy"] == pytest.approx({"value": 2 / 3, "standard_error": 1 / 3})
    assert found["weighted_f1"]["value"] == found["macro_f1"]["value"] == pytest.approx(2 / 3)
    assert found["by_class"]["a"]["precision"] == 1 and found["by_class"]["a"]["recall"] == 0.5
    assert found["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"a": 0, "b": 1}}


@pytest.mark.parametrize("seed", range(20))
def test_scikit_learn_agrees_on_classes_that_one_side_may_lack(seed):
    generator = random.Random(seed)
    gold = generator.choices(["negative", "neutral", "positive"], [seed % 3, 1, 2], k=12)
    predicted = generator.choices(["negative", "neutral", "new"], [1, 2, seed % 2], k=12)
    found = compute_class_scores(gold, predicted, DRAWS, seed=0)
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(gold, predicted))
    for average in ("weighted", "macro"):
        theirs = f1_score(gold, predicted, average=average, zero_division=0)
        assert found[f"{average}_f1"]["value"] == pytest.approx(theirs)
    kinds = sorted({*gold, *predicted})
    theirs = precision_recall_fscore_support(gold, predicted, labels=kinds, zero_division=0)
    for column, name in zip(theirs, ("precision", "recall", "f1", "gold"), strict=True):
        assert list(column) == pytest.approx([found["by_class"][kind][name] for kind in kinds])


def test_the_error_of_macro_f1_passes_over_classes_that_a_draw_lacks():
    """All right: every draw scores 1, though most lack the one item of class b."""
    labels = ["a"] * 9 + ["b"]
    found = compute_class_scores(labels, labels, DRAWS, seed=0)
    assert found["macro_f1"] == {"value": 1, "standard_error": 0}
    assert found["weighted_f1"] == {"value": 1, "standard_error": 0}
    assert found["by_class"]["b"]["standard_error"] > 0
    assert math.isnan(
        compute_class_scores(["a"], ["a"], DRAWS, seed=0)["accuracy"]["standard_error"]
    )
