"""Helpers for small corpora in published formats."""

import json
from importlib import import_module
from pathlib import Path
from random import Random

import yaml
from PIL import Image

from stages.ingest import __main__ as ingest
from stages.ingest.record_collector import RecordCollector
from stages.shared.core import schemas
from stages.shared.core.config import build_config, read_params
from stages.shared.data.records import ExtraFile, Record, Rejection
from stages.shared.runtime.stage import InputError

PROJECT_PARAMS = read_params()
# Tiny corpora have a larger share of faults than real ones may have.
INGEST_CONFIG = ingest.IngestConfig(
    **PROJECT_PARAMS["ingest"]
    | {"num_shards": 1, "max_rejected_fraction": 0.95, "test_fraction": 0.4}
)


def write_image(path: Path, number: int = 0) -> None:
    """Write an image that differs for each number below 256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    Image.new("L", (16, 16), number).save(path, kind)


def run_ingest(tmp_path: Path, monkeypatch, format: str, kind: str, source: Path, **changes):
    """The records and [(source, reason), ...] of the rejections, with `changes` in the params."""
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    formats = PROJECT_PARAMS["formats"] | {format: PROJECT_PARAMS["formats"][format] | changes}
    (folder / "params.yaml").write_text(
        yaml.safe_dump(PROJECT_PARAMS | {"formats": formats}, sort_keys=False)
    )
    monkeypatch.chdir(folder)
    target = folder / "output"
    ingest.main(INGEST_CONFIG, "corpus", kind, format, source, target)
    records = schemas.read_parquet(target / "records.parquet", schemas.RECORDS[kind])
    rejected = schemas.read_parquet(target / "rejected.parquet", schemas.REJECTED_RECORDS)
    counts = json.loads((target / "summary.json").read_text())["rejected"]
    assert sum(counts.values()) == len(rejected)
    return records, [(row["source"], row["reason"]) for row in rejected]


def assert_handles_any_bytes(
    format: str, kind: str, source: Path, file: Path, valid: bytes
) -> None:
    """With any bytes in `file`, the format yields items or raises a one-sentence InputError."""
    module = import_module(f"stages.datasets.{format}")
    params = build_config(module.CONFIG, PROJECT_PARAMS["formats"][format], f"formats.{format}")
    random = Random(0)
    for _ in range(300):
        content = bytearray(valid)
        for _ in range(random.randrange(1, 30)):
            position = random.randrange(len(content) + 1)
            junk = random.choice([random.randbytes(3), b"\n", b"\t", b"\0", b'"', b"[", b"#", b" "])
            content[position : position + random.randrange(3)] = junk
        file.write_bytes(content)
        try:
            items = list(module.read(source, kind, params))
        except InputError as error:
            assert "\n" not in str(error)
            continue
        assert all(isinstance(item, Record | Rejection | ExtraFile) for item in items)
        # Ingest accepts or rejects every item without raising.
        corpus = RecordCollector(source, INGEST_CONFIG, add_image=lambda row: None)
        for item in items:
            corpus.add(item)
