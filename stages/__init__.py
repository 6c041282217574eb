"""The stages of the pipeline. They use the network only for what params.yaml names."""

import os

from stages.shared.runtime import errors

# Kept in the environment, so that stages started by the `polymuse` command inherit it.
if "HF_HUB_OFFLINE" not in os.environ:
    os.environ["POLYMUSE_MAY_LIFT_OFFLINE"] = "1"

# No telemetry, and no access to hubs: stages lift that to download a model that params.yaml names.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Else transformers asks a service to convert pickled weights, and opens a pull request.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",  # a fork after its thread pool has started deadlocks
}.items():
    os.environ.setdefault(_name, _value)

errors.install_hooks()
