"""What the report shows, read from data/: corpora, encoder, runs, and the pictures of examples.

A run is a writer or a reader; `Run` is of a writer.

Only the corpora and runs that params.yaml names are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.report.classifier_section import ClassifierSection, MuseSection
from stages.report.generator_section import GeneratorSection, get_nested
from stages.report.meme_section import MemeSection
from stages.shared.core import schemas
from stages.shared.data import history

TRAINING_DIRS = {"sft": "09_train_sft", "preference": "10_train_preference"}
IMAGE_STAGES = (
    "01_ingest",
    "03_inpaint",
    "04_augment",
    "08_illustrate",
)  # stages that have pictures


@dataclass(frozen=True)
class ReportCorpus:
    name: str
    params: dict[str, Any]
    summary: dict[str, Any]  # records by split, languages, rejected by reason


def load_corpora(data: Path, params: dict[str, dict]) -> list[ReportCorpus]:
    return [
        ReportCorpus(name, values, schemas.read_json(data / "01_ingest" / name / "summary.json"))
        for name, values in params.items()
    ]


def load_encoder_info(data: Path) -> dict[str, Any]:
    """What encoder.json and summary.json of 06_align say of the encoder."""
    folder = data / "06_align"
    return schemas.read_json(folder / "encoder.json") | schemas.read_json(folder / "summary.json")


def encoder_uses_center_crop(data: Path) -> bool:
    """Whether the encoder reads the middle square of a picture, or the whole of it squeezed.

    Kept with the encoder's weights, in the words of the library that they are from.
    """
    folder = data / "06_align"
    for name, path in [
        ("open_clip_config.json", "preprocess_cfg"),
        ("processor_config.json", "image_processor"),
        ("preprocessor_config.json", ""),
    ]:
        if (folder / name).exists():
            content = schemas.read_json(folder / name)
            found = (get_nested(content, path) or {}) if path else content
            size = found.get("size")
            whole = isinstance(size, dict) and "shortest_edge" not in size
            return not whole and found.get("resize_mode", "shortest") == "shortest"
    return True


def load_generator_sections(
    data: Path, params: dict[str, dict], corpora: dict[str, dict]
) -> list[GeneratorSection]:
    """The runs of params.yaml; corpora: its section of them."""
    return [
        _load_generator_section(data, name, values, corpora[values["corpus"]]["kind"])
        for name, values in params.items()
    ]


def _load_generator_section(
    data: Path, name: str, params: dict[str, Any], kind: str
) -> GeneratorSection:
    evaluated = data / "12_evaluate" / name
    predictions = data / "11_predict" / name / "predictions.parquet"
    ceilings = data / "01_ingest" / params["corpus"] / "ceilings.json"
    steps = {phase: data / folder / name / "history.csv" for phase, folder in TRAINING_DIRS.items()}
    items = schemas.read_parquet(evaluated / "items.parquet", schemas.ITEM_SCORES)
    return GeneratorSection(
        name,
        params,
        kind,
        schemas.read_json(evaluated / "metrics.json"),
        {phase: history.read_history(path) for phase, path in steps.items() if path.exists()},
        [row for row in schemas.read_parquet(predictions, schemas.PREDICTIONS) if _is_test(row)],
        {
            (row["record"], row["position"], row["phase"]): (row["right"], row["wrong"])
            for row in items
            if _is_test(row) and row["right"] is not None
        },
        schemas.read_json(ceilings)["test"] if ceilings.exists() else {},
    )


def load_classifier_sections(data: Path, params: dict[str, dict]) -> list[ClassifierSection]:
    """The readers of params.yaml."""
    return [_load_classifier_section(data, name, values) for name, values in params.items()]


def _load_classifier_section(data: Path, name: str, params: dict[str, Any]) -> ClassifierSection:
    metrics = schemas.read_json(data / "12_evaluate_classifier" / name / "metrics.json")
    steps = history.read_history(data / "09_train_classifier" / name / "history.csv")
    family = MemeSection if metrics["task"] == "memes" else MuseSection
    return family(name, params, metrics, steps)


def _is_test(row: dict) -> bool:
    return (row["split"], row["inputs"]) == ("test", "both")


def load_images(data: Path, corpus: str, names: set[str]) -> dict[str, bytes]:
    """The files of these pictures of a corpus, its own and what stages made, by hash."""
    wanted = pc.field("sha256").isin(pa.array(sorted(names), pa.string()))
    found = {}
    for stage in IMAGE_STAGES:
        folder = data / stage / corpus / "images"
        if folder.exists():
            table = pq.read_table(folder, columns=["sha256", "bytes"], filters=wanted)
            found |= {row["sha256"]: row["bytes"] for row in table.to_pylist()}
    return found
