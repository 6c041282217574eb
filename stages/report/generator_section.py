"""One run as the page shows it: its tiles, its tables, and what it wrote, as plain values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

# As a table shows them; METEOR has one of two names, by what measured it.
TEXT_SCORE_LABELS = {
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
REWARD_LABELS = {"literal": "literal reward", "semantic": "semantic reward"}
# How far a run came between the best of one modality, or nothing, and the best of all.
SKILL_LABELS = {
    "skill": ("Skill", "of what only both modalities together allow"),
    "share_of_ceiling": ("Share of ceiling", "of what the picture allows"),
}
INPUT_LABELS = {"topic": "topic alone", "picture": "picture alone", "both": "both"}
PhaseMetrics = dict[str, Any]  # the metrics of one phase


@dataclass(frozen=True)
class GeneratorSection:
    """One run: its params, metrics, the steps of its training and what it wrote for test items."""

    name: str
    params: dict[str, Any]
    kind: str  # of its corpus: articles | captions
    metrics: dict[str, Any]
    histories: dict[str, list[dict[str, float]]]  # by phase
    predictions: list[dict]  # PREDICTIONS of the test split from both inputs
    slot_results: dict[
        tuple[str, int, str], tuple[list[str], list[str]]
    ]  # item and phase: right, wrong
    ceilings: dict[str, dict]  # of the test split: inputs -> expected | realised -> slot or total

    @cached_property
    def phases(self) -> dict[str, PhaseMetrics]:
        """The metrics of each phase, in the order of training."""
        final = {self.metrics["phase"]: self.metrics}
        return {"sft": self.metrics["sft"]} | final if "sft" in self.metrics else final

    @property
    def lacks_sigma(self) -> bool:
        """Whether its gate knows the similarity of picture and topic of no test item."""
        return "gate" in self.metrics and not any(r["sigma"] is not None for r in self.predictions)

    def warnings(self) -> list[str]:
        """What is suspicious, a sentence each: of the final phase, then of SFT alone."""
        final = self.metrics.get("warnings", {})
        earlier = self.metrics.get("sft", {}).get("warnings", {})
        only_sft = [said for said in earlier.values() if said not in final.values()]
        return [*final.values(), *(f"After SFT alone: {said}" for said in only_sft)]

    def summary_tiles(self) -> list[dict[str, Any]]:
        """The few figures to look at first: label, value, standard error and a note; before: of
        SFT alone; gain: what the preference phase changed, with its standard error."""
        found, earlier = self.metrics, self.metrics.get("sft", {})
        tiles = []
        for name, (label, note) in SKILL_LABELS.items():
            if name in found:
                tiles.append({"label": label, "note": note, **found[name]})
        if "grounding" in found:
            value, error = found["grounding"]["total"], found["grounding"]["standard_error"]
            note = "of the scene's slots stated correctly"
            tile = {"label": "Grounding", "value": value, "standard_error": error, "note": note}
            tiles.append(
                tile | self._gain_over_sft("grounding", get_nested(earlier, "grounding.total"))
            )
        if "foils" in found:
            note = f"of {found['foils']['items']} items, a false text was as likely"
            before = get_nested(earlier, "foils.error")
            tile = {"label": "Foil errors", "value": found["foils"]["error"], "note": note}
            tiles.append(tile | {"before": before})
        if "object_attention" in found:
            tiles.append(_build_object_attention_tile(found["object_attention"]))
        tiles += [
            {
                "label": TEXT_SCORE_LABELS[name],
                "value": found[name],
                "note": "",
                "before": earlier.get(name),
            }
            for name in ("rouge_l", "cider", "bert_score")
        ]
        return tiles + self._reward_tiles()

    def _reward_tiles(self) -> list[dict[str, Any]]:
        """A tile for each reward that is measured."""
        rewards, earlier = self.metrics["rewards"], self.metrics.get("sft", {})
        note = f"of {rewards['articles']} whole texts"
        return [
            {"label": label.capitalize(), "value": rewards[name], "note": note}
            | self._gain_over_sft(name, get_nested(earlier, f"rewards.{name}"))
            for name, label in REWARD_LABELS.items()
            if not isinstance(rewards[name], str)
        ]

    def _gain_over_sft(self, name: str, before: float | None) -> dict[str, Any]:
        """What a tile says of the phase before, nothing where there is none."""
        gain = get_nested(self.metrics, f"gain.{name}")
        return {} if gain is None else {"before": before, "gain": gain}

    def text_score_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of text scores: name, value by phase, what measured it.

        First by the main tokenizer, then by each further one, then the rewards.
        """
        rows = self._score_rows(
            {name: name for name in TEXT_SCORE_LABELS}, TEXT_SCORE_LABELS, "measured_by"
        )
        for tokenizer in self.metrics.get("by_tokenizer", {}):
            block = f"by_tokenizer.{tokenizer}"
            labels = {name: f"{label}, {tokenizer}" for name, label in TEXT_SCORE_LABELS.items()}
            paths = {name: f"{block}.{name}" for name in TEXT_SCORE_LABELS}
            rows += self._score_rows(paths, labels, f"{block}.measured_by")
        return rows + self._score_rows(
            {n: f"rewards.{n}" for n in REWARD_LABELS}, REWARD_LABELS, "measured_by"
        )

    def _score_rows(
        self, paths: dict[str, str], labels: dict[str, str], measured_by: str
    ) -> list[dict[str, Any]]:
        """Rows of what stands at any of the paths in some phase."""
        rows = []
        for name, path in paths.items():
            values = [get_nested(phase, path) for phase in self.phases.values()]
            known = [phase for phase in self.phases.values() if get_nested(phase, path) is not None]
            if known:
                by = get_nested(known[0], f"{measured_by}.{name}")
                rows.append({"label": labels[name], "values": values, "by": by})
        return rows

    def grounding_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of grounding: inputs, ceilings, value and verdict by phase."""
        ceilings = self.metrics.get("ceilings", {})
        # Where no topic tells anything, the picture alone is all there is to be seen.
        labels = INPUT_LABELS if "topic" in ceilings else {"picture": "the picture"}
        return [
            {
                "label": label,
                "ceiling": ceilings[inputs],
                "values": [
                    _grounding_from_inputs(phase, inputs if "topic" in ceilings else "both")
                    for phase in self.phases.values()
                ],
            }
            for inputs, label in labels.items()
            if inputs in ceilings
        ]

    def skill_row(self) -> dict[str, Any]:
        """The last row of that table: skill or share of ceiling, by phase."""
        name = next(name for name in SKILL_LABELS if name in self.metrics)
        label, _ = SKILL_LABELS[name]
        values = [phase[name] for phase in self.phases.values()]
        return {"label": label.lower(), "best": 1.0, "values": values}

    def gate_and_fusion_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of gate and fusion: label, value by phase, as far as measured."""
        paths = {
            "topics masked in training": "gate.train.mask_rate",
            "topics masked when writing": "gate.predict.mask_rate",
            "sigma, mean": "gate.sigma",
            "lambda, mean": "fusion.correlation.mean",
            "lambda, deviation": "fusion.correlation.deviation",
            "entropy of the fusion's attention": "fusion.entropy",
            "spread of the fusion's attention": "fusion.spread",
            "attention on the object": "object_attention.mass",
            "the object's share of the picture": "object_attention.area",
        }
        rows = [
            {"label": label, "values": [get_nested(phase, path) for phase in self.phases.values()]}
            for label, path in paths.items()
        ]
        return [row for row in rows if any(value is not None for value in row["values"])]

    def select_articles(self, count: int, looked_at: set[str]) -> list[dict[str, Any]]:
        """The first test articles: title, language and chunks with the text of each phase.

        Those whose attention was kept come before others.
        """
        names = {row["record"] for row in self.predictions}
        ordered = sorted(names, key=lambda name: (name not in looked_at, name))
        return [self._build_article(name) for name in ordered[:count]]

    def _build_article(self, record: str) -> dict[str, Any]:
        rows = [row for row in self.predictions if row["record"] == record]
        of_one_phase = [row for row in rows if row["phase"] == rows[0]["phase"]]
        chunks = [
            {
                "key": (record, chunk["position"]),
                "image": chunk["image"],
                "references": chunk["references"],
                "texts": [
                    self._build_text(row) for row in rows if row["position"] == chunk["position"]
                ],
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

    def _build_text(self, row: dict) -> dict[str, Any]:
        key = (row["record"], row["position"], row["phase"])
        right, wrong = self.slot_results.get(key, ([], []))
        return {"phase": row["phase"], "text": row["text"], "right": right, "wrong": wrong}


def _build_object_attention_tile(found: dict[str, Any]) -> dict[str, Any]:
    error = found["standard_error"]  # a word where all items are of one record
    noise = f" \N{PLUS-MINUS SIGN} {error:.3f}" if isinstance(error, float) else ""
    return {
        "label": "Looks at the object",
        "value": found["ratio"],
        "note": f"times as much as everywhere alike: {found['mass']:.3f}{noise} of the attention on"
        f" {found['area']:.3f} of the picture, {found['items']} items",
    }


def get_nested(values: dict[str, Any], path: str) -> Any:
    """What stands at a path of keys, one.inside.other, or None."""
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def _grounding_from_inputs(phase: PhaseMetrics, inputs: str) -> dict[str, Any]:
    """Grounding from these inputs as {grounding, standard_error, verdict?}; empty if unmeasured."""
    if inputs == "both":
        return {"grounding": phase["grounding"]["total"]} | phase["grounding"]
    return phase.get("single_modality", {}).get(inputs, {})
