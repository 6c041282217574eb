"""Damaged files of earlier runs are rebuilt, or named in one sentence with what mends them."""

import json
from pathlib import Path

import pytest
import torch

from pipelines import summary
from pipelines.cli import preset
from pipelines.runner import up_to_date, valid_params
from pipelines.runner.eta import StageDurations
from stages.augment.batch_client import SubmittedBatch, _iter_open_batches
from stages.shared.core import schemas
from stages.shared.data.cache import Store
from stages.shared.pretrained import efficientnet_lite0
from stages.shared.runtime import mlflow_store, tracking
from stages.shared.runtime.stage import InputError, work_dir
from stages.shared.training.checkpoint import Checkpoint
from tests.support.damages import DAMAGES, damage

damaged = pytest.mark.parametrize("kind", DAMAGES)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """The work folder."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("generators: {flexmuse: {}}")
    return work_dir()


@damaged
def test_durations_are_measured_again(home, kind):
    StageDurations({}).record("train", 5)
    damage(home / "durations.json", kind)
    assert StageDurations({"train": 3}).estimate("train") == 3
    StageDurations({}).record("train", 7)
    assert StageDurations({}).estimate("train") == 7


@damaged
def test_the_records_of_unchanged_and_valid_projects_are_ignored(home, kind, monkeypatch):
    up_to_date.record(["a"], up_to_date.fingerprint_files(["a"]))
    assert up_to_date.is_up_to_date()
    damage(home / "up_to_date.json", kind)
    assert not up_to_date.is_up_to_date()
    (home / "valid_params").write_text(valid_params._fingerprint())
    assert valid_params.is_remembered()
    damage(home / "valid_params", kind)
    assert not valid_params.is_remembered()


@damaged
def test_a_history_of_presets_names_what_to_delete(home, kind):
    Path("presets").mkdir()
    Path("presets/quick.yaml").write_text("run: {workers: 7}")
    Path("params.yaml").write_text("run: {workers: 2}")
    preset.apply_preset("quick")
    damage(home / "presets.json", kind)
    with pytest.raises(InputError, match=r"presets\.json is damaged \(.+\): delete it; "):
        preset.undo_preset()
    (home / "presets.json").write_text('{"name": 1}')
    with pytest.raises(InputError, match="is damaged"):
        preset.undo_preset()


def fill_store(home: Path) -> tuple[Path, list[str]]:
    """A closed store of 300 rows, and their keys."""
    store = Store(home / "store", "texts")
    keys = [f"{number:064x}" for number in range(300)]
    store.write((key, key.encode() * 20) for key in keys)
    store.connection.close()
    return store.path, keys


@damaged
def test_a_cache_is_filled_again_or_named_with_the_command(home, kind):
    path, keys = fill_store(home)
    damage(path, kind)
    if kind == "empty":
        assert Store(home / "store", "texts").missing_keys(keys) == keys
        return
    with pytest.raises(InputError) as error:
        list(Store(home / "store", "texts").read(keys))
    assert str(error.value).startswith(f"{path} is damaged (")
    assert "run `polymuse doctor --fix`" in str(error.value)


def test_a_cache_that_is_only_read_names_its_permissions(home):
    """Other errors of SQLite than damage keep their type."""
    import sqlite3

    path, keys = fill_store(home)
    store = Store(home / "store", "texts")
    store.connection.execute("PRAGMA query_only = 1")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.write([(f"{999:064x}", b"")])
    assert path.exists() and len(keys) == 300


@damaged
def test_training_starts_again_without_its_checkpoint(home, kind, capsys):
    checkpoint = Checkpoint("run", "key")
    checkpoint.write({"model": {"weight": torch.zeros(5000)}})
    damage(checkpoint.path, kind)
    assert checkpoint.read() is None
    warning = capsys.readouterr().err
    assert warning == f"warning: {checkpoint.path} is damaged: training starts again\n"
    checkpoint.write({"step": 3})
    assert checkpoint.read() == {"step": 3}


@damaged
def test_a_submitted_batch_names_what_to_delete(kind):
    batch = SubmittedBatch(["a", "b"], "file-1", "batch-1")
    batch.save()
    assert list(_iter_open_batches()) == [batch]
    damage(batch.path, kind)
    with pytest.raises(InputError, match=r"is damaged \(.+\): delete it; its questions are sent"):
        list(_iter_open_batches())


@damaged
def test_a_table_and_a_json_output_name_the_command(tmp_path, kind):
    table, content = tmp_path / "a.parquet", tmp_path / "a.json"
    schemas.write_parquet(
        table, [{"sha256": "0"}] * 1000, schemas.pa.schema([("sha256", "string")])
    )
    content.write_text(json.dumps({"a": list(range(100))}))
    for file, read in (
        (table, lambda file: schemas.read_parquet(file, schemas.CHUNKS)),
        (content, schemas.read_json),
    ):
        damage(file, kind)
        with pytest.raises(InputError, match=r"is damaged \(.+\): run `dvc repro`$"):
            read(file)


@damaged
def test_metrics_name_the_command(kind):
    file = summary.GENERATOR_METRICS_DIR / "flexmuse" / "metrics.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"rouge_l": 0.5, "cider": 0.25}))
    damage(file, kind)
    with pytest.raises(InputError, match=r"metrics\.json is damaged \(.+\): run `polymuse run`$"):
        summary.build_rows()


@damaged
def test_the_id_of_an_open_run_is_ignored(home, kind):
    (home / "runs").mkdir(parents=True)
    (home / "runs" / "clean").write_text("0123456789abcdef" * 2)
    damage(home / "runs" / "clean", kind)
    with tracking.start_run(stage="clean", name="", params={}) as run:
        assert run.run_id


def test_a_full_disk_is_the_reason_of_a_failed_call(tmp_path):
    message = (
        "(raised as a result of Query-invoked autoflush) (sqlite3.OperationalError) database or "
        "disk is full\n[SQL: INSERT INTO runs VALUES (?)]\n[parameters: ('secret',)]"
    )
    assert mlflow_store.error_reason(Exception(message)) == "database or disk is full"


@damaged
def test_an_exported_network_names_what_to_delete(home, kind, monkeypatch):
    file = home / "network.onnx"
    home.mkdir()
    file.write_bytes(b"\x08\x07" + bytes(1000))
    damage(file, kind)
    monkeypatch.setattr(efficientnet_lite0, "export_onnx", lambda network, name: file)
    with pytest.raises(InputError, match=r"network\.onnx is damaged \(.+\): delete it, and it is"):
        efficientnet_lite0._run_onnx(torch.nn.Identity(), "regions")
