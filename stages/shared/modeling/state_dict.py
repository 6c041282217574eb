"""The weights of a model as they are stored in a safetensors file."""

import torch
from torch import Tensor


def untied_state_dict(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, with one name per tied weight.

    safetensors' own save_model lists the other names of a tied weight in an order that changes from
    run to run, and with it the hash of the file.
    """
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    return {
        name: value.contiguous() for name, value in model.state_dict().items() if name not in tied
    }
