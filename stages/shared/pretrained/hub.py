"""Models of transformers by Hugging Face name or folder: with all their weights, or a sentence."""

from collections.abc import Collection

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

# isort: split
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from stages.shared.runtime.stage import InputError, model_load_error


def load_pretrained_model(
    name: str, kinds: Collection[str], asked: str, remedy: str, **options: object
) -> PreTrainedModel:
    """The model in float32 with every weight from the checkpoint, none left at random.

    kinds: of config.json's `model_type`, those that are of use. asked, remedy: as `unloadable`
    takes them. options: of `from_pretrained`. Raises WrongInput.
    """
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind not in kinds:
            raise InputError(
                f"{asked} is a {kind!r} model: give one of the types {', '.join(sorted(kinds))}"
            )
        model, found = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **options
        )
    except InputError:
        raise
    except Exception as error:  # parsers of foreign files raise what they like
        raise model_load_error(asked, remedy, error) from None
    lacking = sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"]))
    if lacking:
        raise InputError(
            f"{asked} lacks {len(lacking)} of its weights ({lacking[0]}, ...): give a complete "
            "checkpoint"
        )
    return model
