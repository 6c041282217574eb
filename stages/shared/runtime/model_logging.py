"""Log model folders as MLflow models, for its Models page, registry and model addresses.

A logged model is the model folder with a file MLmodel, which names two flavors: `polymuse`, the
folder itself, and `python_function`, whose `predict` takes a DataFrame with the columns topic and
image (generators) or text and image (classifiers). `predict` needs this package to be installed.

`Model.log` of MLflow needs a global tracking address and an active run, and starts pip to determine
requirements. The functions here take a client and a run id instead.
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
PYFUNC_LOADER = "pipelines.inference.pyfunc"  # MLflow calls its _load_pyfunc


def log_model(client: "MlflowClient", run_id: str, folder: Path, name: str) -> str:
    """Upload `folder` as the model `name` of a run; returns the model id.

    The status of the model is READY only after all files have been uploaded, else FAILED.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    tags = {"polymuse.stage": run.data.tags.get("polymuse.stage", "")}
    model = client.create_logged_model(
        run.info.experiment_id, name, run_id, tags, run.data.params, model_type=FLAVOR
    )
    try:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.log_model_artifacts(model.model_id, str(folder))
        with TemporaryDirectory() as temporary:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            config = json.loads((folder / "config.json").read_text())
            mlmodel = build_mlmodel(config, run_id, model.model_id, model.artifact_location, size)
            mlmodel.save(Path(temporary, "MLmodel"))
            client.log_model_artifact(model.model_id, str(Path(temporary, "MLmodel")))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def build_mlmodel(
    config: dict[str, Any], run_id: str, model_id: str, location: str, size: int
) -> "Model":
    """The content of MLmodel: the flavors and the signature of `predict`.

    config: the content of config.json. location: where the artifacts are. size: bytes.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    model = Model(
        artifact_path=location,
        run_id=run_id,
        model_uuid=model_id,
        model_id=model_id,
        signature=_model_signature(config),
        model_size_bytes=size,
    )
    model.add_flavor(FLAVOR)
    return pyfunc.add_to_model(model, PYFUNC_LOADER)


def _model_signature(config: dict[str, Any]) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    is_classifier = "labels" in config  # the rule of pipelines/inference/model_bundle.py
    inputs = [
        ColSpec("string", "text" if is_classifier else "topic", required=False),
        # The content of an image file, in JSON as base64. A server refuses null as "binary".
        ColSpec(AnyType(), "image", required=False),
    ]
    if not is_classifier:
        outputs = [ColSpec("string")]
    elif isinstance(config["labels"], dict):
        outputs = _meme_output_columns(list(config["labels"]))
    else:
        outputs = _text_output_columns(config["shapes"]["task"])
    return ModelSignature(Schema([*inputs]), Schema([*outputs]))


def _text_output_columns(task: str) -> list["ColSpec"]:
    """The fields of the predictions of pipelines/inference/text_labeler.py."""
    from mlflow.types import ColSpec
    from mlflow.types.schema import Array, Object, Property

    if task == "sentiment":
        columns = [ColSpec("string", "label"), ColSpec("double", "probability")]
    else:
        types = {"type": "string", "text": "string"}
        types |= dict.fromkeys(("first", "last", "start", "end"), "long")
        entity = Object([Property(name, kind) for name, kind in types.items()])
        columns = [ColSpec(Array("string"), name) for name in ("words", "tags")]
        columns.append(ColSpec(Array(entity), "entities"))
    return [*columns, ColSpec("long", "words_not_read")]


def _meme_output_columns(tasks: list[str]) -> list["ColSpec"]:
    """The columns of the table of pipelines/inference/meme_labeler.py."""
    from mlflow.types import ColSpec

    columns = [ColSpec("string", name) for name in ("text", "original", "text_source")]
    for task in tasks:
        columns += [ColSpec("string", task), ColSpec("double", f"{task}_probability")]
    return columns


def download_model(tracking_uri: str, address: str, folder: Path) -> Path:
    """Copy the model at models:/... or runs:/ID/NAME into `folder`. Raises exceptions of MLflow."""
    from mlflow.artifacts import download_artifacts

    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri  # models:/ ignores the argument tracking_uri
    return Path(download_artifacts(address, dst_path=str(folder), tracking_uri=tracking_uri))
