"""A classifier's section of the report: tiles and tables, as plain values.

stages/report/meme_section.py has the section of meme classifiers.
"""

from dataclasses import dataclass
from typing import Any

from stages.report.generator_section import get_nested
from stages.shared.metrics import alignment

INPUT_LABELS = {"text": "text only", "picture": "image only", "both": "text and image"}
NO_IMAGE_LABEL = "text (no item has an image)"
SCORE_LABELS = {"entities": "Lenient F1", "sentiment": "Accuracy"}  # what ceilings refer to
STRICT_SCORE_LABELS = {  # label and note
    "strict": ("Strict F1", "without entities that start with an I- tag"),
    "spans": ("Span F1", "entity types ignored"),
}
AVERAGE_LABELS = {"weighted_f1": "Weighted F1", "macro_f1": "Macro F1"}
REGULARIZER_LABELS = {
    "caption_nats": ("Caption loss", "nats per token of the text, given the image"),
    "drawing_bits": ("Image loss", "bits per dimension of the image, given the text"),
}
ALIGNMENT_LABELS = {
    "matched": "cosine of a text and its own image",
    "mismatched": "cosine of a text and another image",
    "difference": "difference of these cosines",
    "distance": "distance of the centroids, in units of the mean spread",
}
BASELINE_LABELS = {
    "majority": "majority class",
    "logistic_regression": "logistic regression",
    "decision_fusion": "decision fusion",
    "crf": "linear-chain CRF",
}
MetricValue = dict[str, Any]  # value, standard_error, and more


