"""One reader as the page shows it: its tiles and tables, as plain values.

What readers of memes show stands in stages/report/meme_section.py.
"""

from dataclasses import dataclass
from typing import Any

from stages.report.generator_section import get_nested
from stages.shared.metrics import alignment

INPUT_LABELS = {"text": "text alone", "picture": "picture alone", "both": "both"}
TEXT_ONLY_LABEL = "text; no picture is there"  # both inputs of what has no picture
TASK_SCORE_LABELS = {
    "entities": "F1, lenient",
    "sentiment": "Accuracy",
}  # the score that ceilings are of
STRICT_SCORE_LABELS = {"strict": "F1, strict", "spans": "F1 of places"}
AVERAGE_LABELS = {"weighted_f1": "Weighted F1", "macro_f1": "Macro F1"}
REGULARIZER_LABELS = {
    "caption_nats": ("Captioning", "nats per token of the text, given its picture"),
    "drawing_bits": ("Drawing", "bits per dimension of the picture, given its text"),
}
ALIGNMENT_LABELS = {
    "matched": "cosine of a text and its own picture",
    "mismatched": "cosine of a text and another picture",
    "difference": "difference of the two",
    "distance": "distance of the centroids, in mean spreads",
}
MetricValue = dict[str, Any]  # value, and standard_error and more where there is any


@dataclass(frozen=True)
class ClassifierSection:
    """One reader: its params, metrics and the steps of its training."""

    name: str
    params: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, float]]

    @property
    def task(self) -> str:
        return self.metrics["task"]

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The figures of the split that is scored, then of validation if that is another one."""
        found = {self.metrics["split"]: self.metrics}
        if "validation" in self.metrics and self.metrics["split"] != "validation":
            found["validation"] = self.metrics["validation"]
        return found


class MuseSection(ClassifierSection):
    """A reader of tweets or posts."""

    @property
    def score_label(self) -> str:
        """The name of the score that ceilings and skill are of."""
        return TASK_SCORE_LABELS[self.task]

    def summary_tiles(self) -> list[MetricValue]:
        """The few figures to look at first: label, value, a note, a standard error if any."""
        found, tiles = self.metrics, []
        if "skill" in found:
            note = "of what only text and picture together allow"
            tiles.append({"label": "Skill", "note": note, **found["skill"]})
        note = f"of {found['items']} items of the {found['split']} split"
        tiles.append(
            {"label": self.score_label, "note": note} | select_value_and_error(found["score"])
        )
        if self.task == "entities":
            for rule, label in STRICT_SCORE_LABELS.items():
                value, error = found[rule]["f1"], found[rule]["standard_error"]
                tiles.append({"label": label, "note": "", "value": value, "standard_error": error})
        else:
            for name, label in AVERAGE_LABELS.items():
                tiles.append({"label": label, "note": "", **found[name]})
        for name, (label, note) in REGULARIZER_LABELS.items():
            if name in found["regularisers"]:
                tiles.append(
                    {"label": label, "note": note}
                    | select_value_and_error(found["regularisers"][name])
                )
        return [*tiles, build_parameter_tile(found["parameters"])]

    def input_rows(self) -> list[MetricValue]:
        """Rows of the score beside the ceilings: label, ceiling (if known), a score by split."""
        ceilings, single = self.metrics.get("ceilings", {}), self.metrics.get("single_modality", {})
        rows = []
        for inputs, label in INPUT_LABELS.items():
            values = [of["score"] if inputs == "both" else {} for of in self.splits.values()]
            if inputs in single:
                values[0] = single[inputs]
            if inputs == "both" or inputs in single:
                label = label if single else TEXT_ONLY_LABEL
                rows.append({"label": label, "ceiling": ceilings.get(inputs), "values": values})
        return rows

    def skill_values(self) -> list[MetricValue]:
        """The last row of that table, a skill by split; empty where no ceilings are known."""
        return [of["skill"] for of in self.splits.values() if "skill" in of]

    def class_rows(self) -> list[MetricValue]:
        """Rows of the table of entities by type, or of classes; the last one is the total."""
        found = self.metrics
        if self.task == "sentiment":
            return [{"label": kind, **row} for kind, row in found["by_class"].items()]
        lenient, strict = found["lenient"], found["strict"]
        rows = [
            # A type of orphan tags alone has no strict entity.
            {"label": kind, **row, "strict": strict["by_type"].get(kind, {}).get("f1", 0.0)}
            for kind, row in lenient["by_type"].items()
        ]
        spans = {"label": "places alone", **found["spans"], "strict": None}
        return [*rows, spans, {"label": "all", "total": True, **lenient, "strict": strict["f1"]}]

    def alignment_rows(self) -> list[MetricValue]:
        """Rows of text beside picture: label, and value and error before and after."""
        sides = [self.metrics["alignment"][where] for where in alignment.PROJECTION_SIDES]
        return [
            {"label": label, "values": [_value_with_error(side, path) for side in sides]}
            for path, label in ALIGNMENT_LABELS.items()
        ]

    def alignment_unavailable_reasons(self) -> list[str]:
        """Why text and picture cannot be compared, before or after; nothing where they can."""
        found = self.metrics["alignment"]
        return [f"{where}: {said}" for where, said in found.items() if isinstance(said, str)]


def _value_with_error(side: dict[str, Any] | str, path: str) -> MetricValue:
    """Of one side of the alignment, or of the word that says why there is none."""
    found = get_nested(side, path)
    return found if isinstance(found, dict) else {"value": found, "standard_error": None}


def build_parameter_tile(parameters: dict[str, int]) -> MetricValue:
    """The tile of how many numbers a model has."""
    note = f"trained, {parameters['frozen']:,} more as they were"
    return {"label": "Weights", "value": parameters["trained"], "note": note}


def select_value_and_error(figure: MetricValue) -> MetricValue:
    return {name: figure[name] for name in ("value", "standard_error")}
