"""Take overlay text out of the pictures of memes (MM-ORIENT, arXiv:2508.16300).

python -m stages.inpaint --ingest INGEST --clean CLEAN --output OUTPUT

reads   INGEST/images, CLEAN/records.parquet
writes  TARGET/pictures.parquet   INPAINTED: boxes of text, mask, what it says where that is asked
        TARGET/images             the pictures without text; one without any is the same bytes
        TARGET/summary.json       counts, reasons of failures, the mean share that is masked

Each step goes through the store: boxes, painting and reading of a picture are done once for the
same settings and code. A picture on which a step fails is passed through, and counted with the
reason; a step that fails on all of several stops the stage.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from stages.inpaint import inpainters, masks, text_detection, text_removal
from stages.inpaint.inpainters import InpainterConfig
from stages.inpaint.masks import TextMaskConfig
from stages.inpaint.text_detection import TextDetectionConfig, TextRecognitionConfig
from stages.inpaint.text_removal import TextBoxes
from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import Store, batched
from stages.shared.data.image_store import MEMORY_ADDRESS
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage, work_dir

FINGERPRINTED_MODULES = (
    image_store,
    inpainters,
    masks,
    text_detection,
    text_removal,
)  # what the steps do


@config_class
class InpaintConfig:
    """The section `inpaint`."""

    corpora: list[str]
    num_shards: int = Field(ge=1, le=image_store.MAX_SHARDS)
    batch_size: int = Field(ge=1)
    ocr: Literal["when_missing", "always", "never"]
    detection: TextDetectionConfig
    mask: TextMaskConfig
    inpainting: InpainterConfig
    recognition: TextRecognitionConfig


class InpaintJob(NamedTuple):
    """A picture on its way through a step."""

    name: str  # sha256 of the content
    content: bytes
    boxes: TextBoxes | None  # of steps that come after finding


class StepResult(NamedTuple):
    name: str
    row: bytes | None  # for the store
    failure: str | None


# ------------------------------------------------------------------------------- steps
def find(params: InpaintConfig, item: InpaintJob) -> bytes:
    return text_removal.find(item.content, params.detection).pack()


def paint(params: InpaintConfig, item: InpaintJob) -> bytes:
    return text_removal.paint(item.content, item.boxes.quads, params.mask, params.inpainting).pack()


def read(params: InpaintConfig, item: InpaintJob) -> bytes:
    return text_removal.read(
        item.content, item.boxes.quads, params.detection, params.recognition
    ).encode()


def run_step(step: Callable[[InpaintJob], bytes], batch: list[InpaintJob]) -> list[StepResult]:
    """The step on each picture; one that fails does not stop the others."""
    done = []
    for item in batch:
        try:
            done.append(StepResult(item.name, step(item), None))
        except InputError:
            raise
        except Exception as error:  # OCR and inpainting raise what they like on odd pictures
            # Equal pictures give equal reasons.
            said = MEMORY_ADDRESS.sub("", " ".join(str(error).split()))[:120]
            done.append(StepResult(item.name, None, f"{type(error).__name__}: {said}".rstrip(": ")))
    return done


# ------------------------------------------------------------------------------- through the store
def fingerprints(params: InpaintConfig) -> dict[str, str]:
    """Of each step, what its rows depend on beside the picture: settings, versions and our code.

    Raises WrongInput where what paints is not there.
    """
    finding = text_detection.fingerprint(params.detection)
    parts = {"find": [finding], "read": [finding, text_detection.fingerprint(params.recognition)]}
    if params.inpainting.backend != "none":
        parts["paint"] = [finding, repr(params.mask), inpainters.fingerprint(params.inpainting)]
    code = b"".join(Path(module.__file__).read_bytes() for module in FINGERPRINTED_MODULES)
    return {
        step: sha256(code + "\n".join(settings).encode()).hexdigest()
        for step, settings in parts.items()
    }


class CachedStepRunner:
    """Steps on the pictures of a folder, through the store; `failures`: the reason of each."""

    def __init__(self, params: InpaintConfig, workers: parallel.EngineConfig, folder: Path):
        self.params, self.workers, self.folder = params, workers, folder
        self.fingerprints = fingerprints(params)
        self.failures: list[str] = []

    def run_cached(
        self,
        step: Callable[[InpaintConfig, InpaintJob], bytes],
        names: list[str],
        boxes: dict[str, TextBoxes] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Pairs of name and row of the step, in the order of names, without those it failed on."""
        what = step.__name__
        store = Store(work_dir() / "store", f"{what}-{self.fingerprints[what][:32]}")
        failed: set[str] = set()
        if missing := set(store.missing_keys(names)):
            run = partial(run_step, partial(step, self.params))
            failed = self._compute(run, store, missing, boxes, what)
            if absent := sorted(set(store.missing_keys(missing)) - failed):
                raise InputError(f"{self.folder} lacks the picture {absent[0]}: run `dvc repro`")
            if 1 < len(names) == len(failed):  # it is no picture's fault
                raise InputError(
                    f"inpaint: all {len(names)} pictures failed, the last one at "
                    f"{self.failures[-1]}: see whether memory and model suffice, or give another "
                    "inpaint.paint.backend"
                )
        left = [name for name in names if name not in failed]
        return zip(left, store.read(left), strict=True)

    def _compute(
        self,
        run: Callable[[list[InpaintJob]], list[StepResult]],
        store: Store,
        names: set[str],
        boxes: dict[str, TextBoxes] | None,
        what: str,
    ) -> set[str]:
        """Store what the step gives; the names that it failed on."""
        items = (
            InpaintJob(row["sha256"], row["bytes"], boxes[row["sha256"]] if boxes else None)
            for row in image_store.read_images(self.folder)
            if row["sha256"] in names
        )
        failed: dict[str, str] = {}
        batches = batched(progress_bar(items, what, len(names)), self.params.batch_size)
        for part in parallel.map_batches(run, batches, self.workers):
            store.write((done.name, done.row) for done in part if done.row is not None)
            for done in part:
                if done.failure:
                    failed[done.name] = f"{what}: {done.failure}"
        self.failures += failed.values()
        return set(failed)


