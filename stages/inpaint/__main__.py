"""Remove overlay text from the images of memes (MM-ORIENT, arXiv:2508.16300).

python -m stages.inpaint --ingest INGEST --clean CLEAN --output OUTPUT

reads   INGEST/images, CLEAN/records.parquet
writes  OUTPUT/pictures.parquet   INPAINTED_IMAGES: text boxes, mask, text if recognition is on
        OUTPUT/images             images without text, of at most working_pixels; an image that had
                                  no text keeps its bytes
        OUTPUT/summary.json       counts, reasons of failures, mean masked fraction

The results of each step (find, paint, read) are cached by image, settings and code. If a step fails
on an image, the image is passed through and the reason is counted. If a step fails on all images
(two or more), the stage stops.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from inspect import getfile
from pathlib import Path
from typing import Literal, NamedTuple

from stages.inpaint import inpainters, masks, text_detection, text_removal
from stages.inpaint.inpainters import InpainterConfig
from stages.inpaint.masks import TextMaskConfig
from stages.inpaint.text_detection import TextDetectionConfig, TextRecognitionConfig
from stages.inpaint.text_removal import NO_BOXES, TextBoxes
from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import Store, batched
from stages.shared.data.image_store import MEMORY_ADDRESS
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage, work_dir

# The code that determines the results of the steps.
FINGERPRINTED_MODULES = (image_store, inpainters, masks, text_detection, text_removal)


@config_class
class InpaintConfig:
    """The section `inpaint`."""

    corpora: list[str] = Field(description="corpora of kind memes")
    num_shards: int = Field(
        ge=1, le=image_store.MAX_SHARDS, description="Parquet files that hold the images"
    )
    batch_size: int = Field(ge=1, description="images per batch of a worker")
    working_pixels: int = Field(
        ge=1, description="images with more pixels are scaled down to this number"
    )
    ocr: Literal["when_missing", "always", "never"] = Field(
        description="read an image's text; when_missing: if the meme has none"
    )
    detection: TextDetectionConfig
    mask: TextMaskConfig
    inpainting: InpainterConfig
    recognition: TextRecognitionConfig


class InpaintJob(NamedTuple):
    """The input of a step for one image."""

    name: str  # sha256 of the content
    content: bytes
    boxes: TextBoxes  # NO_BOXES in the step `find`


class StepResult(NamedTuple):
    """The output of a step for one image: a row, or the reason of a failure."""

    name: str
    row: bytes | None
    failure: str | None


# ------------------------------------------------------------------------------- steps
def find(config: InpaintConfig, job: InpaintJob) -> bytes:
    return text_removal.find(job.content, config.working_pixels, config.detection).pack()


def paint(config: InpaintConfig, job: InpaintJob) -> bytes:
    return text_removal.paint(
        job.content, job.boxes.quads, config.working_pixels, config.mask, config.inpainting
    ).pack()


def read(config: InpaintConfig, job: InpaintJob) -> bytes:
    return text_removal.read(
        job.content, job.boxes.quads, config.working_pixels, config.detection, config.recognition
    ).encode()


def run_step(step: Callable[[InpaintJob], bytes], batch: list[InpaintJob]) -> list[StepResult]:
    """Run a step on each image. A failure does not stop the other images; InputError does."""
    results = []
    for job in batch:
        try:
            results.append(StepResult(job.name, step(job), None))
        except InputError:
            raise
        except Exception as error:  # OCR and inpainting raise any type on unusual images
            # Without memory addresses, so that equal failures are counted together.
            message = MEMORY_ADDRESS.sub("", " ".join(str(error).split()))[:120]
            reason = f"{type(error).__name__}: {message}".rstrip(": ")
            results.append(StepResult(job.name, None, reason))
    return results


# ------------------------------------------------------------------------------- cached steps
def fingerprints(config: InpaintConfig) -> dict[str, str]:
    """By step, a hash of all that determines its results besides the image.

    These are settings, versions and our code. Raises InputError if LaMa's weights are missing.
    """
    detection = f"{config.working_pixels} {text_detection.fingerprint(config.detection)}"
    parts = {
        "find": [detection],
        "read": [detection, text_detection.fingerprint(config.recognition)],
    }
    if config.inpainting.backend != "none":
        parts["paint"] = [detection, repr(config.mask), inpainters.fingerprint(config.inpainting)]
    code = b"".join(Path(getfile(module)).read_bytes() for module in FINGERPRINTED_MODULES)
    return {
        step: sha256(code + "\n".join(settings).encode()).hexdigest()
        for step, settings in parts.items()
    }


class CachedStepRunner:
    """Runs steps on the images of a folder and caches the results.

    `failures` collects the reasons of failed steps.
    """

    def __init__(self, config: InpaintConfig, engine: parallel.EngineConfig, folder: Path):
        self.config, self.engine, self.folder = config, engine, folder
        self.fingerprints = fingerprints(config)
        self.failures: list[str] = []

    def run_cached(
        self,
        step: Callable[[InpaintConfig, InpaintJob], bytes],
        names: list[str],
        boxes: dict[str, TextBoxes] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Pairs (name, row) in the order of names, without images on which the step failed.

        Raises InputError if an image is missing, or if the step fails on all of several images.
        """
        step_name = step.__name__
        store = Store(work_dir() / "store", f"{step_name}-{self.fingerprints[step_name][:32]}")
        failed: set[str] = set()
        if missing := set(store.missing_keys(names)):
            run = partial(run_step, partial(step, self.config))
            failed = self._compute(run, store, missing, boxes, step_name)
            if absent := sorted(set(store.missing_keys(missing)) - failed):
                raise InputError(f"{self.folder} lacks the image {absent[0]}: run `dvc repro`")
            if 1 < len(names) == len(failed):  # a general problem, not one of the images
                raise InputError(
                    f"inpaint: all {len(names)} images failed, the last one at "
                    f"{self.failures[-1]}: check that memory and model suffice, or choose another "
                    "inpaint.inpainting.backend"
                )
        succeeded = [name for name in names if name not in failed]
        return zip(succeeded, store.read(succeeded), strict=True)

    def _compute(
        self,
        run: Callable[[list[InpaintJob]], list[StepResult]],
        store: Store,
        names: set[str],
        boxes: dict[str, TextBoxes] | None,
        step_name: str,
    ) -> set[str]:
        """Run the step, store its rows and return the names of failed images."""
        jobs = (
            InpaintJob(row["sha256"], row["bytes"], boxes[row["sha256"]] if boxes else NO_BOXES)
            for row in image_store.read_images(self.folder)
            if row["sha256"] in names
        )
        failed: dict[str, str] = {}
        batches = batched(progress_bar(jobs, step_name, len(names)), self.config.batch_size)
        for results in parallel.map_batches(run, batches, self.engine):
            store.write((result.name, result.row) for result in results if result.row is not None)
            for result in results:
                if result.failure:
                    failed[result.name] = f"{step_name}: {result.failure}"
        self.failures += failed.values()
        return set(failed)


