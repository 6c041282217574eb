"""Device and precision, the same for encoders, training and generation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def get_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def supports_bf16() -> bool:
    """Whether to compute in bf16: only on GPUs, as a CPU that emulates it is many times slower."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


@contextmanager
def inference_context() -> Iterator[None]:
    """No gradients, and the precision of training, so that policy and reference model agree."""
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=supports_bf16()):
        yield


def get_precision() -> str:
    """The precision of `inference_context` on this machine: bf16 or fp32."""
    return "bf16" if supports_bf16() else "fp32"
