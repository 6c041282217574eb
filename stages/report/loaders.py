"""Load what the report shows from data/: corpora, encoder, runs, and images by hash.

Only the corpora and runs in params.yaml are loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.report.classifier_section import MuseSection
from stages.report.generator_section import GeneratorSection, get_nested
from stages.report.meme_section import MemeSection
from stages.shared.core import schemas
from stages.shared.data import history
from stages.shared.metrics.common import flatten_metrics
from stages.shared.metrics.headline import HEADLINE_FILE

TRAINING_DIRS = {"sft": "09_train_sft", "preference": "10_train_preference"}
RUN_DIRS = {"generators": "12_evaluate", "classifiers": "12_evaluate_classifier"}
IMAGE_STAGES = ("01_ingest", "03_inpaint", "04_augment", "08_illustrate")  # these write images


@dataclass(frozen=True)
class ReportCorpus:
    name: str
    params: dict[str, Any]  # its row in params.yaml
    summary: dict[str, Any]  # records by split, languages, rejected by reason


def load_corpora(data: Path, params: dict[str, dict]) -> list[ReportCorpus]:
    """Load the corpora. params: the section `corpora` of params.yaml."""
    return [
        ReportCorpus(name, values, schemas.read_json(data / "01_ingest" / name / "summary.json"))
        for name, values in params.items()
    ]


def load_encoder_info(data: Path) -> dict[str, Any]:
    """The merged contents of 06_align/encoder.json and summary.json."""
    folder = data / "06_align"
    return schemas.read_json(folder / "encoder.json") | schemas.read_json(folder / "summary.json")


def load_retrieval(data: Path, corpora: list[ReportCorpus]) -> dict[str, dict[str, Any]]:
    """By corpus: `retrieval` on held-out pairs, or None, and `warning`, or None.

    Stage embed measures it on corpora that are not synthetic, stage align on those that it reads.
    """
    aligned = schemas.read_json(data / "06_align" / "summary.json")["retrieval"]
    results = {
        name: {"retrieval": retrieval, "warning": None} for name, retrieval in aligned.items()
    }
    for corpus in corpora:
        file = data / "07_embed" / corpus.name / "retrieval.json"
        if file.exists():
            results[corpus.name] = schemas.read_json(file)
    return results


def read_crop_fraction(folder: Path) -> float | None:
    """Side of the center square that an encoder reads, as a fraction of an image's shorter side.

    folder: of the encoder. None: the encoder squeezes the whole image into a square. The
    preprocessing config is stored with the weights, in the format of their library, or in
    encoder.json.
    """
    for name, path in [
        ("open_clip_config.json", "preprocess_cfg"),
        ("processor_config.json", "image_processor"),
        ("preprocessor_config.json", ""),
    ]:
        if (folder / name).exists():
            content = schemas.read_json(folder / name)
            settings = (get_nested(content, path) or {}) if path else content
            size = settings.get("size")
            squeezed = isinstance(size, dict) and "shortest_edge" not in size
            crops = not squeezed and settings.get("resize_mode", "shortest") == "shortest"
            return 1.0 if crops else None
    return schemas.read_json(folder / "encoder.json").get("crop_fraction", 1.0)


def load_generator_sections(
    data: Path, params: dict[str, dict], corpora: dict[str, dict]
) -> list[GeneratorSection]:
    """Load the generators. params, corpora: these sections of params.yaml."""
    return [
        _load_generator_section(data, name, values, corpora[values["corpus"]]["kind"])
        for name, values in params.items()
    ]


def _load_generator_section(
    data: Path, name: str, params: dict[str, Any], kind: str
) -> GeneratorSection:
    evaluation = data / "12_evaluate" / name
    ceilings = data / "01_ingest" / params["corpus"] / "ceilings.json"
    histories = {
        phase: data / folder / name / "history.csv" for phase, folder in TRAINING_DIRS.items()
    }
    predictions = schemas.read_parquet(
        data / "11_predict" / name / "predictions.parquet", schemas.PREDICTIONS
    )
    scores = schemas.read_parquet(evaluation / "items.parquet", schemas.ITEM_SCORES)
    return GeneratorSection(
        name=name,
        params=params,
        kind=kind,
        metrics=schemas.read_json(evaluation / "metrics.json"),
        histories={
            phase: history.read_history(path) for phase, path in histories.items() if path.exists()
        },
        predictions=[row for row in predictions if _is_test(row)],
        slot_results={
            (row["record"], row["position"], row["phase"]): (row["right"], row["wrong"])
            for row in scores
            if _is_test(row) and row["right"] is not None
        },
        further_images=(
            _load_further_images(data / "05_chunk" / params["corpus"]) if kind == "articles" else {}
        ),
        ceilings=schemas.read_json(ceilings)["test"] if ceilings.exists() else {},
    )


def _load_further_images(folder: Path) -> dict[tuple[str, int], list[str]]:
    """(record, position) of a chunk about several images -> those after its first one."""
    images: dict[tuple[str, int], list[str]] = {}
    key = ("", 0)
    for row in schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS):
        if row["references"]:
            key = row["record"], row["position"]
        else:
            images.setdefault(key, []).append(row["image"])
    return images


def _is_test(row: dict) -> bool:
    return (row["split"], row["inputs"]) == ("test", "both")


def load_classifier_sections(
    data: Path, params: dict[str, dict]
) -> list[MemeSection | MuseSection]:
    """Load the classifiers. params: the section `classifiers` of params.yaml."""
    return [_load_classifier_section(data, name, values) for name, values in params.items()]


def _load_classifier_section(
    data: Path, name: str, params: dict[str, Any]
) -> MemeSection | MuseSection:
    metrics = schemas.read_json(data / "12_evaluate_classifier" / name / "metrics.json")
    steps = history.read_history(data / "09_train_classifier" / name / "history.csv")
    section = MemeSection if metrics["task"] == "memes" else MuseSection
    return section(name, params, metrics, steps)


def load_headlines(data: Path, params: dict[str, Any]) -> dict[str, float]:
    """The headline metrics of all runs of params.yaml by dotted name, such as flexmuse.skill."""
    files = {
        run: data / folder / run / HEADLINE_FILE
        for section, folder in RUN_DIRS.items()
        for run in params.get(section) or {}
    }
    headlines = {run: schemas.read_json(file) for run, file in files.items() if file.exists()}
    return dict(flatten_metrics(headlines))


def load_images(data: Path, corpus: str, hashes: set[str]) -> dict[str, bytes]:
    """SHA-256 -> image file, of a corpus and of the stages that add images to it."""
    is_wanted = pc.field("sha256").isin(pa.array(sorted(hashes), pa.string()))
    files = {}
    for stage in IMAGE_STAGES:
        folder = data / stage / corpus / "images"
        if folder.exists():
            table = pq.read_table(folder, columns=["sha256", "bytes"], filters=is_wanted)
            files |= {row["sha256"]: row["bytes"] for row in table.to_pylist()}
    return files