# ------------------------------------------------------------------------------- the corpus
def select_images(records: list[dict], ocr: str) -> tuple[list[str], set[str]]:
    """The sha256 of all images, unique and sorted, and those of images whose text is to be read.

    ocr: always | never | when_missing.
    """
    with_image = [record for record in records if record["image"]]
    is_read = {
        "always": lambda record: True,
        "never": lambda record: False,
        "when_missing": lambda record: not record["text"],
    }[ocr]
    names = sorted({record["image"] for record in with_image})
    return names, {record["image"] for record in with_image if is_read(record)}


def compute_bounding_box(quad, score: float) -> dict:
    """The axis-aligned bounds of a quadrilateral, in pixels."""
    (left, top), (right, bottom) = quad.min(0).tolist(), quad.max(0).tolist()
    return {"left": left, "top": top, "right": right, "bottom": bottom, "score": float(score)}


def build_unmodified_row(name: str, boxes: TextBoxes | None) -> dict:
    """The INPAINTED_IMAGES row of an image that is passed through and not read."""
    quads, scores = boxes or ((), ())
    return {
        "image": name,
        "inpainted": name,
        "boxes": [
            compute_bounding_box(quad, score) for quad, score in zip(quads, scores, strict=True)
        ],
        "quads": [quad.reshape(-1).tolist() for quad in quads],
        "masked": 0.0,
        "text": None,
        "mask": None,
    }


