"""What the report shows, read from data/ as plain values: corpora, encoder, runs and examples.

Only the corpora and runs that params.yaml names are read.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shared import history, tables
from stages.shared.stage import WrongInput

TRAINED = {"sft": "09_train_sft", "preference": "10_train_preference"}
# As a table shows them; METEOR has one of two names, by what measured it.
TEXT_SCORES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "meteor_exact_stem": "METEOR, exact and stem only",
    "cider": "CIDEr",
    "bert_score": "BERTScore",
}
INPUTS = {"topic": "topic alone", "picture": "picture alone", "both": "both"}
Phase = dict[str, Any]  # the metrics of one phase


@dataclass(frozen=True)
class Corpus:
    name: str
    params: dict[str, Any]
    summary: dict[str, Any]  # records by split, languages, rejected by reason


@dataclass(frozen=True)
class Run:
    """One run: its params, metrics, the steps of its training and what it wrote for test items."""

    name: str
    params: dict[str, Any]
    metrics: dict[str, Any]
    steps: dict[str, list[dict[str, float]]]  # by phase
    written: list[dict]  # PREDICTIONS of the test split from both inputs
    slots: dict[tuple[str, int, str], tuple[list[str], list[str]]]  # item and phase: right, wrong
    ceilings: dict[str, dict]  # of the test split: inputs -> expected | realised -> slot or total

    @cached_property
    def phases(self) -> dict[str, Phase]:
        """The metrics of each phase, in the order of training."""
        final = {self.metrics["phase"]: self.metrics}
        return {"sft": self.metrics["sft"]} | final if "sft" in self.metrics else final

    @property
    def has_sigma(self) -> bool:
        """Whether the similarity of picture and topic is known of any test item."""
        return any(row["sigma"] is not None for row in self.written)

    def warnings(self) -> list[str]:
        """What is suspicious, a sentence each: of the final phase, then of SFT alone."""
        final = self.metrics.get("warnings", {})
        earlier = self.metrics.get("sft", {}).get("warnings", {})
        only_sft = [said for said in earlier.values() if said not in final.values()]
        return [*final.values(), *(f"After SFT alone: {said}" for said in only_sft)]

    def headline(self) -> list[dict[str, Any]]:
        """The few figures to look at first: label, value, standard error and a note."""
        found, earlier = self.metrics, self.metrics.get("sft", {})
        tiles = []
        if "skill" in found:
            note = "of what only both modalities together allow"
            tiles.append({"label": "Skill", "note": note, **found["skill"]})
        if "grounding" in found:
            value, error = found["grounding"]["total"], found["grounding"]["standard_error"]
            note = "of the scene's slots stated correctly"
            tile = {"label": "Grounding", "value": value, "standard_error": error, "note": note}
            tiles.append(tile)
        if "foils" in found:
            note = f"of {found['foils']['items']} items, a false text was as likely"
            before = earlier["foils"]["error"] if "foils" in earlier else None
            tile = {"label": "Foil errors", "value": found["foils"]["error"], "note": note}
            tiles.append(tile | {"before": before})
        if "object_attention" in found:
            tiles.append(_object_tile(found["object_attention"]))
        tiles += [
            {
                "label": TEXT_SCORES[name],
                "value": found[name],
                "note": "",
                "before": earlier.get(name),
            }
            for name in ("rouge_l", "cider", "bert_score")
        ]
        return tiles

    def scores(self) -> list[dict[str, Any]]:
        """Rows of the table of text scores: name, value by phase, what measured it."""
        return [
            {
                "label": label,
                "values": [phase.get(name) for phase in self.phases.values()],
                "by": next(p["measured_by"][name] for p in self.phases.values() if name in p),
            }
            for name, label in TEXT_SCORES.items()
            if any(name in phase for phase in self.phases.values())
        ]

    def grounding(self) -> list[dict[str, Any]]:
        """Rows of the table of grounding: inputs, ceilings, value and verdict by phase."""
        return [
            {
                "label": INPUTS[inputs],
                "ceiling": self.metrics["ceilings"][inputs],
                "values": [_from_inputs(phase, inputs) for phase in self.phases.values()],
            }
            for inputs in INPUTS
            if inputs in self.metrics.get("ceilings", {})
        ]

    def looking(self) -> list[dict[str, Any]]:
        """Rows of the table of gate and fusion: label, value by phase, as far as measured."""
        paths = {
            "topics masked in training": ("gate", "train", "mask_rate"),
            "topics masked when writing": ("gate", "predict", "mask_rate"),
            "sigma, mean": ("gate", "sigma"),
            "lambda, mean": ("fusion", "correlation", "mean"),
            "lambda, deviation": ("fusion", "correlation", "deviation"),
            "entropy of the fusion's attention": ("fusion", "entropy"),
            "spread of the fusion's attention": ("fusion", "spread"),
            "attention on the object": ("object_attention", "mass"),
            "the object's share of the picture": ("object_attention", "area"),
        }
        rows = [
            {"label": label, "values": [_at(phase, path) for phase in self.phases.values()]}
            for label, path in paths.items()
        ]
        return [row for row in rows if any(value is not None for value in row["values"])]

    def articles(self, count: int, looked_at: set[str]) -> list[dict[str, Any]]:
        """The first test articles: title, language and chunks with the text of each phase.

        Those whose attention was kept come before others.
        """
        names = {row["record"] for row in self.written}
        ordered = sorted(names, key=lambda name: (name not in looked_at, name))
        return [self._article(name) for name in ordered[:count]]

    def _article(self, record: str) -> dict[str, Any]:
        rows = [row for row in self.written if row["record"] == record]
        of_one_phase = [row for row in rows if row["phase"] == rows[0]["phase"]]
        chunks = [
            {
                "key": (record, chunk["position"]),
                "image": chunk["image"],
                "references": chunk["references"],
                "texts": [self._text(row) for row in rows if row["position"] == chunk["position"]],
            }
            for chunk in sorted(of_one_phase, key=lambda row: row["position"])
        ]
        first = rows[0]
        return {
            "record": record,
            "title": first["title"],
            "language": first["language"],
            "chunks": chunks,
        }

    def _text(self, row: dict) -> dict[str, Any]:
        key = (row["record"], row["position"], row["phase"])
        right, wrong = self.slots.get(key, ([], []))
        return {"phase": row["phase"], "text": row["text"], "right": right, "wrong": wrong}


def _object_tile(found: dict[str, Any]) -> dict[str, Any]:
    error = found["standard_error"]  # a word where all items are of one record
    noise = f" \N{PLUS-MINUS SIGN} {error:.3f}" if isinstance(error, float) else ""
    return {
        "label": "Looks at the object",
        "value": found["ratio"],
        "note": f"times as much as everywhere alike: {found['mass']:.3f}{noise} of the attention on"
        f" {found['area']:.3f} of the picture, {found['items']} items",
    }


def _at(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    """What stands at a path of keys, or None."""
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def _from_inputs(phase: Phase, inputs: str) -> dict[str, Any]:
    """Grounding from these inputs as {grounding, standard_error, verdict?}; empty if unmeasured."""
    if inputs == "both":
        return {"grounding": phase["grounding"]["total"]} | phase["grounding"]
    return phase.get("single_modality", {}).get(inputs, {})


def corpora(data: Path, params: dict[str, dict]) -> list[Corpus]:
    return [
        Corpus(name, values, _json(data / "01_ingest" / name / "summary.json"))
        for name, values in params.items()
    ]


def encoder(data: Path) -> dict[str, Any]:
    """What encoder.json and summary.json of 06_align say of the encoder."""
    folder = data / "06_align"
    return _json(folder / "encoder.json") | _json(folder / "summary.json")


def sees_middle(data: Path) -> bool:
    """Whether the encoder reads the middle square of a picture, or the whole of it squeezed.

    Kept with the encoder's weights, in the words of the library that they are from.
    """
    folder = data / "06_align"
    for name, path in [
        ("open_clip_config.json", ("preprocess_cfg",)),
        ("processor_config.json", ("image_processor",)),
        ("preprocessor_config.json", ()),
    ]:
        if (folder / name).exists():
            found = _at(_json(folder / name), path) or {}
            size = found.get("size")
            whole = isinstance(size, dict) and "shortest_edge" not in size
            return not whole and found.get("resize_mode", "shortest") == "shortest"
    return True


def runs(data: Path, params: dict[str, dict]) -> list[Run]:
    return [_run(data, name, values) for name, values in params.items()]


def _run(data: Path, name: str, params: dict[str, Any]) -> Run:
    evaluated = data / "12_evaluate" / name
    predictions = data / "11_predict" / name / "predictions.parquet"
    ceilings = data / "01_ingest" / params["corpus"] / "ceilings.json"
    steps = {phase: data / folder / name / "history.csv" for phase, folder in TRAINED.items()}
    items = tables.read(evaluated / "items.parquet", tables.ITEM_SCORES)
    return Run(
        name,
        params,
        _json(evaluated / "metrics.json"),
        {phase: history.read(path) for phase, path in steps.items() if path.exists()},
        [row for row in tables.read(predictions, tables.PREDICTIONS) if _is_test(row)],
        {
            (row["record"], row["position"], row["phase"]): (row["right"], row["wrong"])
            for row in items
            if _is_test(row) and row["right"] is not None
        },
        _json(ceilings)["test"] if ceilings.exists() else {},
    )


def _is_test(row: dict) -> bool:
    return (row["split"], row["inputs"]) == ("test", "both")


def pictures(data: Path, corpus: str, names: set[str]) -> dict[str, bytes]:
    """The files of these pictures of a corpus, its own and illustrations, by hash."""
    wanted = pc.field("sha256").isin(pa.array(sorted(names), pa.string()))
    found = {}
    for stage in ("01_ingest", "08_illustrate"):
        folder = data / stage / corpus / "images"
        if folder.exists():
            table = pq.read_table(folder, columns=["sha256", "bytes"], filters=wanted)
            found |= {row["sha256"]: row["bytes"] for row in table.to_pylist()}
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WrongInput(f"{path} is missing: run `dvc repro`") from None
