"""Load complete models of transformers by Hugging Face name or folder."""

from collections.abc import Collection

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

# isort: split
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from stages.shared.runtime.stage import InputError, model_load_error


def load_pretrained_model(
    name: str, model_types: Collection[str], param: str, alternative: str, **options: object
) -> PreTrainedModel:
    """The model in float32 with every weight from the checkpoint, none randomly initialized.

    model_types: the supported values of `model_type` in config.json. param: the params entry that
    names the model, and alternative: what else it may hold, both for error messages. options: of
    `from_pretrained`. Raises InputError if the model cannot be loaded, is of another type, or lacks
    weights.
    """
    try:
        model_type = AutoConfig.from_pretrained(name).model_type
        if model_type not in model_types:
            raise InputError(
                f"{param} is a {model_type!r} model: give one of the types "
                f"{', '.join(sorted(model_types))}"
            )
        model, loading_info = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **options
        )
    except InputError:
        raise
    except Exception as error:  # parsers of external files raise arbitrary exceptions
        raise model_load_error(param, alternative, error) from None
    missing = sorted(loading_info["missing_keys"])
    missing += sorted(map(str, loading_info["mismatched_keys"]))
    if missing:
        raise InputError(
            f"{param} lacks {len(missing)} of its weights ({missing[0]}, ...): give a complete "
            "checkpoint"
        )
    return model
