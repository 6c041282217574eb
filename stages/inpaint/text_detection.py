"""Text detection and recognition by rapidocr, offline, with the models in its wheel.

Detection is a network that marks text pixels (DB, arXiv:1911.08947). Its cost grows with the number
of pixels, so images are first scaled to about the same number. Recognition runs once for each
detected line and costs more than detection.
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
import regex

from stages.shared.core.config import Field, config_class

STRIDE = 32  # input sides of the network are multiples of this
MAX_ASPECT_RATIO = 16  # the longer side of a scaled image, in multiples of `input_size`
FINGERPRINTED_PACKAGES = ("rapidocr", "onnxruntime", "opencv-python-headless", "pillow")

MIN_UPRIGHT_SCORE = 0.9  # of a line that is not tried upside down; upside down it is about 0.75

# A box that is probably read wrongly. The network knows no Cyrillic, Hebrew, Arabic, Hangul or
# Indic letters and only the plain Greek ones: it returns nothing, a few letters, or similar ones.
MIN_RELIABLE_SCORE = 0.85  # Hebrew has 0.5 to 0.8, Armenian up to 0.84
MIN_CHARACTERS_PER_SQUARE = 0.5  # of a box's height; Latin text has 1.5 to 3, Chinese about 1
MAX_UNRELIABLE_SHARE = 0.5  # of the length of all boxes; else the image is taken as not readable
GREEK_WORD_PATTERN = regex.compile(r"\b(?=\p{L}{3})\p{L}*\p{Greek}")  # not symbols as in a formula
# (vertical, upside down) -> what makes coordinates (x, y) upright: text that is level, upside down,
# turned by 90 degrees to the right, and to the left
UPRIGHT_MATRICES = {
    (False, False): np.array([[1, 0], [0, 1]], np.float32),
    (False, True): np.array([[-1, 0], [0, -1]], np.float32),
    (True, False): np.array([[0, -1], [1, 0]], np.float32),
    (True, True): np.array([[0, 1], [-1, 0]], np.float32),
}

Quads = np.ndarray  # (N, 4, 2) float32: corners (x, y) in pixels, clockwise from upper left


@config_class
class TextDetectionConfig:
    """The section `inpaint.detection`. Heights are fractions of the image's longer side."""

    input_size: int = Field(ge=STRIDE, description="images are scaled to this side squared, pixels")
    max_upscale: float = Field(gt=0, description="maximum scale factor of small images")
    pixel_threshold: float = Field(ge=0, le=1, description="minimum score of a text pixel")
    box_threshold: float = Field(ge=0, le=1, description="minimum mean score of a box")
    unclip_ratio: float = Field(
        ge=0, description="growth of a box; the network marks only the core of a line"
    )
    max_line_height: float = Field(
        ge=0, description="taller boxes are dropped; fraction of the longer image side"
    )
    verify_above_height: float = Field(ge=0, description="taller boxes must be readable; same unit")
    verify_below_score: float = Field(
        ge=0, le=1, description="boxes below this score must be readable, too"
    )
    min_recognition_score: float = Field(
        ge=0, le=1, description="minimum recognition score of a readable box"
    )


@config_class
class TextRecognitionConfig:
    """The section `inpaint.recognition`."""

    min_score: float = Field(
        ge=0, le=1, description="boxes recognized with a lower score are left out"
    )


# A RapidOCR instance keeps state between calls, so threads must not share one.
_idle_engines: dict[TextDetectionConfig, deque] = {}


def _get_model_dir() -> Path:
    import rapidocr

    return Path(rapidocr.__file__).parent / "models"


def _get_model_path(kind: str) -> Path:
    """A model in the wheel: det (detection) or rec (recognition)."""
    return _get_model_dir() / f"PP-OCRv6_{kind}_small.onnx"


def fingerprint(config: TextDetectionConfig | TextRecognitionConfig) -> str:
    """Hash of the settings, models and versions that determine the output."""
    parts = [repr(config)] + [version(name) for name in FINGERPRINTED_PACKAGES]
    models = _get_model_path("det").read_bytes() + _get_model_path("rec").read_bytes()
    return sha256(models + "\n".join(parts).encode()).hexdigest()


