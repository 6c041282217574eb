"""Fit the baselines of a classifier on the same frozen features and predict what it predicts.

python -m stages.fit_baselines --run RUN --records RECORDS --features FEATURES --output OUTPUT

reads   RECORDS/records.parquet, FEATURES (stages/shared/features/store.py)
writes  OUTPUT/labels.parquet   predictions of the validation and test split
        OUTPUT/summary.json     the features, the chosen regularization, and which inputs were left
                                out and why

majority             the most frequent label of the train split; for tweets, no entity
logistic_regression  posts and memes, for each task: from text, image and both
decision_fusion      posts and memes: the mean of the probabilities from text and from image
crf                  tweets: a linear-chain CRF on token states, and on these and the image

All are fitted on the train split. Validation items choose the regularization (the value of C, the
number of epochs). Without validation items, every tenth train record chooses it and is not fitted
on. The stage needs no trained classifier and is part of every run.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stages.fit_baselines import features as baseline_features
from stages.fit_baselines.config import FitBaselinesConfig
from stages.fit_baselines.crf import predict_tags
from stages.fit_baselines.features import EncoderSettings
from stages.fit_baselines.logistic_regression import fuse_decisions, predict_labels
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage

PREDICTED_SPLITS = ("validation", "test")
ENTITIES, OUTSIDE_TAG = "entities", "O"
NO_WORDS = "an image alone has no words to tag"
HELD_OUT_RECORDS = 10  # one in so many, without a validation split
Rows = list[dict]


def get_labels(row: dict) -> dict[str, list[str]]:
    """task -> gold labels of a record: a tag per word, or one label. Unlabeled tasks are absent."""
    if "tags" in row:
        return {ENTITIES: row["tags"]}
    if "label" in row:
        return {"sentiment": [row["label"]]}
    return {entry["task"]: [entry["label"]] for entry in row["labels"]}


def split_rows(rows: Rows) -> tuple[list[int], list[int], list[int]]:
    """Indices of the items to fit on, to choose the regularization by, and to predict.

    Without validation items, every tenth train record chooses; its paraphrases are held out too.
    """
    train, validation = (
        [index for index, row in enumerate(rows) if row["split"] == split]
        for split in ("train", "validation")
    )
    predicted = [index for index, row in enumerate(rows) if row["split"] in PREDICTED_SPLITS]
    if validation:
        return train, validation, predicted
    groups = list(dict.fromkeys(rows[index].get("group", rows[index]["id"]) for index in train))
    held_out = set(groups[HELD_OUT_RECORDS - 1 :: HELD_OUT_RECORDS])
    is_held_out = {i: rows[i].get("group", rows[i]["id"]) in held_out for i in train}
    kept = [index for index in train if not is_held_out[index]]
    return kept, [index for index in train if is_held_out[index]], predicted


def prediction_rows(
    rows: Iterable[dict],
    task: str,
    baseline: str,
    inputs: str,
    predictions: Iterable[tuple[list[str], list[float], int]],
) -> Rows:
    """BASELINE_PREDICTIONS; predictions: labels, probabilities and truncated words of each row."""
    return [
        {
            "record": row["id"],
            "split": row["split"],
            "inputs": inputs,
            "task": task,
            "gold": get_labels(row).get(task, []),
            "predicted": labels,
            "probability": probability,
            "cut": cut,
            "baseline": baseline,
        }
        for row, (labels, probability, cut) in zip(rows, predictions, strict=True)
    ]


def fit_label_baselines(
    rows: Rows, modalities: dict[str, Any], config: FitBaselinesConfig
) -> tuple[Rows, dict[str, Any]]:
    """Predictions of posts or memes, and what was chosen by task and inputs.

    modalities: features (N, D) by modality, or the reason why there are none
    """
    train, validation, predicted = split_rows(rows)
    labels = [get_labels(row) for row in rows]
    targets = [rows[index] for index in predicted]
    features = baseline_features.combine(modalities)
    results, chosen = [], {}
    tasks = [task for row in rows if row["split"] == "train" for task in get_labels(row)]
    for task in dict.fromkeys(tasks):
        fitted, choosing = (
            [index for index in part if task in labels[index]] for part in (train, validation)
        )
        fitted = fitted or choosing  # only train records that are held out have a label
        names = [labels[index][task][0] for index in fitted]
        label, count = min(Counter(names).items(), key=lambda item: (-item[1], item[0]))
        majority = ([label], [count / len(names)], 0)
        results += prediction_rows(targets, task, "majority", "none", [majority] * len(targets))
        chosen[task], predictions = {}, {}
        for inputs, array in features.items():
            predictions[inputs] = predict_labels(
                (array[fitted], names),
                (array[choosing], [labels[index][task][0] for index in choosing]),
                array[predicted],
                config.inverse_regularization,
                config.max_iter,
            )
            chosen[task][inputs] = {
                "inverse_regularization": predictions[inputs].inverse_regularization
            }
        systems = {("logistic_regression", inputs): p for inputs, p in predictions.items()}
        if "both" in predictions:
            fused = fuse_decisions(predictions["text"], predictions["picture"])
            systems["decision_fusion", "both"] = fused
        for (baseline, inputs), prediction in systems.items():
            values = zip(prediction.labels, prediction.probabilities, strict=True)
            results += prediction_rows(
                targets,
                task,
                baseline,
                inputs,
                [([name], [probability], 0) for name, probability in values],
            )
    return results, chosen


def fit_tag_baselines(
    rows: Rows, states: list[np.ndarray], images: np.ndarray | str, config: FitBaselinesConfig
) -> tuple[Rows, dict[str, Any]]:
    """Predictions of tweets, and what was chosen by inputs.

    states: (words, D) of each tweet; images: features (N, D), or why there are none
    """
    train, validation, predicted = split_rows(rows)
    targets = [rows[index] for index in predicted]
    outside = [([OUTSIDE_TAG] * len(row["words"]), [], 0) for row in targets]
    results, chosen = prediction_rows(targets, ENTITIES, "majority", "none", outside), {}
    features = {"text": states}
    if not isinstance(images, str):
        features["both"] = [
            np.hstack([state, np.repeat(image[None], len(state), axis=0)])
            for state, image in zip(states, images, strict=True)
        ]
    for inputs, arrays in features.items():
        fitted, choosing = (
            ([arrays[index] for index in part], [rows[index]["tags"] for index in part])
            for part in (train, validation)
        )
        paths, epochs = predict_tags(
            fitted, choosing, [arrays[index] for index in predicted], config.crf
        )
        chosen[inputs] = {"epochs": epochs}
        cuts = [len(row["words"]) - len(path) for row, path in zip(targets, paths, strict=True)]
        results += prediction_rows(
            targets,
            ENTITIES,
            "crf",
            inputs,
            [([*p, *[OUTSIDE_TAG] * c], [], c) for p, c in zip(paths, cuts, strict=True)],
        )
    return results, {ENTITIES: chosen}


def check_rows(rows: Rows, records: Path) -> None:
    """Raises InputError if the train split is empty or has no label."""
    if not any(row["split"] == "train" and any(get_labels(row).values()) for row in rows):
        raise InputError(
            f"{records / 'records.parquet'} has no record of the train split with a label: add "
            "some to the corpus"
        )


def fit(
    kind: str,
    records: Path,
    features: Path,
    settings: EncoderSettings,
    config: FitBaselinesConfig,
) -> tuple[Rows, dict[str, Any]]:
    """BASELINE_PREDICTIONS of a corpus, and the content of summary.json."""
    rows = schemas.read_parquet(records / "records.parquet", schemas.EMBED_INPUTS[kind])
    check_rows(rows, records)
    images = baseline_features.load_images(rows, features)
    if kind == "tweets":
        states = baseline_features.load_word_states(rows, settings)
        results, chosen = fit_tag_baselines(rows, states, images, config)
        omitted = {"picture": NO_WORDS}
    else:
        texts = baseline_features.load_pooled_texts(rows, features, settings)
        modalities = {"text": texts, "picture": images}
        results, chosen = fit_label_baselines(rows, modalities, config)
        omitted = {name: value for name, value in modalities.items() if isinstance(value, str)}
    if isinstance(images, str):
        omitted["picture"] = images
    train, choosing, _ = split_rows(rows)
    return results, {
        "fitted_items": len(train),
        "choosing_items": len(choosing),
        "same_image_features": settings.image_encoder == "patches",
        "omitted": omitted,
        "chosen": chosen,
    }


def main(
    kind: str,
    records: Path,
    features: Path,
    settings: EncoderSettings,
    config: FitBaselinesConfig,
    output: Path,
) -> None:
    """Run the stage; kind: of corpus. Raises InputError if an input is missing or has no label."""
    with atomic_output_dir(output) as folder:
        rows, summary = fit(kind, records, features, settings, config)
        schemas.write_parquet(folder / "labels.parquet", rows, schemas.BASELINE_PREDICTIONS)
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (folder / "summary.json").write_text(f"{text}\n", encoding="utf-8")


def load_encoder_settings(run: str) -> EncoderSettings:
    """From the row `classifiers.<run>`. Meme classifiers tune no layer of a text encoder."""
    text = load_config(dict[str, Any], "classifiers", run, "text")
    return EncoderSettings(
        text["encoder"],
        text.get("num_tuned_layers", 0),
        text["max_subwords"],
        load_config(str, "classifiers", run, "image", "encoder"),
    )


def cli(run: str, records: Path, features: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    kind = load_config(str, "corpora", load_config(str, "classifiers", run, "corpus"), "kind")
    config = load_config(FitBaselinesConfig, "fit_baselines")
    main(kind, records, features, load_encoder_settings(run), config, output)


if __name__ == "__main__":
    run_stage(cli)