# ------------------------------------------------------------------------------- the corpus
def select_images(records: list[dict], recognise: str) -> tuple[list[str], set[str]]:
    """The sha256 of each picture once, sorted, and of those whose text is to be read."""
    shown = [record for record in records if record["image"]]
    asked = {
        "always": lambda record: True,
        "never": lambda record: False,
        "when_missing": lambda record: not record["text"],
    }[recognise]
    names = sorted({record["image"] for record in shown})
    return names, {record["image"] for record in shown if asked(record)}


def compute_bounding_box(quad, score: float) -> dict:
    """The bounds of a quadrilateral, along the axes."""
    (left, top), (right, bottom) = quad.min(0).tolist(), quad.max(0).tolist()
    return {"left": left, "top": top, "right": right, "bottom": bottom, "score": float(score)}


def build_unmodified_row(name: str, found: TextBoxes | None) -> dict:
    """The INPAINTED row of a picture that is passed through and not read."""
    quads, scores = found or ((), ())
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


def detect_boxes(work: CachedStepRunner, names: list[str], asked: set[str]) -> dict[str, TextBoxes]:
    """Boxes of the pictures that are to be painted or read."""
    wanted = [name for name in names if name in asked or work.params.inpainting.backend != "none"]
    rows = work.run_cached(find, wanted)
    return {name: text_removal.unpack_boxes(packed) for name, packed in rows}


def build_inpainted_rows(
    work: CachedStepRunner, names: list[str], asked: set[str], add: Callable[[dict], None]
) -> list[dict]:
    """INPAINTED rows, in the order of names; `add` takes each picture's row of IMAGES."""
    boxes = detect_boxes(work, names, asked)
    with_text = [name for name in names if name in boxes and len(boxes[name].quads)]
    rows = {name: build_unmodified_row(name, boxes.get(name)) for name in names}
    if work.params.inpainting.backend != "none":
        for name, packed in work.run_cached(paint, with_text, boxes):
            result = text_removal.unpack_inpaint_result(packed)
            image = image_store.build_image_row(result.content)
            add(image)
            rows[name] |= {"inpainted": image["sha256"], "mask": result.mask}
            rows[name]["masked"] = result.masked_share
    to_read = [name for name in names if name in asked and name in boxes]
    for name, packed in work.run_cached(read, to_read, boxes):
        rows[name]["text"] = packed.decode()
    same = {name for name, found in rows.items() if found["inpainted"] == name}
    for image in image_store.read_images(work.folder):
        if image["sha256"] in same:
            add(image)
    return list(rows.values())


def summarize_inpainting(rows: list[dict], failures: list[str]) -> dict:
    """Counts; `masked` is the mean share of pixels, of the pictures that were painted."""
    painted = [found["masked"] for found in rows if found["mask"]]
    return {
        "pictures": len(rows),
        "with_text": sum(bool(found["boxes"]) for found in rows),
        "passed_through": len(rows) - len(painted),
        "recognised": sum(bool(found["text"]) for found in rows),
        "failed": dict(sorted(Counter(failures).items())),
        "masked": sum(painted) / len(painted) if painted else None,
    }


def main(
    params: InpaintConfig, workers: parallel.EngineConfig, ingest: Path, clean: Path, target: Path
) -> None:
    records = schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS["memes"])
    names, asked = select_images(records, params.ocr)
    work = CachedStepRunner(params, workers, ingest / "images")
    with atomic_output_dir(target) as folder:
        with image_store.image_writer(folder / "images", params.num_shards) as add:
            rows = build_inpainted_rows(work, names, asked, add)
        schemas.write_parquet(folder / "pictures.parquet", rows, schemas.INPAINTED_IMAGES)
        counts = json.dumps(summarize_inpainting(rows, work.failures), indent=2)
        (folder / "summary.json").write_text(counts + "\n")


def cli(ingest: Path, clean: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    workers = load_config(parallel.EngineConfig, "parallel")
    main(load_config(InpaintConfig, "inpaint"), workers, ingest, clean, output)


if __name__ == "__main__":
    run_stage(cli)
