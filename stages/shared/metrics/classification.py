"""Scores of labels beside the gold ones: entities of BIO tags, and one label an item.

Entities are read out of the tags by seqeval, in two ways that the field uses and seldom names:

lenient  seqeval's default, that of the conlleval script: an I- that continues nothing, or another
         type, begins an entity of its own
strict   seqeval's mode `strict` with the scheme IOB2: only a B- begins one, other tags are nobody's
spans    the lenient entities by their places alone, whatever their types

Counts are kept for each item, so that standard errors come from the same items drawn anew. Where
there is nothing to divide by, precision, recall and F1 are 0, as in seqeval and scikit-learn.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Tokens

from stages.shared.metrics.common import clustered_standard_error

Entity = tuple[str, int, int]  # type, first word, the word behind its last
EntityPair = tuple[set[Entity], set[Entity]]  # gold and predicted entities of an item
CORRECT, PREDICTED, GOLD = 0, 1, 2  # the last axis of every array of counts
NO_ENTITY = "(none)"  # in the confusion table: no entity at this place


def extract_lenient_entities(tags: list[str]) -> set[Entity]:
    """The entities of one item's tags by seqeval's default."""
    return {(kind, first, last + 1) for kind, first, last in get_entities(tags)}


def extract_strict_entities(tags: list[str]) -> set[Entity]:
    """The same by its mode `strict`."""
    return {(found.tag, found.start, found.end) for found in Tokens(tags, IOB2).entities}


def extract_entity_spans(tags: list[str]) -> set[Entity]:
    """The places of the lenient entities, all of one nameless type."""
    return {("", start, stop) for _, start, stop in extract_lenient_entities(tags)}


ENTITY_RULES: dict[str, Callable[[list[str]], set[Entity]]] = {
    "lenient": extract_lenient_entities,
    "strict": extract_strict_entities,
    "spans": extract_entity_spans,
}
MEASURED_BY = {
    "lenient": "seqeval, default (conlleval)",
    "strict": "seqeval, mode strict, IOB2",
    "spans": "seqeval, default, types ignored",
}


def extract_entities(
    gold: list[list[str]], predicted: list[list[str]]
) -> dict[str, list[EntityPair]]:
    """By rule: the gold and predicted entities of each item; tags of equal number in both."""
    together = list(zip(gold, predicted, strict=True))
    assert all(len(of_gold) == len(of_predicted) for of_gold, of_predicted in together)
    return {name: [(rule(a), rule(b)) for a, b in together] for name, rule in ENTITY_RULES.items()}


def compute_entity_scores(
    found: dict[str, list[EntityPair]], draws: int, seed: int
) -> dict[str, Any]:
    """Of what `entities` found, at least one item: figures by rule, by type, and what was taken
    for what.

    draws: how often the items are drawn anew for the standard errors of F1; seed: of these draws.
    """
    result: dict[str, Any] = {}
    for rule, pairs in found.items():
        kinds = sorted({kind for pair in pairs for side in pair for kind, _, _ in side})
        counts = np.array(
            [[_count_entities(pair, kind) for kind in [None, *kinds]] for pair in pairs]
        )
        errors = bootstrap_standard_errors(counts, compute_f1, draws, seed)
        rows = [
            _precision_recall_f1(*total) | {"standard_error": error}
            for total, error in zip(counts.sum(axis=0).tolist(), errors.tolist(), strict=True)
        ]
        result[rule], *by_type = rows
        if rule != "spans":
            result[rule]["by_type"] = dict(zip(kinds, by_type, strict=True))
    return result | {"confusion": count_entity_confusions(found["lenient"])}


def _count_entities(pair: EntityPair, kind: str | None) -> tuple[int, int, int]:
    """Right, predicted and gold entities of an item, of one type or (None) of all."""
    gold, predicted = pair
    return tuple(
        sum(kind in (None, entity[0]) for entity in some)
        for some in (gold & predicted, predicted, gold)
    )


def _precision_recall_f1(right: int, predicted: int, gold: int) -> dict[str, float]:
    """Precision, recall and F1, to the last digit as seqeval's, beside the counts."""
    precision = right / predicted if predicted else 0.0
    recall = right / gold if gold else 0.0
    both = 2 * precision * recall / (precision + recall) if right else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": both,
        "right": right,
        "predicted": predicted,
        "gold": gold,
    }


def compute_entity_f1(pairs: list[EntityPair]) -> float:
    """F1 of all items together, without its standard error; to choose weights by."""
    return float(compute_f1(np.array([_count_entities(pair, None) for pair in pairs]).sum(axis=0)))


