"""Outputs of 10_fit_baselines in a temporary data folder, made from the predictions of a model."""

import json
from pathlib import Path

from stages.shared.core import schemas


def write_baselines(
    folder: Path, model_rows: list[dict], omitted: dict[str, str] | None = None
) -> None:
    """Write baselines for rows of LABEL_PREDICTIONS.

    The majority predicts the alphabetically first label, or no entity. Logistic regression (for
    entities, the CRF) predicts what the model predicts from both inputs, and what the majority
    predicts from the text.
    """
    rows = []
    for row in model_rows:
        if row["inputs"] != "both":
            continue
        is_tagged = row["task"] == "entities"
        labels = [r["gold"] for r in model_rows if r["task"] == row["task"] and r["gold"]]
        majority = ["O"] * len(row["gold"]) if is_tagged else min(labels, default=["none"])
        fitted = "crf" if is_tagged else "logistic_regression"
        for baseline, inputs, predicted in (
            ("majority", "none", majority),
            (fitted, "text", majority),
            (fitted, "both", row["predicted"]),
        ):
            rows.append(row | {"baseline": baseline, "inputs": inputs, "predicted": predicted})
    schemas.write_parquet(folder / "labels.parquet", rows, schemas.BASELINE_PREDICTIONS)
    summary = {"same_image_features": True, "omitted": {} if omitted is None else omitted}
    (folder / "summary.json").write_text(json.dumps(summary))