def detect_boxes(
    runner: CachedStepRunner, names: list[str], to_read: set[str]
) -> dict[str, TextBoxes]:
    """Text boxes of the images that are to be inpainted or read."""
    inpaints = runner.config.inpainting.backend != "none"
    rows = runner.run_cached(find, [name for name in names if name in to_read or inpaints])
    return {name: text_removal.unpack_boxes(packed) for name, packed in rows}


def build_inpainted_rows(
    runner: CachedStepRunner, names: list[str], to_read: set[str], add: Callable[[dict], None]
) -> list[dict]:
    """INPAINTED_IMAGES rows in the order of names. `add` receives the IMAGES row of each image."""
    boxes = detect_boxes(runner, names, to_read)
    with_text = [name for name in names if name in boxes and len(boxes[name].quads)]
    rows = {name: build_unmodified_row(name, boxes.get(name)) for name in names}
    if runner.config.inpainting.backend != "none":
        for name, packed in runner.run_cached(paint, with_text, boxes):
            result = text_removal.unpack_inpaint_result(packed)
            image = image_store.build_image_row(result.content)
            add(image)
            rows[name] |= {"inpainted": image["sha256"], "mask": result.mask}
            rows[name]["masked"] = result.masked_share
    readable = [name for name in names if name in to_read and name in boxes]
    for name, packed in runner.run_cached(read, readable, boxes):
        rows[name]["text"] = packed.decode()
    unmodified = {name for name, row in rows.items() if row["inpainted"] == name}
    for image in image_store.read_images(runner.folder):
        if image["sha256"] in unmodified:
            add(image)
    return list(rows.values())


def summarize_inpainting(rows: list[dict], failures: list[str]) -> dict:
    """Counts of images; `masked` is the mean masked fraction of the inpainted images."""
    masked_shares = [row["masked"] for row in rows if row["mask"]]
    return {
        "pictures": len(rows),
        "with_text": sum(bool(row["boxes"]) for row in rows),
        "passed_through": len(rows) - len(masked_shares),
        "recognised": sum(bool(row["text"]) for row in rows),
        "failed": dict(sorted(Counter(failures).items())),
        "masked": sum(masked_shares) / len(masked_shares) if masked_shares else None,
    }


def main(
    config: InpaintConfig, engine: parallel.EngineConfig, ingest: Path, clean: Path, output: Path
) -> None:
    """Inpaint the images of a corpus. ingest, clean: folders of these stages."""
    records = schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS["memes"])
    names, to_read = select_images(records, config.ocr)
    runner = CachedStepRunner(config, engine, ingest / "images")
    with atomic_output_dir(output) as folder:
        with image_store.image_writer(folder / "images", config.num_shards) as add:
            rows = build_inpainted_rows(runner, names, to_read, add)
        schemas.write_parquet(folder / "pictures.parquet", rows, schemas.INPAINTED_IMAGES)
        summary = json.dumps(summarize_inpainting(rows, runner.failures), indent=2)
        (folder / "summary.json").write_text(summary + "\n")


def cli(ingest: Path, clean: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    engine = load_config(parallel.EngineConfig, "parallel")
    main(load_config(InpaintConfig, "inpaint"), engine, ingest, clean, output)


if __name__ == "__main__":
    run_stage(cli)
