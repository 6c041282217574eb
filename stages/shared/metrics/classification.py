"""Metrics of labels against gold labels: entities from BIO tags, and one class per item.

Three rules are reported, because papers use different ones and seldom name them:

lenient  seqeval's default, that of the conlleval script: an I- that does not continue an entity of
         its type begins a new entity
strict   seqeval's mode `strict` with the scheme IOB2: only a B- begins an entity, other tags are
         ignored
spans    the lenient entities with their types ignored

Counts are kept per item, so that standard errors come from bootstrap samples of the items. Where
the denominator is 0, precision, recall and F1 are 0, as in seqeval and scikit-learn.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from stages.shared.metrics.common import bootstrap_standard_errors, clustered_standard_error

EntityRule = Literal["lenient", "strict"]  # rules by which models are compared
Entity = tuple[str, int, int]  # type, index of its first word, index after its last word
EntityPair = tuple[set[Entity], set[Entity]]  # gold and predicted entities of an item
CORRECT, PREDICTED, GOLD = 0, 1, 2  # the last axis of every array of counts
NO_ENTITY = "(none)"  # in the confusion table: no entity at this position


def extract_lenient_entities(tags: list[str]) -> set[Entity]:
    """The entities of one item's BIO tags by seqeval's default rule.

    The same as seqeval's `get_entities`, without a second of imports in `polymuse label`.
    """
    entities, start = set(), None
    for index, (previous, tag) in enumerate(pairwise(["O", *tags, "O"])):
        kind = _entity_type(previous)
        continues = tag.startswith("I") and _entity_type(tag) == kind
        if start is not None and not continues:
            entities.add((kind, start, index))
            start = None
        if start is None and tag != "O":
            start = index
    return entities


def _entity_type(tag: str) -> str:
    """The type of a BIO tag; "_" where it has none, as in seqeval."""
    return tag[1:].split("-", 1)[-1] or "_"


def extract_strict_entities(tags: list[str]) -> set[Entity]:
    """The entities of one item's tags by seqeval's mode `strict`."""
    from seqeval.scheme import IOB2, Tokens

    return {(entity.tag, entity.start, entity.end) for entity in Tokens(tags, IOB2).entities}


def extract_entity_spans(tags: list[str]) -> set[Entity]:
    """The spans of the lenient entities, all with the type ""."""
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
    """The gold and predicted entities of each item, by rule.

    gold, predicted: the tags of each item, as many gold tags as predicted tags.
    """
    tag_pairs = list(zip(gold, predicted, strict=True))
    assert all(len(gold_tags) == len(predicted_tags) for gold_tags, predicted_tags in tag_pairs)
    return {name: [(rule(a), rule(b)) for a, b in tag_pairs] for name, rule in ENTITY_RULES.items()}


def compute_entity_scores(
    entities: dict[str, list[EntityPair]], draws: int, seed: int
) -> dict[str, Any]:
    """Precision, recall and F1 by rule, in total and by type, and the confusion table.

    entities: from `extract_entities`, of at least one item. draws: number of bootstrap samples for
    the standard errors of F1. seed: of these samples.
    """
    result: dict[str, Any] = {}
    for rule, pairs in entities.items():
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
    return result | {"confusion": count_entity_confusions(entities["lenient"])}


def _count_entities(pair: EntityPair, kind: str | None) -> tuple[int, int, int]:
    """Correct, predicted and gold entities of an item, of one type or (None) of all types."""
    gold, predicted = pair
    num_correct, num_predicted, num_gold = (
        sum(kind in (None, entity[0]) for entity in entities)
        for entities in (gold & predicted, predicted, gold)
    )
    return num_correct, num_predicted, num_gold


def _precision_recall_f1(correct: int, predicted: int, gold: int) -> dict[str, float]:
    """Precision, recall and F1, equal to seqeval's in every digit, and the counts."""
    precision = correct / predicted if predicted else 0.0
    recall = correct / gold if gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "right": correct,
        "predicted": predicted,
        "gold": gold,
    }


def compute_entity_f1(pairs: list[EntityPair]) -> float:
    """F1 over all items, without a standard error; used to select checkpoints."""
    return float(compute_f1(np.array([_count_entities(pair, None) for pair in pairs]).sum(axis=0)))


