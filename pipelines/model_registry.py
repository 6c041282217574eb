"""The registry of MLflow: registered models, their versions, and the alias `champion`.

A registered model is named after a corpus. Each version has tags that name its run and weights, and
the MLflow run of its promotion, whose artifacts are the evaluation that later versions are compared
with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from pipelines.evaluation import ITEMS_FILE, METRICS_FILE
from stages.shared.runtime import model_logging
from stages.shared.runtime.mlflow_store import MlflowStore, error_reason
from stages.shared.runtime.stage import InputError

CHAMPION = "champion"  # the alias
PROMOTION_TAG = "polymuse.promotion"  # of a version: the MLflow run with its evaluation
EVALUATION_DIR = "evaluation"  # of the artifacts of that run
MISSING_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no model, no alias
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model.

    run: the row of params.yaml. sha256: of the model folder. promotion: id of an MLflow run.
    """

    name: str
    number: str
    run: str
    sha256: str
    promotion: str


def _raises_input_error(call: Callable[P, T]) -> Callable[P, T]:
    """Turn every exception of MLflow, its drivers and sockets into an InputError."""

    @wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the MLflow registry cannot be used ({error_reason(error)}): run "
                "`polymuse doctor`, or set MLFLOW_TRACKING_URI"
            ) from None

    return wrapper


class ModelRegistry:
    """The registry of the store at MLFLOW_TRACKING_URI. Methods raise InputError."""

    def __init__(self) -> None:
        self._store = MlflowStore()
        self._client = self._store.client

    @_raises_input_error
    def find_champion(self, name: str) -> ModelVersion | None:
        """The version with the alias `champion`; None if there is none."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in MISSING_CODES:
                return None
            raise
        tags = [model_logging.RUN_TAG, model_logging.HASH_TAG, PROMOTION_TAG]
        return ModelVersion(name, str(found.version), *(found.tags.get(tag, "") for tag in tags))

    @_raises_input_error
    def find_model(self, sha256: str) -> str | None:
        """The id of the logged model of a folder with this hash; None if there is none."""
        return model_logging.find_model(self._client, self._store.experiment, sha256)

    @_raises_input_error
    def register_champion(
        self, name: str, model_id: str, tags: dict[str, str], description: str
    ) -> str:
        """Register a logged model and move the alias to it; returns the number of its version."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in MISSING_CODES:
                raise
            self._client.create_registered_model(name)
        run_id = self._client.get_logged_model(model_id).source_run_id
        source = f"models:/{model_id}"
        version = self._client.create_model_version(
            name, source, run_id, tags, description=description, model_id=model_id
        )
        self._client.set_registered_model_alias(name, CHAMPION, str(version.version))
        return str(version.version)

    @_raises_input_error
    def upload_evaluation(self, run_id: str, folder: Path) -> None:
        """Upload metrics and item scores as artifacts of an MLflow run."""
        for file in (METRICS_FILE, ITEMS_FILE):
            self._client.log_artifact(run_id, str(folder / file), EVALUATION_DIR)

    @_raises_input_error
    def download_evaluation(self, version: ModelVersion, folder: Path) -> Path:
        """Copy the evaluation of a version below `folder`; returns where it is."""
        return Path(self._client.download_artifacts(version.promotion, EVALUATION_DIR, str(folder)))
