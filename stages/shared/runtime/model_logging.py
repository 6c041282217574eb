"""Trained folders as models of MLflow: on its Models page, in its registry, by its addresses.

A logged model is the trained folder itself with a file MLmodel beside the weights, which names two
flavors: `polymuse` (runs.restore reads a writer's folder, readers.restore a reader's,
meme_readers.restore one of memes) and
`python_function`, whose predict takes a DataFrame with the columns topic and image, or text and
image, and needs this package where it runs.

MLflow's own Model.log would ask for a global tracking address and an active run, and would start
pip to guess what the model needs. Nothing here does: the client and the run are named.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.tracking import MlflowClient
    from mlflow.types import ColSpec

FLAVOR = "polymuse"
PYFUNC_LOADER = "pipelines.inference.pyfunc"  # whose _load_pyfunc MLflow calls


def log_model(client: "MlflowClient", run_id: str, folder: Path, name: str) -> str:
    """Upload `folder` as the model `name` of a run; its id. READY only once it is whole."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    tags = {"polymuse.stage": run.data.tags.get("polymuse.stage", "")}
    made = client.create_logged_model(
        run.info.experiment_id, name, run_id, tags, run.data.params, model_type=FLAVOR
    )
    try:
        client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
        client.log_model_artifacts(made.model_id, str(folder))
        with TemporaryDirectory() as beside:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            about = json.loads((folder / "config.json").read_text())
            description = build_mlmodel(about, run_id, made.model_id, made.artifact_location, size)
            description.save(Path(beside, "MLmodel"))
            client.log_model_artifact(made.model_id, str(Path(beside, "MLmodel")))
    except BaseException:
        client.finalize_logged_model(made.model_id, "FAILED")
        raise
    client.finalize_logged_model(made.model_id, "READY")
    return made.model_id


def build_mlmodel(
    about: dict[str, Any], run_id: str, model_id: str, location: str, size: int
) -> "Model":
    """The content of MLmodel: flavors, and what predict takes and returns.

    about: config.json of the trained folder
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    described = Model(
        artifact_path=location,
        run_id=run_id,
        model_uuid=model_id,
        model_id=model_id,
        signature=_model_signature(about),
        model_size_bytes=size,
    )
    described.add_flavor(FLAVOR)
    return pyfunc.add_to_model(described, PYFUNC_LOADER)


def _model_signature(about: dict[str, Any]) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    reads = "labels" in about  # as pipelines/inference/model_bundle.py tells readers from writers
    inputs = [
        ColSpec("string", "text" if reads else "topic", required=False),
        ColSpec("binary", "image", required=False),  # the bytes of a picture file
    ]
    if not reads:
        outputs = [ColSpec("string")]
    elif isinstance(about["labels"], dict):
        outputs = _meme_output_columns(list(about["labels"]))
    else:
        outputs = _text_output_columns(about["shapes"]["task"])
    return ModelSignature(Schema(inputs), Schema(outputs))


def _text_output_columns(task: str) -> list["ColSpec"]:
    """The fields of what pipelines/inference/text_labeler.py says of an item."""
    from mlflow.types import ColSpec
    from mlflow.types.schema import Array, Object, Property

    if task == "sentiment":
        found = [ColSpec("string", "label"), ColSpec("double", "probability")]
    else:
        kinds = {"type": "string", "text": "string"}
        kinds |= dict.fromkeys(("first", "last", "start", "end"), "long")
        entity = Object([Property(name, kind) for name, kind in kinds.items()])
        found = [ColSpec(Array("string"), name) for name in ("words", "tags")]
        found.append(ColSpec(Array(entity), "entities"))
    return [*found, ColSpec("long", "words_not_read")]


def _meme_output_columns(tasks: list[str]) -> list["ColSpec"]:
    """The columns of what pipelines/inference/meme_labeler.py says of a meme."""
    from mlflow.types import ColSpec

    found = [ColSpec("string", name) for name in ("text", "original", "text_source")]
    for task in tasks:
        found += [ColSpec("string", task), ColSpec("double", f"{task}_probability")]
    return found


def download_model(tracking_uri: str, address: str, folder: Path) -> Path:
    """Copy the model at models:/... or runs:/ID/NAME into `folder`. Raises what MLflow raises."""
    from mlflow.artifacts import download_artifacts

    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri  # models:/ is looked up by this alone
    return Path(download_artifacts(address, dst_path=str(folder), tracking_uri=tracking_uri))
