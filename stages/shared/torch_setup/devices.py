"""What to compute on, and in which precision: one answer for encoders, training and writing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def get_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def supports_bf16() -> bool:
    """Whether the device computes in bf16; a CPU that only emulates it is many times slower."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


@contextmanager
def inference_context() -> Iterator[None]:
    """No gradients, in the precision of training: policy and reference must agree."""
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=supports_bf16()):
        yield


def get_precision() -> str:
    """What `inference` computes in on this machine."""
    return "bf16" if supports_bf16() else "fp32"
