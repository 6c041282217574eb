"""Score what a reader labelled, beside the ceilings where the corpus knows them.

python -m stages.score READER INGEST LABELS TARGET

reads   INGEST/ceilings.json   sample corpora only
        LABELS/labels.parquet, regularised.parquet, embeddings.parquet, parameters.json
writes  TARGET/metrics.json
        TARGET/items.parquet   the counts of each item that was scored

Figures are of every test item with both inputs, `split` says so; where a corpus has no test item
they are of the validation split, and `split` says that. Beside them: `single_modality` (the same
items, text or picture alone), `validation` (to choose settings by), `regularisers` and `alignment`.
Words beyond a reader's limit count as predicted O; `cut` says how many there are.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.shared import label_scores, metrics, tables, tracking
from stages.shared.closeness import closeness
from stages.shared.metrics import flat, plain
from stages.shared.params import load
from stages.shared.stage import WrongInput, output, stage

Ceilings = dict[str, dict[str, float]]  # inputs -> expected | realised -> value
REGULARISERS = ["caption_nats", "drawing_bits"]


@dataclass(frozen=True)
class Params:
    draws: int
    seed: int
    ceiling_below: float
    ceiling_above: float

    def __post_init__(self) -> None:
        """Raises WrongInput if there are too few draws to spread."""
        if self.draws < 2:
            raise WrongInput(f"params.yaml: score.draws is {self.draws}: give 2 or more")


@dataclass(frozen=True)
class Labels:
    """What 11_label holds of one reader."""

    rows: list[dict]  # LABELS
    regularised: list[dict]  # REGULARISED
    embeddings: list[dict]  # EMBEDDINGS
    parameters: dict[str, int]  # of the model: how many are trained, how many are not

    @property
    def task(self) -> str:
        return self.rows[0]["task"]

    def of(self, split: str, inputs: str) -> list[dict]:
        """The rows of one split from these inputs, in the order of the records' names."""
        key = split, inputs
        found = [row for row in self.rows if (row["split"], row["inputs"]) == key]
        return sorted(found, key=lambda row: row["record"])


def read_labels(folder: Path) -> Labels:
    """Raises WrongInput if something is missing, or there is no item to score."""
    found = Labels(
        tables.read(folder / "labels.parquet", tables.LABELS),
        tables.read(folder / "regularised.parquet", tables.REGULARISED),
        tables.read(folder / "embeddings.parquet", tables.EMBEDDINGS),
        tables.read_json(folder / "parameters.json"),
    )
    if not found.of("test", "both") and not found.of("validation", "both"):
        raise WrongInput(
            f"{folder / 'labels.parquet'} holds neither a test nor a validation item: give the"
            " corpus records of one of these splits"
        )
    return found


def read_ceilings(ingest: Path) -> dict[str, Any]:
    """{"metric", split: Ceilings} of a sample corpus; empty of any other."""
    path = ingest / "ceilings.json"
    return tables.read_json(path) if path.exists() else {}


def task_figures(rows: list[dict], params: Params) -> dict[str, Any]:
    """Every figure of these rows' task; `score` is the one that ceilings and readers compare by."""
    gold, predicted = ([row[side] for row in rows] for side in ("gold", "predicted"))
    if rows[0]["task"] == "entities":
        found = label_scores.entities(gold, predicted)
        figures = label_scores.entity_scores(found, params.draws, params.seed)
        value, error = figures["lenient"]["f1"], figures["lenient"]["standard_error"]
        score = {"metric": "f1", "rule": "lenient", "value": value, "standard_error": error}
        return {"score": score, **figures, "measured_by": label_scores.MEASURED_BY}
    labels = ([label for (label,) in side] for side in (gold, predicted))
    figures = label_scores.class_scores(*labels, params.draws, params.seed)
    return {"score": {"metric": "accuracy", **figures["accuracy"]}, **figures}


def figures_of_split(
    labels: Labels, split: str, ceilings: Ceilings, params: Params
) -> dict[str, Any]:
    """Figures from both inputs, the ceilings and the skill, and what the regularisers say."""
    rows = labels.of(split, "both")
    result = {"items": len(rows), "cut": cut(rows), **task_figures(rows, params)}
    if ceilings:
        score = result["score"]
        realised = {inputs: values["realised"] for inputs, values in ceilings.items()}
        result["ceilings"] = ceilings
        result["skill"] = metrics.skill(score["value"], score["standard_error"], realised)
    regularised = [row for row in labels.regularised if row["split"] == split]
    return result | {"regularisers": regularisers(regularised)}