def compute_f1(counts: np.ndarray) -> np.ndarray:
    """F1 of counts, 0 where nothing is gold and nothing predicted.  (..., 3) -> (...)"""
    sizes = counts[..., PREDICTED] + counts[..., GOLD]
    return 2 * counts[..., CORRECT] / np.maximum(sizes, 1)


def count_entity_confusions(pairs: list[EntityPair]) -> dict[str, dict[str, int]]:
    """Gold type -> predicted type -> number of entities at the same position.

    NO_ENTITY stands for the missing side where only gold or only the prediction has an entity.
    """
    confusions: Counter[tuple[str, str]] = Counter()
    for gold, predicted in pairs:
        # Lenient entities of an item never overlap, so a position has one type.
        gold_types, predicted_types = (
            {(start, stop): kind for kind, start, stop in side} for side in (gold, predicted)
        )
        confusions.update(
            (gold_types.get(position, NO_ENTITY), predicted_types.get(position, NO_ENTITY))
            for position in gold_types.keys() | predicted_types.keys()
        )
    return _confusion_table(confusions, {NO_ENTITY})


def compute_class_scores(
    gold: list[str], predicted: list[str], draws: int, seed: int
) -> dict[str, Any]:
    """Accuracy, weighted and macro F1, scores by class, and the confusion table.

    gold, predicted: one class per item, at least one item. A class that only occurs in the
    predictions counts in macro F1 and has weight 0 in weighted F1, as in scikit-learn. draws, seed:
    see `compute_entity_scores`.
    """
    kinds = sorted({*gold, *predicted})
    counts = np.array(
        [[count_label(a, b, kind) for kind in kinds] for a, b in zip(gold, predicted, strict=True)]
    )
    correct = [float(a == b) for a, b in zip(gold, predicted, strict=True)]
    single_clusters = [str(number) for number in range(len(correct))]
    total = counts.sum(axis=0)
    weighted_error, macro_error, *errors = bootstrap_standard_errors(
        counts, _compute_f1_averages, draws, seed
    ).tolist()
    weighted, macro, *_ = _compute_f1_averages(total[None])[0].tolist()
    return {
        "accuracy": {
            "value": float(np.mean(correct)),
            "standard_error": clustered_standard_error(correct, single_clusters),
        },
        "weighted_f1": {"value": weighted, "standard_error": weighted_error},
        "macro_f1": {"value": macro, "standard_error": macro_error},
        "by_class": {
            kind: _precision_recall_f1(*kind_counts) | {"standard_error": error}
            for kind, kind_counts, error in zip(kinds, total.tolist(), errors, strict=True)
        },
        "confusion": _confusion_table(Counter(zip(gold, predicted, strict=True)), set()),
    }


def count_label(gold: str, predicted: str, kind: str) -> tuple[int, int, int]:
    """1 or 0 for one item: whether `kind` is correct, is predicted, is gold."""
    return int(gold == predicted == kind), int(predicted == kind), int(gold == kind)


def _compute_f1_averages(counts: np.ndarray) -> np.ndarray:
    """Weighted F1, macro F1, and F1 of each class.  (draws, C, 3) -> (draws, 2 + C)

    Macro F1 averages over the classes that occur in the sample.
    """
    f1 = compute_f1(counts)
    occurs = (counts[..., PREDICTED] + counts[..., GOLD]) > 0
    weighted = (f1 * counts[..., GOLD]).sum(axis=1) / counts[..., GOLD].sum(axis=1)
    macro = (f1 * occurs).sum(axis=1) / occurs.sum(axis=1)
    return np.column_stack([weighted, macro, f1])


def _confusion_table(counts: Counter, always: Iterable[str]) -> dict[str, dict[str, int]]:
    """Gold -> predicted -> count, with every label in each row, NO_ENTITY last."""
    names = {name for pair in counts for name in pair} | set(always)
    ordered = sorted(names, key=lambda name: (name == NO_ENTITY, name))
    return {
        gold: {
            name: counts[gold, name] for name in ordered if (gold, name) != (NO_ENTITY, NO_ENTITY)
        }
        for gold in ordered
    }
