"""Where a picture has text, and what it says, by rapidocr with the models of its wheel: offline.

Finding is a network that marks pixels of text (DB, arXiv:1911.08947) and costs as much as the
picture has pixels, so that a picture is scaled to the same number of them first. Reading takes each
line that was found, and costs more than finding.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.shared.core.config import Field, config_class, raise_on_faults

STRIDE = 32  # sides that the network takes are multiples of this
MAX_ASPECT_RATIO = 16  # sides: a strip is scaled to no more than this many times `side`
FINGERPRINTED_PACKAGES = ("rapidocr", "onnxruntime", "opencv-python-headless", "pillow")

Quads = np.ndarray  # (N, 4, 2) float32: corners in pixels, x before y, clockwise from upper left


@config_class
class TextDetectionConfig:
    """The section `inpaint.find`."""

    input_size: int = Field(ge=STRIDE)
    max_upscale: float
    pixel_threshold: float = Field(ge=0, le=1)
    box_threshold: float = Field(ge=0, le=1)
    unclip_ratio: float = Field(ge=0)
    max_line_height: float = Field(ge=0)
    verify_above_height: float = Field(ge=0)
    verify_below_score: float = Field(ge=0, le=1)
    min_recognition_score: float = Field(ge=0, le=1)

    def __post_init__(self) -> None:
        raise_on_faults(
            {f"enlarge is {self.max_upscale}: give more than 0": not self.max_upscale > 0}
        )


@config_class
class TextRecognitionConfig:
    """The section `inpaint.read`."""

    min_score: float = Field(ge=0, le=1)


# A RapidOCR keeps what its last call left behind, so that two threads must not share one.
_idle_engines: dict[TextDetectionConfig, deque] = {}


def _get_model_dir() -> Path:
    import rapidocr

    return Path(rapidocr.__file__).parent / "models"


def _get_model_path(kind: str) -> Path:
    """A model of the wheel: det (finding) or rec (reading)."""
    return _get_model_dir() / f"PP-OCRv6_{kind}_small.onnx"


def fingerprint(params: TextDetectionConfig | TextRecognitionConfig) -> str:
    """Names what is found or read: settings, models, versions."""
    parts = [repr(params)] + [version(name) for name in FINGERPRINTED_PACKAGES]
    models = _get_model_path("det").read_bytes() + _get_model_path("rec").read_bytes()
    return sha256(models + "\n".join(parts).encode()).hexdigest()


@contextmanager
def _borrow_engine(finding: TextDetectionConfig) -> Iterator[Any]:
    """A RapidOCR that nobody else uses meanwhile."""
    idle = _idle_engines.setdefault(finding, deque())
    try:
        engine = idle.pop()
    except IndexError:
        engine = _create_engine(finding)
    yield engine
    idle.append(engine)


def _create_engine(finding: TextDetectionConfig) -> Any:
    """Paths of models are given: without, it would look online."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Global.use_preprocess_img": False,  # two of its scalings lose each other's ratio
            "Global.use_vertical_padding": False,
            "Det.model_path": str(_get_model_path("det")),
            "Det.limit_type": "max",
            "Det.limit_side_len": MAX_ASPECT_RATIO * finding.input_size
            + STRIDE,  # it is scaled already
            "Det.thresh": finding.pixel_threshold,
            "Det.box_thresh": finding.box_threshold,
            "Det.unclip_ratio": finding.unclip_ratio,
            "Rec.model_path": str(_get_model_path("rec")),
            # Sums in one order, and cores for pictures beside each other.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def compute_scale(width: int, height: int, params: TextDetectionConfig) -> float:
    """By how much a picture is scaled to have side x side pixels, or fewer."""
    by_area = params.input_size / (width * height) ** 0.5
    return min(
        by_area, params.max_upscale, MAX_ASPECT_RATIO * params.input_size / max(width, height)
    )


def detect_text(picture: np.ndarray, params: TextDetectionConfig) -> tuple[Quads, np.ndarray]:
    """The lines of text of a picture (H, W, 3; RGB), and how sure each is, from top to bottom.

    The network takes faces, and shapes of drawings, for letters: of what is tall or unsure, that
    which can be read is kept.
    """
    height, width = picture.shape[:2]
    scale = compute_scale(width, height, params)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(
        picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    right, below = (-side % STRIDE for side in size)
    # Padded, not stretched. What continues the edge looks like no text.
    small = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_REPLICATE)
    with _borrow_engine(params) as engine:
        found = engine(np.ascontiguousarray(small[:, :, ::-1]))
    if found.boxes is None:
        return np.zeros((0, 4, 2), np.float32), np.zeros(0, np.float32)
    ratio = np.array([width / size[0], height / size[1]], np.float32)
    quads = np.clip(found.boxes.astype(np.float32) * ratio, 0, (width, height)).astype(np.float32)
    scores = np.array(found.scores, np.float32)
    heights = np.array([compute_text_height(quad) for quad in quads]) / max(width, height)
    kept = heights <= params.max_line_height
    sure = (heights <= params.verify_above_height) & (scores >= params.verify_below_score)
    for n in np.flatnonzero(kept & ~sure):
        ((text, score),) = recognize_text(picture, quads[n : n + 1], params)
        kept[n] = len(text) > 1 and score >= params.min_recognition_score
    return quads[kept], scores[kept]


def compute_text_height(quad: np.ndarray) -> float:
    """Of a box (4, 2), in pixels: its shorter side, which is about the height of its text."""
    sides = np.linalg.norm(quad - np.roll(quad, 1, axis=0), axis=1)
    return float(min(sides[0] + sides[2], sides[1] + sides[3])) / 2


def recognize_text(
    picture: np.ndarray, quads: Quads, finding: TextDetectionConfig
) -> list[tuple[str, float]]:
    """What stands in each box, and how sure that is, 0 to 1."""
    with _borrow_engine(finding) as engine:
        crops = engine.crop_text_regions(np.ascontiguousarray(picture[:, :, ::-1]), quads)
        found = engine.recognize_txt(crops)
    return [(text.strip(), score) for text, score in zip(found.txts, found.scores, strict=True)]


def read_text(
    picture: np.ndarray, quads: Quads, finding: TextDetectionConfig, params: TextRecognitionConfig
) -> str:
    """What stands in the boxes: boxes of one line with a space between, lines in lines."""
    if not len(quads):
        return ""
    found = recognize_text(picture, quads, finding)
    texts = [text if score >= params.min_score else "" for text, score in found]
    lines = [" ".join(texts[n] for n in line if texts[n]) for line in group_into_lines(quads)]
    return "\n".join(line for line in lines if line)


def group_into_lines(quads: Quads) -> list[list[int]]:
    """Which boxes share a line: each centre within the height of the line's first box."""
    lines: list[list[int]] = []
    middles = quads[:, :, 1].mean(1)
    for n in np.argsort(middles, kind="stable"):
        first = quads[lines[-1][0]][:, 1] if lines else None
        if first is not None and first.min() <= middles[n] <= first.max():
            lines[-1].append(int(n))
        else:
            lines.append([int(n)])
    return [sorted(line, key=lambda n: quads[n, :, 0].min()) for line in lines]