@contextmanager
def _borrow_engine(config: TextDetectionConfig) -> Iterator[Any]:
    """A RapidOCR instance for exclusive use."""
    idle = _idle_engines.setdefault(config, deque())
    try:
        engine = idle.pop()
    except IndexError:
        engine = _create_engine(config)
    yield engine
    idle.append(engine)


def _create_engine(config: TextDetectionConfig) -> Any:
    """A new RapidOCR instance. Model paths are explicit, since it would look online otherwise."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Global.use_preprocess_img": False,  # it scales twice and returns wrong coordinates
            "Global.use_vertical_padding": False,
            "Det.model_path": str(_get_model_path("det")),
            "Det.limit_type": "max",
            # No limit: images are already scaled.
            "Det.limit_side_len": MAX_ASPECT_RATIO * config.input_size + STRIDE,
            "Det.thresh": config.pixel_threshold,
            "Det.box_thresh": config.box_threshold,
            "Det.unclip_ratio": config.unclip_ratio,
            "Rec.model_path": str(_get_model_path("rec")),
            # One thread each: sums in a fixed order, and images are processed in parallel.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def compute_scale(width: int, height: int, config: TextDetectionConfig) -> float:
    """The factor that scales an image to input_size ** 2 pixels, or fewer."""
    by_area = config.input_size / (width * height) ** 0.5
    by_side = MAX_ASPECT_RATIO * config.input_size / max(width, height)
    return min(by_area, config.max_upscale, by_side)


def detect_text(image: np.ndarray, config: TextDetectionConfig) -> tuple[Quads, np.ndarray]:
    """The text lines of an image (H, W, 3; RGB) and their scores (N,), from top to bottom.

    The network mistakes faces and drawn shapes for letters. Boxes that are tall or uncertain are
    therefore kept only if text can be read in them.
    """
    height, width = image.shape[:2]
    scale = compute_scale(width, height, config)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(image, size, interpolation=interpolation)
    right, bottom = (-side % STRIDE for side in size)
    # Pad rather than stretch. A replicated edge does not look like text.
    scaled = cv2.copyMakeBorder(scaled, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    with _borrow_engine(config) as engine:
        result = engine(np.ascontiguousarray(scaled[:, :, ::-1]))
    if result.boxes is None:
        return np.zeros((0, 4, 2), np.float32), np.zeros(0, np.float32)
    ratio = np.array([width / size[0], height / size[1]], np.float32)
    quads = np.clip(result.boxes.astype(np.float32) * ratio, 0, (width, height)).astype(np.float32)
    scores = np.array(result.scores, np.float32)
    heights = np.array([compute_text_height(quad) for quad in quads]) / max(width, height)
    keep = heights <= config.max_line_height
    certain = (heights <= config.verify_above_height) & (scores >= config.verify_below_score)
    for n in np.flatnonzero(keep & ~certain):
        ((text, score),) = recognize_text(image, quads[n : n + 1], config)
        keep[n] = len(text) > 1 and score >= config.min_recognition_score
    return quads[keep], scores[keep]


def compute_text_height(quad: np.ndarray) -> float:
    """The shorter side of a box (4, 2) in pixels, about the height of its text."""
    sides = np.linalg.norm(quad - np.roll(quad, 1, axis=0), axis=1)
    return float(min(sides[0] + sides[2], sides[1] + sides[3])) / 2


def recognize_text(
    image: np.ndarray, quads: Quads, config: TextDetectionConfig
) -> list[tuple[str, float]]:
    """The text of each box and its score, 0 to 1; boxes higher than wide are read downwards."""
    return _recognize_crops(_crop_boxes(image, quads, config), config)


def _crop_boxes(image: np.ndarray, quads: Quads, config: TextDetectionConfig) -> list[np.ndarray]:
    """The part of the image in each box (H, W, 3; BGR), turned so that its longer side is level."""
    with _borrow_engine(config) as engine:
        return engine.crop_text_regions(np.ascontiguousarray(image[:, :, ::-1]), quads)


def _recognize_crops(
    crops: list[np.ndarray], config: TextDetectionConfig
) -> list[tuple[str, float]]:
    with _borrow_engine(config) as engine:
        result = engine.recognize_txt(crops)
    return [(text.strip(), score) for text, score in zip(result.txts, result.scores, strict=True)]


def read_text(
    image: np.ndarray, quads: Quads, detection: TextDetectionConfig, config: TextRecognitionConfig
) -> str:
    """The text in the boxes. Boxes on one line are joined by spaces, lines by newlines.

    An uncertain box is also read upside down, since the text may be turned; boxes that are turned
    in another way are read one after the other. Text in a script that the network does not know is
    left out: boxes with Greek words, and all boxes if most of them are probably read wrongly.
    """
    if not len(quads):
        return ""
    crops = _crop_boxes(image, quads, detection)
    recognized = _recognize_crops(crops, detection)
    is_turned = np.zeros(len(quads), bool)
    for n in [n for n, (_, score) in enumerate(recognized) if score < MIN_UPRIGHT_SCORE]:
        (turned,) = _recognize_crops([np.ascontiguousarray(crops[n][::-1, ::-1])], detection)
        if turned[1] > recognized[n][1]:
            recognized[n], is_turned[n] = turned, True
    if _share_of_unreliable_boxes(recognized, crops, is_turned) >= MAX_UNRELIABLE_SHARE:
        return ""
    texts = [
        text if score >= config.min_score and not GREEK_WORD_PATTERN.search(text) else ""
        for text, score in recognized
    ]
    is_vertical = [_is_vertical(quad) for quad in quads]
    lines = []
    for direction, to_upright in UPRIGHT_MATRICES.items():
        boxes = [n for n in range(len(quads)) if (is_vertical[n], is_turned[n]) == direction]
        for line in group_into_lines(quads[boxes] @ to_upright) if boxes else []:
            lines.append(" ".join(texts[boxes[n]] for n in line if texts[boxes[n]]))
    return "\n".join(line for line in lines if line)


def _share_of_unreliable_boxes(
    recognized: list[tuple[str, float]], crops: list[np.ndarray], is_turned: np.ndarray
) -> float:
    """The share of the boxes that are probably read wrongly, weighted by their length."""
    lengths = np.array([crop.shape[1] / crop.shape[0] for crop in crops])
    min_scores = np.where(is_turned, MIN_UPRIGHT_SCORE, MIN_RELIABLE_SCORE)
    is_unreliable = [
        score < min_score
        or len(text) < MIN_CHARACTERS_PER_SQUARE * length
        or bool(GREEK_WORD_PATTERN.search(text))
        for (text, score), length, min_score in zip(recognized, lengths, min_scores, strict=True)
    ]
    return float(lengths[is_unreliable].sum() / lengths.sum())


def _is_vertical(quad: np.ndarray) -> bool:
    """Whether RapidOCR turns the crop of a box (4, 2) counterclockwise, by its condition."""
    width = max(np.linalg.norm(quad[0] - quad[1]), np.linalg.norm(quad[3] - quad[2]))
    height = max(np.linalg.norm(quad[0] - quad[3]), np.linalg.norm(quad[1] - quad[2]))
    return int(height) >= 1.5 * int(width)


def group_into_lines(quads: Quads) -> list[list[int]]:
    """Indices of the boxes of each line, left to right.

    A box joins a line if its center lies within the height of the line's first box.
    """
    lines: list[list[int]] = []
    centers = quads[:, :, 1].mean(1)
    for n in np.argsort(centers, kind="stable"):
        first = quads[lines[-1][0]][:, 1] if lines else None
        if first is not None and first.min() <= centers[n] <= first.max():
            lines[-1].append(int(n))
        else:
            lines.append([int(n)])
    return [sorted(line, key=lambda n: quads[n, :, 0].min()) for line in lines]
