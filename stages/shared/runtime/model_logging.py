"""Log model folders as MLflow models, for its Models page, registry and model addresses.

A logged model is the model folder with a file MLmodel, which names two flavors: `polymuse`, the
folder itself, and `python_function`, whose `predict` takes a DataFrame with the columns topic and
image (generators) or text and image (classifiers). `predict` needs this package to be installed.

Beside MLmodel are an input example and requirements.txt, with the installed version of each package
that this one depends on. Tags name the run, its training stage and the hash of the folder, by which
an evaluation finds the model that it is about.

`Model.log` of MLflow needs a global tracking address and an active run, and starts pip to determine
requirements. The functions here take a client and a run id instead.
"""

import json
import os
import platform
import re
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.tracking import MlflowClient
    from mlflow.types import ColSpec

FLAVOR = "polymuse"
PYFUNC_LOADER = "pipelines.inference.pyfunc"  # MLflow calls its _load_pyfunc
DISTRIBUTION = "polymuse"  # the package whose dependencies are pinned
HASH_TAG = "polymuse.sha256"  # of a logged model: `hash_folder`
RUN_TAG = "polymuse.run"  # its row of params.yaml
EVALUATION_TAG = "polymuse.evaluation"  # the id of the MLflow run that scored it last
EXAMPLE_FILE = "input_example.json"
# A PNG of a gray gradient, 64 x 64 pixels.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAAAAACPAi4CAAAANElEQVR42u3MMREAIAwEMArFv2Lu6oDl10RAaq9M"
    "nzS4adACgUAgEAgEAoFAIBAIfuqFwQB9LgLy4CuODgAAAABJRU5ErkJggg=="
)
EXAMPLE_INFO = {"artifact_path": EXAMPLE_FILE, "type": "dataframe", "pandas_orient": "split"}


def log_model(client: "MlflowClient", run_id: str, folder: Path, name: str) -> str:
    """Upload `folder` as the model `name` of a run; returns the model id.

    The status of the model is READY only after all files have been uploaded, else FAILED.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    tags = {
        "polymuse.stage": run.data.tags.get("polymuse.stage", ""),
        RUN_TAG: name,
        HASH_TAG: hash_folder(folder),
    }
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
            write_environment(Path(temporary))
            write_input_example(Path(temporary), _input_columns(config))
            client.log_model_artifacts(model.model_id, temporary)
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def hash_folder(folder: Path) -> str:
    """sha256 over the names and contents of the files in a folder."""
    hashed = sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name, content = file.relative_to(folder).as_posix(), file.read_bytes()
        hashed.update(f"{name}\0{sha256(content).hexdigest()}\n".encode())
    return hashed.hexdigest()


def find_model(client: "MlflowClient", experiment: str, sha256: str) -> str | None:
    """The id of the last logged model whose folder has this hash; None if there is none."""
    models = client.search_logged_models(
        [experiment],
        f"tags.`{HASH_TAG}` = '{sha256}'",
        order_by=[{"field_name": "creation_time", "ascending": False}],
    )
    return next((model.model_id for model in models if model.status == "READY"), None)


def write_environment(folder: Path) -> None:
    """Write requirements.txt and python_env.yaml, which MLmodel names.

    This package is not among the requirements: it is in no package index.
    """
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in pin_requirements()))
    python_env = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(python_env))  # JSON is YAML too


def pin_requirements() -> list[str]:
    """NAME==VERSION of each direct dependency that is installed, without those of extras."""
    lines = metadata.requires(DISTRIBUTION) or []
    names = [re.match(r"[\w.-]+", line) for line in lines if "extra ==" not in line]
    pins = []
    for name in sorted(match[0] for match in names if match):
        try:
            version = metadata.version(name).partition("+")[0]  # without +cpu
        except metadata.PackageNotFoundError:
            continue
        pins.append(f"{name}=={version}")
    return pins


def write_input_example(folder: Path, columns: list[str]) -> None:
    """Write an input of `predict` with these columns, and the same as a request of a server."""
    values = {
        "topic": "A quiet harbour",
        "text": "what a quiet harbour",
        "image": EXAMPLE_IMAGE,
    }
    table = {"columns": columns, "data": [[values[column] for column in columns]]}
    (folder / EXAMPLE_FILE).write_text(json.dumps(table))
    (folder / f"serving_{EXAMPLE_FILE}").write_text(json.dumps({"dataframe_split": table}))


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
        saved_input_example_info={**EXAMPLE_INFO, "serving_input_path": f"serving_{EXAMPLE_FILE}"},
        model_size_bytes=size,
    )
    model.add_flavor(FLAVOR)
    environment = {"virtualenv": "python_env.yaml"}
    return pyfunc.add_to_model(model, PYFUNC_LOADER, python_env=environment)


def _model_signature(config: dict[str, Any]) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    text, image = _input_columns(config)
    inputs = [
        ColSpec("string", text, required=False),
        # The content of an image file, in JSON as base64. A server refuses null as "binary".
        ColSpec(AnyType(), image, required=False),
    ]
    if text == "topic":
        outputs = [ColSpec("string")]
    elif isinstance(config["labels"], dict):
        outputs = _meme_output_columns(list(config["labels"]))
    else:
        outputs = _text_output_columns(config["shapes"]["task"])
    return ModelSignature(Schema([*inputs]), Schema([*outputs]))


def _input_columns(config: dict[str, Any]) -> list[str]:
    """The columns of the inputs, by the rule of pipelines/inference/model_bundle.py."""
    return ["text" if "labels" in config else "topic", "image"]


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
