"""The stages of the pipeline, one verb each. Nothing leaves the machine unless params name it."""

import os

# Remembered in the environment too, because stages inherit what the `polymuse` command set.
if "HF_HUB_OFFLINE" not in os.environ:
    os.environ["POLYMUSE_MAY_LIFT_OFFLINE"] = "1"

# Telemetry is off, and so are hubs: `align` and `train_sft` lift that for a named download.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",  # a fork after its thread pool started would deadlock
}.items():
    os.environ.setdefault(_name, _value)
