"""Make `import torchvision` work beside a torch that its extension was not built for.

Import this module before anything that imports torchvision: transformers, open_clip.

There is no CPU build of torchvision on the registry, and beside a CPU torch it stops with "operator
torchvision::nms does not exist" while it declares shapes for operators that nobody here calls.
Their schemas are enough; an extension that loads brings its own, so they are defined only then.
"""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import torch

_NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = None  # torch forgets what a library defined when the library is collected


def can_load_extension() -> bool:
    """Whether torchvision's compiled operators can be loaded into this process."""
    folder = Path(find_spec("torchvision").origin).parent
    for path in sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")):
        try:
            ctypes.CDLL(str(path))
            return True
        except OSError:
            continue
    return False


def define_missing_operators() -> None:
    """Define the schemas of torchvision::nms and torchvision::qnms where they are missing."""
    global _library
    if hasattr(torch.ops.torchvision, "nms") or can_load_extension():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define(f"nms{_NMS_SIGNATURE}")
    _library.define(f"qnms{_NMS_SIGNATURE}")


define_missing_operators()
