"""Make `import torchvision` work with a torch build that its extension was not built for.

Import this module before anything that imports torchvision, such as transformers and open_clip.

The registry has no CPU build of torchvision. With a CPU build of torch, its import fails with
"operator torchvision::nms does not exist", because it registers shape functions of operators. This
project does not call them, so declaring their schemas is enough. They are declared only if the
extension cannot be loaded, as it declares them itself.
"""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import torch

_NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = None  # keeps the schemas alive: torch drops them when the library is collected


def can_load_extension() -> bool:
    """Whether torchvision's compiled operators can be loaded into this process."""
    package = find_spec("torchvision")
    assert package and package.origin  # it is a dependency
    folder = Path(package.origin).parent
    for path in sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")):
        try:
            ctypes.CDLL(str(path))
            return True
        except OSError:
            continue
    return False


def define_missing_operators() -> None:
    """Define the schemas of torchvision::nms and torchvision::qnms if they are missing."""
    global _library
    if hasattr(torch.ops.torchvision, "nms") or can_load_extension():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define(f"nms{_NMS_SIGNATURE}")
    _library.define(f"qnms{_NMS_SIGNATURE}")


define_missing_operators()