@dataclass(frozen=True)
class ClassifierSection:
    """One classifier: its params, metrics and training history."""

    name: str
    params: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, float]]

    @property
    def task(self) -> str:
        return self.metrics["task"]

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The metrics of the evaluated split, then those of validation if that is another split."""
        splits = {self.metrics["split"]: self.metrics}
        if "validation" in self.metrics and self.metrics["split"] != "validation":
            splits["validation"] = self.metrics["validation"]
        return splits

    def baseline_columns(self) -> list[str]:
        """The titles of the scores in `baseline_rows`."""
        return [*self._averaged_tasks(), "mean"] if self._averaged_tasks() else ["score"]

    def _averaged_tasks(self) -> list[str]:
        """The tasks if there are several, else none."""
        tasks = list(self.metrics.get("tasks", {}))
        return tasks if len(tasks) > 1 else []

    def baseline_rows(self) -> list[MetricValue]:
        """Rows of the scores of baselines, then of the model: label, scores and difference.

        scores: by task, then the mean over tasks; one score if there is one task. difference: of
        the model and the baseline; None for the model.
        """
        tasks, rows = self._averaged_tasks(), []
        for baseline, by_inputs in self.metrics["baselines"]["scores"].items():
            for inputs, score in by_inputs.items():
                label = BASELINE_LABELS[baseline]
                if inputs in INPUT_LABELS:
                    label += f", {INPUT_LABELS[inputs]}"
                scores = [*(score["tasks"][task] for task in tasks), score]
                rows.append({"label": label, "scores": scores, "difference": score["difference"]})
        model = [*(self.metrics["tasks"][task]["score"] for task in tasks), self.metrics["score"]]
        return [*rows, {"label": self.name, "scores": model, "difference": None, "total": True}]

    def baseline_notes(self) -> list[str]:
        """The comparison in words, and why an input was left out."""
        baselines = self.metrics["baselines"]
        omitted = [
            f"No baseline from {INPUT_LABELS[inputs]}: {reason}."
            for inputs, reason in baselines["omitted"].items()
        ]
        return [baselines["comparison"]["sentence"], *omitted]


class MuseSection(ClassifierSection):
    """A classifier of tweets or posts."""

    @property
    def score_label(self) -> str:
        """The name of the score that ceilings and skill refer to."""
        return SCORE_LABELS[self.task]

    def summary_tiles(self) -> list[MetricValue]:
        """The headline metrics: label, value, note, and standard_error if there is one."""
        metrics, tiles = self.metrics, []
        if "skill" in metrics:
            note = "(0: best from one modality alone, 1: best from both)"
            tiles.append({"label": "Skill", "note": note, **metrics["skill"]})
        note = f"{metrics['items']} items of the {metrics['split']} split"
        tiles.append(
            {"label": self.score_label, "note": note} | select_value_and_error(metrics["score"])
        )
        if self.task == "entities":
            for rule, (label, note) in STRICT_SCORE_LABELS.items():
                value, error = metrics[rule]["f1"], metrics[rule]["standard_error"]
                tiles.append(
                    {"label": label, "note": note, "value": value, "standard_error": error}
                )
        else:
            for name, label in AVERAGE_LABELS.items():
                tiles.append({"label": label, "note": "", **metrics[name]})
        for name, (label, note) in REGULARIZER_LABELS.items():
            if name in metrics["regularisers"]:
                value = select_value_and_error(metrics["regularisers"][name])
                tiles.append({"label": label, "note": note} | value)
        return [*tiles, build_parameter_tile(metrics["parameters"])]

    def input_rows(self) -> list[MetricValue]:
        """Rows of the score by input: label, ceiling (None if unknown), and a score by split."""
        ceilings, single = self.metrics.get("ceilings", {}), self.metrics.get("single_modality", {})
        rows = []
        for inputs, label in INPUT_LABELS.items():
            values = [
                metrics["score"] if inputs == "both" else {} for metrics in self.splits.values()
            ]
            if inputs in single:
                values[0] = single[inputs]
            if inputs == "both" or inputs in single:
                label = label if single else NO_IMAGE_LABEL
                rows.append({"label": label, "ceiling": ceilings.get(inputs), "values": values})
        return rows

    def skill_values(self) -> list[MetricValue]:
        """The last row of that table: skill by split. Empty if no ceilings are known."""
        return [metrics["skill"] for metrics in self.splits.values() if "skill" in metrics]

    def class_rows(self) -> list[MetricValue]:
        """Rows of scores by entity type, with totals at the end, or by class."""
        metrics = self.metrics
        if self.task == "sentiment":
            return [{"label": name, **row} for name, row in metrics["by_class"].items()]
        lenient, strict = metrics["lenient"], metrics["strict"]
        rows = [
            # A type that only occurs in orphan I- tags has no strict entity.
            {"label": name, **row, "strict": strict["by_type"].get(name, {}).get("f1", 0.0)}
            for name, row in lenient["by_type"].items()
        ]
        spans = {"label": "spans of any type", **metrics["spans"], "strict": None}
        total = {"label": "all types", "total": True, **lenient, "strict": strict["f1"]}
        return [*rows, spans, total]

    def alignment_rows(self) -> list[MetricValue]:
        """Rows of the alignment of text and image: label, and values before and after."""
        sides = [self.metrics["alignment"][side] for side in alignment.PROJECTION_SIDES]
        return [
            {"label": label, "values": [_value_with_error(side, path) for side in sides]}
            for path, label in ALIGNMENT_LABELS.items()
        ]

    def alignment_unavailable_reasons(self) -> list[str]:
        """Why the alignment was not computed, before or after the projection."""
        return [
            f"{side} the shared projection: {reason}"
            for side, reason in self.metrics["alignment"].items()
            if isinstance(reason, str)
        ]


def _value_with_error(side: dict[str, Any] | str, path: str) -> MetricValue:
    """A metric of one side of the projection; None if `side` is the reason why there is none."""
    value = get_nested(side, path)
    return value if isinstance(value, dict) else {"value": value, "standard_error": None}


def build_parameter_tile(parameters: dict[str, int]) -> MetricValue:
    note = f"trained parameters; {parameters['frozen']:,} more are frozen"
    return {"label": "Parameters", "value": parameters["trained"], "note": note}


def select_value_and_error(metric: MetricValue) -> MetricValue:
    return {name: metric[name] for name in ("value", "standard_error")}