def compute_f1(counts: np.ndarray) -> np.ndarray:
    """(..., 3) counts -> (...) F1; 0 where nothing is gold and nothing predicted."""
    sizes = counts[..., PREDICTED] + counts[..., GOLD]
    return 2 * counts[..., CORRECT] / np.maximum(sizes, 1)


def bootstrap_standard_errors(
    counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int
) -> np.ndarray:
    """The bootstrap's standard errors of statistics of the summed counts.

    counts: (items, ..., 3), items drawn with replacement, as many as there are; statistic: takes
    (draws, ..., 3), returns (draws, figures). Returns (figures,), not numbers for a single item.
    """
    items, shape = len(counts), counts.shape[1:]
    flat, generator = counts.reshape(items, -1), np.random.default_rng(seed)
    drawn = (
        np.bincount(generator.integers(items, size=items), minlength=items) for _ in range(draws)
    )
    totals = np.array([times @ flat for times in drawn]).reshape(draws, *shape)
    spread = statistic(totals).std(axis=0, ddof=1)
    return spread if items > 1 else np.full_like(spread, np.nan)


def count_entity_confusions(pairs: list[EntityPair]) -> dict[str, dict[str, int]]:
    """Gold type -> predicted type -> how many entities of the same place; NOTHING for a place that
    has an entity on one side only."""
    seen: Counter[tuple[str, str]] = Counter()
    for gold, predicted in pairs:
        # Lenient entities of an item never overlap: one type a place.
        types = [{(start, stop): kind for kind, start, stop in side} for side in (gold, predicted)]
        places = types[0].keys() | types[1].keys()
        seen.update(tuple(of.get(place, NO_ENTITY) for of in types) for place in places)
    return _confusion_table(seen, {NO_ENTITY})


def compute_class_scores(
    gold: list[str], predicted: list[str], draws: int, seed: int
) -> dict[str, Any]:
    """Of one label an item, at least one: accuracy, weighted and macro F1, figures by class, and
    what was taken for what.

    A class that only the predictions have counts in macro F1, and weighs nothing in weighted F1, as
    in scikit-learn. draws, seed: as of `entity_scores`.
    """
    kinds = sorted({*gold, *predicted})
    counts = np.array(
        [[count_label(a, b, kind) for kind in kinds] for a, b in zip(gold, predicted, strict=True)]
    )
    right = [float(a == b) for a, b in zip(gold, predicted, strict=True)]
    each_alone = [str(number) for number in range(len(right))]
    total = counts.sum(axis=0)
    weighted, macro, *errors = bootstrap_standard_errors(
        counts, _compute_f1_averages, draws, seed
    ).tolist()
    value = _compute_f1_averages(total[None])[0].tolist()
    return {
        "accuracy": {
            "value": float(np.mean(right)),
            "standard_error": clustered_standard_error(right, each_alone),
        },
        "weighted_f1": {"value": value[0], "standard_error": weighted},
        "macro_f1": {"value": value[1], "standard_error": macro},
        "by_class": {
            kind: _precision_recall_f1(*of_kind) | {"standard_error": error}
            for kind, of_kind, error in zip(kinds, total.tolist(), errors, strict=True)
        },
        "confusion": _confusion_table(Counter(zip(gold, predicted, strict=True)), set()),
    }


def count_label(gold: str, predicted: str, kind: str) -> tuple[int, int, int]:
    """Whether `kind` is the right label of an item, the predicted one, the gold one; 1 for yes."""
    return int(gold == predicted == kind), int(predicted == kind), int(gold == kind)


def _compute_f1_averages(counts: np.ndarray) -> np.ndarray:
    """(draws, classes, 3) -> (draws, 2 + classes): weighted F1, macro F1, F1 of each class.

    Macro is over the classes that a draw has at all.
    """
    each = compute_f1(counts)
    there = (counts[..., PREDICTED] + counts[..., GOLD]) > 0
    weighted = (each * counts[..., GOLD]).sum(axis=1) / counts[..., GOLD].sum(axis=1)
    macro = (each * there).sum(axis=1) / there.sum(axis=1)
    return np.column_stack([weighted, macro, each])


def _confusion_table(seen: Counter, always: Iterable[str]) -> dict[str, dict[str, int]]:
    """Gold -> predicted -> count, every label in each row, NOTHING last."""
    names = {name for pair in seen for name in pair} | set(always)
    ordered = sorted(names, key=lambda name: (name == NO_ENTITY, name))
    return {
        gold: {name: seen[gold, name] for name in ordered if (gold, name) != (NO_ENTITY, NO_ENTITY)}
        for gold in ordered
    }
