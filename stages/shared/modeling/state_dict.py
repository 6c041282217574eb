"""The weights of a model as a safetensors file holds them."""

import torch
from torch import Tensor


def untied_state_dict(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a model, a tied weight once. (safetensors' save_model notes the other names of
    a tied weight in an order that changes from run to run, and the file's hash with it.)"""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    return {
        name: value.contiguous() for name, value in model.state_dict().items() if name not in tied
    }
