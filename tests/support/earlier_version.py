"""Model folders as earlier versions wrote them."""

import json
from pathlib import Path

from mlflow.models import Model

from stages.shared.modeling import saved_config
from stages.shared.runtime import model_logging


def restore_old_keys(config: dict) -> dict:
    """The content of a config.json with the keys of earlier versions."""
    keys = {
        "network": saved_config.NETWORK_KEYS[config["model"]],
        "text": saved_config.TEXT_KEYS,
        "picture": saved_config.IMAGE_KEYS,
        "task_features": saved_config.TASK_FEATURE_KEYS,
    }
    return config | {
        section: _rename_back(config[section], renamed)
        for section, renamed in keys.items()
        if section in config
    }


def _rename_back(values: dict, renamed: dict[str, str], parent: str = "") -> dict:
    old_keys = {}
    for path, new_key in renamed.items():
        section, _, old_key = path.rpartition(".")
        old_keys[f"{section}.{new_key}".lstrip(".")] = old_key
    return {
        old_keys.get(parent + key, key): (
            _rename_back(value, renamed, f"{parent}{key}.") if isinstance(value, dict) else value
        )
        for key, value in values.items()
    }


def make_logged_model(folder: Path) -> None:
    """Turn a model folder into a model that an earlier version logged to MLflow."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    mlmodel: Model = model_logging.build_mlmodel(config, "0" * 32, "m-0", str(folder), size=1)
    mlmodel.flavors["python_function"]["loader_module"] = "pipelines.served"
    mlmodel.save(str(folder / "MLmodel"))
    file.write_text(json.dumps(restore_old_keys(config)))
