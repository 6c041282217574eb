"""Whether gate, fusion and attention do what they are for: figures of a phase, and warnings.

A mean over nothing is not a number, which metrics.json calls `unavailable`.
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
    """From where on a figure is a warning; of params.yaml, `evaluate`."""

    over_masking: float
    uniform_entropy: float
    single_spread: float


@dataclass(frozen=True)
class AttentionTraces:
    """Rows of GATES, FUSIONS and ATTENTIONS, the latter two of one phase or of all."""

    gates: list[dict]
    fusions: list[dict]
    attentions: list[dict]

    def select_phase(self, phase: str) -> "AttentionTraces":
        chosen = [
            [row for row in rows if row["phase"] == phase]
            for rows in (self.fusions, self.attentions)
        ]
        return AttentionTraces(self.gates, *chosen)


def load_traces(predictions: Path) -> AttentionTraces:
    return AttentionTraces(
        schemas.read_parquet(predictions / "gates.parquet", schemas.GATES),
        schemas.read_parquet(predictions / "fusions.parquet", schemas.FUSIONS),
        schemas.read_parquet(predictions / "attentions.parquet", schemas.ATTENTIONS),
    )


def load_boxes(ingest: Path) -> dict[ItemKey, dict[str, attention.NormalizedBox]]:
    """(record, position) -> slot -> where it is seen; empty of a corpus that does not know."""
    path, boxes = ingest / "boxes.parquet", {}
    for row in schemas.read_parquet(path, schemas.BOXES) if path.exists() else []:
        box = row["left"], row["top"], row["right"], row["bottom"]
        boxes.setdefault((row["record"], row["position"]), {})[row["slot"]] = box
    return boxes


def summarize_gate(rows: list[dict]) -> dict[str, Any]:
    """The share of topics that msaGate masks in training and when writing, and sigma of the test.

    Of training: the train split by the gate of SFT; mscDPO trains with the gate of writing.
    """
    found: dict[str, Any] = {}
    for use, split in (("train", "train"), ("predict", "test")):
        chosen = [row for row in rows if row["use"] == use and row["split"] == split]
        masked = [1 - row["passed"] for row in chosen if row["passed"] is not None]
        modes = sorted({row["mode"] for row in rows if row["use"] == use})
        found[use] = {"mode": ", ".join(modes), "mask_rate": _mean_of_known(masked)}
    return found | {"sigma": _mean_of_known([row["sigma"] for row in chosen])}


def summarize_fusion(rows: list[dict]) -> dict[str, Any]:
    """Mean and deviation of lambda over items and channels; means of entropy and spread."""
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
    """How much the decoder looks at a thing while it writes the thing's word; None if never seen.

    mass: the share of its attention inside the thing's box, over items that state it; area: the
    box's, which is the mass of looking everywhere alike; ratio: mass / area; standard_error: of the
    mass, clustered by record.
    """
    masses, areas, records = [], [], []
    for row in rows:
        key = row["record"], row["position"]
        for slot, box in boxes.get(key, {}).items():
            covered = attention.compute_box_coverage(box, len(row["decoder"]) // len(row["ends"]))
            tokens = find_word_tokens(row, slots.all_slots[slot], facts[key][slot])
            if covered is None or not tokens:
                continue
            looks = np.array(row["decoder"]).reshape(len(row["ends"]), -1)
            masses.append(attention.compute_attention_mass(looks[tokens], covered))
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
    """The tokens of a text that write the last word of the first phrase for `value`.

    The last, since it names the thing: globe in "a striped globe".
    """
    for said, start, stop in grounding.find_phrases(row["text"], phrases):
        if said == value:
            last = row["text"][start:stop].split()[-1]
            return attention.find_emitting_tokens(row["ends"], stop - len(last), stop)
    return []


def build_warnings(
    gate: dict | None, fusion: dict | None, limits: WarningThresholds
) -> dict[str, str]:
    """name -> what is wrong and where to look, of what passes its limit; None: the run has none."""
    found = {}
    masked = [
        f"{gate[use]['mask_rate']:.0%} of the topics {when} (mode {gate[use]['mode']})"
        for use, when in (("train", "in training"), ("predict", "when writing"))
        if gate and gate[use]["mask_rate"] > limits.over_masking
    ]
    if masked:
        found["over_masking"] = (
            f"msaGate masks {' and '.join(masked)}, so titles hardly reach the text: look at the "
            "histogram of sigma, and at sigma_map and the gate's modes in models.*.network of "
            "params.yaml"
        )
    if fusion and fusion["entropy"] > limits.uniform_entropy:
        found["uniform_attention"] = (
            f"the fusion's attention is nearly uniform (entropy {fusion['entropy']:.2f} of 1), so "
            "every patch sees the mean of the topic: look at its heat maps and at the loss curve "
            "of SFT, which may be too short or its learning rate too low"
        )
    if fusion and fusion["spread"] < limits.single_spread:
        found["single_position"] = (
            f"all patches look at one token of the topic (spread {fusion['spread']:.2f} of 1), so "
            "the rest of the title is lost: look at the heat maps of the fusion, and lower the "
            "learning rate of SFT or try another projection in models.*.network of params.yaml"
        )
    return found


def _mean_of_known(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else math.nan
