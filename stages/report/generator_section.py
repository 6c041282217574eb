"""A generator's section of the report: tiles, tables and example articles, as plain values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

# METEOR has one of two names, depending on the implementation that computed it.
TEXT_SCORE_LABELS = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "meteor_exact_stem": "METEOR, exact and stem matches",
    "cider": "CIDEr",
    "bert_score": "BERTScore",
}
REWARD_LABELS = {"literal": "literal reward", "semantic": "semantic reward"}
SKILL_LABELS = {
    "skill": ("Skill", "(0: best from one modality alone, 1: best from both)"),
    "share_of_ceiling": ("Share of ceiling", "(1: the best possible from the image)"),
}
INPUT_LABELS = {
    "topic": "topic only",
    "first_picture": "first image only",
    "picture": "image only",
    "both": "topic and image",
}
GATE_AND_FUSION_LABELS = {  # path in the metrics of a phase -> row of the table
    "gate.train.mask_rate": "share of topics masked in training",
    "gate.predict.mask_rate": "share of topics masked in generation",
    "gate.sigma": "sigma (cosine of image and topic), mean",
    "fusion.correlation.mean": "lambda, mean",
    "fusion.correlation.deviation": "lambda, standard deviation",
    "fusion.entropy": "entropy of the fusion attention (1: uniform)",
    "fusion.spread": "spread of the fusion attention (0: all patches attend to one token)",
    "object_attention.mass": "share of attention on the object",
    "object_attention.area": "share of the image area that the object covers",
}
BASELINE_LABELS = {
    "nearest_image": "nearest training text by image",
    "nearest_topic": "nearest training text by topic",
    "consensus": "consensus of the nearest training images",
    "shuffled_images": "the model with shuffled images",
}
PhaseMetrics = dict[str, Any]  # the metrics of one phase


@dataclass(frozen=True)
class GeneratorSection:
    """One generator: its params, metrics, training history and test predictions."""

    name: str
    params: dict[str, Any]
    kind: str  # of its corpus: articles | captions
    metrics: dict[str, Any]
    histories: dict[str, list[dict[str, float]]]  # by phase
    predictions: list[dict]  # PREDICTIONS of the test split from both inputs
    slot_results: dict[
        tuple[str, int, str], tuple[list[str], list[str]]
    ]  # (record, position, phase) -> correct and wrong slots
    further_images: dict[tuple[str, int], list[str]]  # (record, position) -> after its first image
    ceilings: dict[str, dict]  # of the test split: inputs -> expected | realised -> slot or total

    @cached_property
    def phases(self) -> dict[str, PhaseMetrics]:
        """The metrics of each phase, in training order."""
        final = {self.metrics["phase"]: self.metrics}
        return {"sft": self.metrics["sft"]} | final if "sft" in self.metrics else final

    @property
    def lacks_sigma(self) -> bool:
        """Whether the model has a gate, but no test item has a similarity of image and topic."""
        return "gate" in self.metrics and not any(
            row["sigma"] is not None for row in self.predictions
        )

    def warnings(self) -> list[str]:
        """Sentences about suspicious metrics: of the final phase, then those of SFT only."""
        final = self.metrics.get("warnings", {}).values()
        earlier = self.metrics.get("sft", {}).get("warnings", {}).values()
        return [*final, *(f"After SFT only: {text}" for text in earlier if text not in final)]

    def summary_tiles(self) -> list[dict[str, Any]]:
        """The headline metrics: label, value, note and standard_error.

        A tile may also have `before`, the value after SFT only, and `gain`, the difference made by
        the preference phase with its standard error.
        """
        metrics, earlier = self.metrics, self.metrics.get("sft", {})
        tiles = []
        for name, (label, note) in SKILL_LABELS.items():
            if name in metrics:
                tiles.append({"label": label, "note": note, **metrics[name]})
        if "grounding" in metrics:
            tile = {
                "label": "Grounding",
                "value": metrics["grounding"]["total"],
                "standard_error": metrics["grounding"]["standard_error"],
                "note": "share of the scene's facts (slots) stated correctly",
            }
            before = get_nested(earlier, "grounding.total")
            tiles.append(tile | self._gain_over_sft("grounding", before))
        if "foils" in metrics:
            tiles.append(
                {
                    "label": "Foil errors",
                    "value": metrics["foils"]["error"],
                    "note": f"share of the {metrics['foils']['items']} items whose wrong text is at"
                    " least as likely as the true one",
                    "before": get_nested(earlier, "foils.error"),
                }
            )
        if "object_attention" in metrics:
            tiles.append(_build_object_attention_tile(metrics["object_attention"]))
        tiles += [
            {
                "label": TEXT_SCORE_LABELS[name],
                "value": metrics[name],
                "note": "",
                "before": earlier.get(name),
            }
            for name in ("rouge_l", "cider", "bert_score")
        ]
        return tiles + self._reward_tiles()

    def _reward_tiles(self) -> list[dict[str, Any]]:
        """A tile for each reward that was computed."""
        rewards, earlier = self.metrics["rewards"], self.metrics.get("sft", {})
        note = f"mean over {rewards['articles']} whole texts"
        return [
            {"label": label.capitalize(), "value": rewards[name], "note": note}
            | self._gain_over_sft(name, get_nested(earlier, f"rewards.{name}"))
            for name, label in REWARD_LABELS.items()
            if not isinstance(rewards[name], str)
        ]

    def _gain_over_sft(self, name: str, before: float | None) -> dict[str, Any]:
        """`before` and `gain` of a tile; empty for a run without a preference phase."""
        gain = get_nested(self.metrics, f"gain.{name}")
        return {} if gain is None else {"before": before, "gain": gain}

    def text_score_rows(self) -> list[dict[str, Any]]:
        """Rows of the text scores: label, values by phase, and what computed them.

        First with the main tokenizer, then of whole articles, then with each further tokenizer,
        then the rewards.
        """
        rows = self._score_rows(
            {name: name for name in TEXT_SCORE_LABELS}, TEXT_SCORE_LABELS, "measured_by"
        )
        labels = {name: f"{label}, whole articles" for name, label in TEXT_SCORE_LABELS.items()}
        paths = {name: f"by_article.{name}" for name in TEXT_SCORE_LABELS}
        rows += self._score_rows(paths, labels, "by_article.measured_by")
        for tokenizer in self.metrics.get("by_tokenizer", {}):
            block = f"by_tokenizer.{tokenizer}"
            labels = {name: f"{label}, {tokenizer}" for name, label in TEXT_SCORE_LABELS.items()}
            paths = {name: f"{block}.{name}" for name in TEXT_SCORE_LABELS}
            rows += self._score_rows(paths, labels, f"{block}.measured_by")
        return rows + self._score_rows(
            {name: f"rewards.{name}" for name in REWARD_LABELS}, REWARD_LABELS, "measured_by"
        )

    def _score_rows(
        self, paths: dict[str, str], labels: dict[str, str], measured_by: str
    ) -> list[dict[str, Any]]:
        """A row for each path that exists in the metrics of any phase."""
        rows = []
        for name, path in paths.items():
            values = [get_nested(phase, path) for phase in self.phases.values()]
            scored = [
                phase for phase in self.phases.values() if get_nested(phase, path) is not None
            ]
            if scored:
                source = get_nested(scored[0], f"{measured_by}.{name}")
                rows.append({"label": labels[name], "values": values, "measured_by": source})
        return rows

    def baseline_columns(self) -> list[str]:
        """The titles of the scores in `baseline_rows`; the compared score is first."""
        return [TEXT_SCORE_LABELS[name] for name in self._baseline_scores()]

    def _baseline_scores(self) -> list[str]:
        baselines = self.metrics["baselines"]
        first = baselines.get("score", "cider")
        names = [first, "cider", "rouge_l", "meteor", "meteor_exact_stem", "bleu_4"]
        systems = [self.metrics, *baselines["scores"].values()]
        return [name for name in dict.fromkeys(names) if all(name in system for system in systems)]

    def baseline_rows(self) -> list[dict[str, Any]]:
        """Rows of the scores of baselines, then of the final phase: label, scores and difference.

        scores: value, and a standard error for the compared one. difference: of the model and the
        baseline; None for the model.
        """
        baselines = self.metrics["baselines"]
        systems = [
            (BASELINE_LABELS[name], scores, scores, scores["difference"])
            for name, scores in baselines["scores"].items()
        ]
        systems.append((self.name, self.metrics, baselines.get("model", {}), None))
        compared, names = baselines.get("score"), self._baseline_scores()
        return [
            {
                "label": label,
                "scores": [
                    {
                        "value": scores[name],
                        "standard_error": errors["standard_error"] if name == compared else None,
                    }
                    for name in names
                ],
                "difference": difference,
            }
            | ({} if difference else {"total": True})
            for label, scores, errors, difference in systems
        ]

    def baseline_notes(self) -> list[str]:
        """The comparisons in words, and why a baseline was left out."""
        baselines = self.metrics["baselines"]
        omitted = [
            f"No {BASELINE_LABELS[name]}: {reason}."
            for name, reason in baselines["omitted"].items()
        ]
        return [*(scores["sentence"] for scores in baselines["scores"].values()), *omitted]

    def grounding_rows(self) -> list[dict[str, Any]]:
        """Rows of grounding by input: label, ceiling, and value with verdict by phase."""
        ceilings = self.metrics.get("ceilings", {})
        # Without a topic (captions), the image is the only input.
        labels = INPUT_LABELS if "topic" in ceilings else {"picture": "image"}
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
        """The last row of the grounding table: skill or share of ceiling, by phase."""
        name = next(name for name in SKILL_LABELS if name in self.metrics)
        label, _ = SKILL_LABELS[name]
        return {"label": label.lower(), "values": [phase[name] for phase in self.phases.values()]}

    def gate_and_fusion_rows(self) -> list[dict[str, Any]]:
        """Rows of the gate and fusion metrics: label and values by phase."""
        rows = [
            {"label": label, "values": [get_nested(phase, path) for phase in self.phases.values()]}
            for path, label in GATE_AND_FUSION_LABELS.items()
        ]
        return [row for row in rows if any(value is not None for value in row["values"])]

    def select_articles(self, count: int, attended_records: set[str]) -> list[dict[str, Any]]:
        """At most `count` test articles: title, language, and chunks with the text of each phase.

        Articles with recorded attention come first.
        """
        records = {row["record"] for row in self.predictions}
        ordered = sorted(records, key=lambda record: (record not in attended_records, record))
        return [self._build_article(record) for record in ordered[:count]]

    def _build_article(self, record: str) -> dict[str, Any]:
        rows = [row for row in self.predictions if row["record"] == record]
        first = rows[0]
        chunks = [
            {
                "key": (record, chunk["position"]),
                "images": [chunk["image"], *self.get_further_images(chunk)],
                "references": chunk["references"],
                "texts": [
                    self._build_text(row) for row in rows if row["position"] == chunk["position"]
                ],
            }
            for chunk in sorted(
                (row for row in rows if row["phase"] == first["phase"]),
                key=lambda row: row["position"],
            )
        ]
        return {
            "record": record,
            "title": first["title"],
            "language": first["language"],
            "chunks": chunks,
        }

    def get_further_images(self, row: dict) -> list[str]:
        """The images of a chunk after its first; empty unless its text is about several images."""
        return self.further_images.get((row["record"], row["position"]), [])

    def _build_text(self, row: dict) -> dict[str, Any]:
        key = (row["record"], row["position"], row["phase"])
        correct, wrong = self.slot_results.get(key, ([], []))
        return {"phase": row["phase"], "text": row["text"], "correct": correct, "wrong": wrong}


def _build_object_attention_tile(metrics: dict[str, Any]) -> dict[str, Any]:
    error = metrics["standard_error"]  # a word if all items are from one record
    noise = f" \N{PLUS-MINUS SIGN} {error:.3f}" if isinstance(error, float) else ""
    return {
        "label": "Attention on the object",
        "value": metrics["ratio"],
        "note": f"times that of uniform attention: {metrics['mass']:.3f}{noise} of the attention"
        f" on {metrics['area']:.3f} of the image, {metrics['items']} items",
    }


def get_nested(values: object, path: str) -> Any:
    """The value at a dotted path such as "gate.train.mode", or None."""
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def _grounding_from_inputs(phase: PhaseMetrics, inputs: str) -> dict[str, Any]:
    """Grounding from some inputs: grounding, standard_error, verdict?; empty if not computed."""
    if inputs == "both":
        return {"grounding": phase["grounding"]["total"]} | phase["grounding"]
    return phase.get("single_modality", {}).get(inputs, {})