def cut(rows: list[dict]) -> dict[str, int]:
    """How many words lay beyond the reader's limit, and of how many items."""
    return {"items": sum(row["cut"] > 0 for row in rows), "words": sum(row["cut"] for row in rows)}


def single_modality(
    rows: list[dict], ceiling: dict[str, float] | None, params: Params
) -> dict[str, Any]:
    """The score from one input, beside its ceiling if that is known."""
    score = task_figures(rows, params)["score"]
    value, error = score["value"], score["standard_error"]
    if ceiling is None:
        return {"value": value, "standard_error": error}
    bounds = params.ceiling_below, params.ceiling_above
    return {"value": value} | metrics.beside_ceiling(value, error, ceiling["realised"], *bounds)


def regularisers(rows: list[dict]) -> dict[str, Any]:
    """Means over the items that have the figure: nats per token, bits per dimension."""
    result = {}
    for name in REGULARISERS:
        known = [row for row in rows if row[name] is not None]
        if known:
            values, records = [row[name] for row in known], [row["record"] for row in known]
            error = metrics.clustered_standard_error(values, records)
            mean = {"value": fmean(values), "standard_error": error}
            result[name] = {"items": len(known), **mean}
    return result


def score(labels: Labels, known: dict[str, Any], params: Params) -> dict[str, Any]:
    """The content of metrics.json; known: what `read_ceilings` read."""
    split = "test" if labels.of("test", "both") else "validation"
    ceilings = known.get(split, {})
    result = {
        "task": labels.task,
        "split": split,
        **figures_of_split(labels, split, ceilings, params),
    }
    assert not known or known["metric"] == result["score"]["metric"]
    for inputs in ("text", "picture"):
        if rows := labels.of(split, inputs):
            found = single_modality(rows, ceilings.get(inputs), params)
            result.setdefault("single_modality", {})[inputs] = found
    scored = {row["record"] for row in labels.of(split, "both")}
    embedded = [row for row in labels.embeddings if row["record"] in scored]
    result |= {"alignment": closeness(embedded), "parameters": labels.parameters}
    if labels.of("validation", "both"):
        of_split = known.get("validation", {})
        result["validation"] = figures_of_split(labels, "validation", of_split, params)
    return result


def item_rows(rows: list[dict]) -> list[dict]:
    """One row of items.parquet for each row of labels.parquet."""
    return [
        dict.fromkeys(tables.LABEL_SCORES.names)
        | {name: row[name] for name in ("record", "split", "inputs", "cut")}
        | (entity_counts(row) if row["task"] == "entities" else label_counts(row))
        for row in rows
    ]


def label_counts(row: dict) -> dict[str, int]:
    return {"right": int(row["gold"] == row["predicted"]), "predicted": 1, "gold": 1}


def entity_counts(row: dict) -> dict[str, int]:
    found = label_scores.entities([row["gold"]], [row["predicted"]])
    result = {}
    for rule, before in (("lenient", ""), ("strict", "strict_")):
        ((gold, predicted),) = found[rule]
        sizes = {"right": gold & predicted, "predicted": predicted, "gold": gold}
        result |= {before + name: len(some) for name, some in sizes.items()}
    ((gold, predicted),) = found["spans"]
    return result | {"span_right": len(gold & predicted)}


def main(params: Params, reader: str, ingest: Path, labels: Path, target: Path) -> None:
    found = read_labels(labels)
    with tracking.run(stage="score", name=reader, params={"score": asdict(params)}) as tracked:
        with output(target) as folder:
            result = plain(score(found, read_ceilings(ingest), params))
            text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
            (folder / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
            tables.write(folder / "items.parquet", item_rows(found.rows), tables.LABEL_SCORES)
        tracked.log(dict(flat(result)), step=0)
        tracked.artifact(target / "metrics.json", "metrics.json")


if __name__ == "__main__":
    with stage():
        name, *paths = sys.argv[1:]
        main(load(Params, "score"), name, *map(Path, paths))
