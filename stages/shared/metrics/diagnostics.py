"""Diagnostics of gate, fusion and decoder attention: statistics of a phase, and warnings.

A mean over no values is NaN, which metrics.json reports as `unavailable`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stages.shared.core import schemas
from stages.shared.metrics import attention, grounding
from stages.shared.metrics.common import clustered_standard_error
from stages.shared.metrics.grounding import SceneSlots

ItemKey = tuple[str, int]  # record, position


@dataclass(frozen=True)
class WarningThresholds:
    """The values beyond which a statistic causes a warning; see EvaluateConfig."""

    over_masking: float
    uniform_entropy: float
    single_spread: float


@dataclass(frozen=True)
class AttentionTraces:
    """Rows of GATES, FUSIONS and ATTENTIONS; fusions and attentions are of one phase or of all."""

    gates: list[dict]
    fusions: list[dict]
    attentions: list[dict]

    def select_phase(self, phase: str) -> "AttentionTraces":
        selected = [
            [row for row in rows if row["phase"] == phase]
            for rows in (self.fusions, self.attentions)
        ]
        return AttentionTraces(self.gates, *selected)


def load_traces(predictions: Path) -> AttentionTraces:
    return AttentionTraces(
        schemas.read_parquet(predictions / "gates.parquet", schemas.GATES),
        schemas.read_parquet(predictions / "fusions.parquet", schemas.FUSIONS),
        schemas.read_parquet(predictions / "attentions.parquet", schemas.ATTENTIONS),
    )


def load_boxes(ingest: Path) -> dict[ItemKey, dict[str, attention.NormalizedBox]]:
    """(record, position) -> slot -> box of its object; empty if the corpus has no boxes."""
    path, boxes = ingest / "boxes.parquet", {}
    for row in schemas.read_parquet(path, schemas.BOXES) if path.exists() else []:
        box = row["left"], row["top"], row["right"], row["bottom"]
        boxes.setdefault((row["record"], row["position"]), {})[row["slot"]] = box
    return boxes


def summarize_gate(rows: list[dict]) -> dict[str, Any]:
    """The fraction of topics that msaGate masks in training and in prediction, and the mean sigma.

    In training: on the train split, with the gate of SFT; mscDPO trains with the gate of
    prediction. Sigma is averaged over the test split.
    """
    summary: dict[str, Any] = {}
    for use, split in (("train", "train"), ("predict", "test")):
        selected = [row for row in rows if row["use"] == use and row["split"] == split]
        masked = [1 - row["passed"] for row in selected if row["passed"] is not None]
        modes = sorted({row["mode"] for row in rows if row["use"] == use})
        summary[use] = {"mode": ", ".join(modes), "mask_rate": _mean_of_known(masked)}
    return summary | {"sigma": _mean_of_known([row["sigma"] for row in selected])}


def summarize_fusion(rows: list[dict]) -> dict[str, Any]:
    """Mean and standard deviation of lambda over items and channels; mean entropy and spread."""
    values = [row["correlation"] for row in rows]
    flat = np.concatenate(values) if values else np.array([math.nan])
    return {
        "correlation": {"mean": float(flat.mean()), "deviation": float(flat.std())},
        "entropy": _mean_of_known([row["entropy"] for row in rows]),
        "spread": _mean_of_known([row["spread"] for row in rows]),
    }


def compute_object_attention(
    rows: list[dict],
    slots: SceneSlots,
    facts: dict[ItemKey, dict[str, str]],
    boxes: dict[ItemKey, dict[str, attention.NormalizedBox]],
) -> dict[str, float] | None:
    """How much the decoder attends to an object while it emits the object's word.

    mass: the fraction of its attention inside the object's box, averaged over the items that state
    the object. area: the mean area of the box, which is the mass of uniform attention. ratio: mass
    / area. standard_error: of mass, clustered by record. None if no item states its object.
    """
    masses, areas, records = [], [], []
    for row in rows:
        key = row["record"], row["position"]
        for slot, box in boxes.get(key, {}).items():
            patches = len(row["decoder"]) // len(row["ends"])
            coverage = attention.compute_box_coverage(box, patches)
            tokens = find_word_tokens(row, slots.all_slots[slot], facts[key][slot])
            if coverage is None or not tokens:
                continue
            weights = np.array(row["decoder"]).reshape(len(row["ends"]), -1)  # (Y, P)
            masses.append(attention.compute_attention_mass(weights[tokens], coverage))
            left, top, right, bottom = box
            areas.append((right - left) * (bottom - top))
            records.append(row["record"])
    if not masses:
        return None
    mass, area = fmean(masses), fmean(areas)
    return {
        "mass": mass,
        "area": area,
        "ratio": mass / area,
        "standard_error": clustered_standard_error(masses, records),
        "items": len(masses),
    }


def find_word_tokens(row: dict, phrases: grounding.SlotPhrases, value: str) -> list[int]:
    """The tokens of a text that emit the last word of the first phrase for `value`.

    The last word names the object: globe in "a striped globe".
    """
    for stated, start, stop in grounding.find_phrases(row["text"], phrases):
        if stated == value:
            last = row["text"][start:stop].split()[-1]
            return attention.find_emitting_tokens(row["ends"], stop - len(last), stop)
    return []


def build_warnings(
    gate: dict | None, fusion: dict | None, thresholds: WarningThresholds
) -> dict[str, str]:
    """Warning name -> what is wrong and what to check, for each value beyond its threshold.

    gate, fusion: their summaries; None if the run has no gate or no fusion.
    """
    warnings = {}
    masked = [
        f"{gate[use]['mask_rate']:.0%} of the topics {when} (mode {gate[use]['mode']})"
        for use, when in (("train", "in training"), ("predict", "in prediction"))
        if gate and gate[use]["mask_rate"] > thresholds.over_masking
    ]
    if masked:
        warnings["over_masking"] = (
            f"msaGate masks {' and '.join(masked)}, so titles hardly affect the text: look at the "
            "histogram of sigma, and at sigma_map and the gate's modes in models.*.network of "
            "params.yaml"
        )
    if fusion and fusion["entropy"] > thresholds.uniform_entropy:
        warnings["uniform_attention"] = (
            f"the fusion's attention is nearly uniform (entropy {fusion['entropy']:.2f} of 1), so "
            "every patch receives the mean of the topic: look at its heat maps and at the loss "
            "curve of SFT, which may be too short or its learning rate too low"
        )
    if fusion and fusion["spread"] < thresholds.single_spread:
        warnings["single_position"] = (
            f"all patches attend to one token of the topic (spread {fusion['spread']:.2f} of 1), "
            "so the rest of the title is lost: look at the heat maps of the fusion, and lower the "
            "learning rate of SFT or try another projection in models.*.network of params.yaml"
        )
    return warnings


def _mean_of_known(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else math.nan
