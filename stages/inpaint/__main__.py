"""Take overlay text out of the pictures of memes (MM-ORIENT, arXiv:2508.16300).

python -m stages.inpaint INGEST CLEAN TARGET

reads   INGEST/images, CLEAN/records.parquet
writes  TARGET/pictures.parquet   INPAINTED: boxes of text, mask, what it says where that is asked
        TARGET/images             the pictures without text; one without any is the same bytes
        TARGET/summary.json       counts, reasons of failures, the mean share that is masked

Each step goes through the store: boxes, painting and reading of a picture are done once for the
same settings and code. A picture on which a step fails is passed through, and counted with the
reason; a step that fails on all of several stops the stage.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from stages.inpaint import inpainters, masks, text_detection, text_removal
from stages.inpaint.inpainters import Painting
from stages.inpaint.masks import Masking
from stages.inpaint.text_detection import Finding, Reading
from stages.inpaint.text_removal import Boxes
from stages.shared.core import schemas
from stages.shared.core.config import at_least, from_to, load
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import Store, batched
from stages.shared.data.image_store import ADDRESS
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput, home, output, stage

CODE = (image_store, inpainters, masks, text_detection, text_removal)  # what the steps do


@dataclass(frozen=True)
class Params:
    """The section `inpaint`."""

    corpora: list[str]
    shards: int
    batch: int
    recognise: Literal["when_missing", "always", "never"]
    find: Finding
    mask: Masking
    paint: Painting
    read: Reading

    def __post_init__(self) -> None:
        at_least(self, batch=1)
        from_to(self, 1, image_store.MOST_SHARDS, "shards")


class Item(NamedTuple):
    """A picture on its way through a step."""

    name: str  # sha256 of the content
    content: bytes
    boxes: Boxes | None  # of steps that come after finding


class Done(NamedTuple):
    name: str
    row: bytes | None  # for the store
    failure: str | None


# ------------------------------------------------------------------------------- steps
def find(params: Params, item: Item) -> bytes:
    return text_removal.find(item.content, params.find).pack()


def paint(params: Params, item: Item) -> bytes:
    return text_removal.paint(item.content, item.boxes.quads, params.mask, params.paint).pack()


def read(params: Params, item: Item) -> bytes:
    return text_removal.read(item.content, item.boxes.quads, params.find, params.read).encode()


def each(step: Callable[[Item], bytes], batch: list[Item]) -> list[Done]:
    """The step on each picture; one that fails does not stop the others."""
    done = []
    for item in batch:
        try:
            done.append(Done(item.name, step(item), None))
        except WrongInput:
            raise
        except Exception as error:  # OCR and inpainting raise what they like on odd pictures
            # Equal pictures give equal reasons.
            said = ADDRESS.sub("", " ".join(str(error).split()))[:120]
            done.append(Done(item.name, None, f"{type(error).__name__}: {said}".rstrip(": ")))
    return done


# ------------------------------------------------------------------------------- through the store
def fingerprints(params: Params) -> dict[str, str]:
    """Of each step, what its rows depend on beside the picture: settings, versions and our code.

    Raises WrongInput where what paints is not there.
    """
    finding = text_detection.fingerprint(params.find)
    parts = {"find": [finding], "read": [finding, text_detection.fingerprint(params.read)]}
    if params.paint.backend != "none":
        parts["paint"] = [finding, repr(params.mask), inpainters.fingerprint(params.paint)]
    code = b"".join(Path(module.__file__).read_bytes() for module in CODE)
    return {
        step: sha256(code + "\n".join(settings).encode()).hexdigest()
        for step, settings in parts.items()
    }


class Work:
    """Steps on the pictures of a folder, through the store; `failures`: the reason of each."""

    def __init__(self, params: Params, workers: parallel.Params, folder: Path):
        self.params, self.workers, self.folder = params, workers, folder
        self.fingerprints = fingerprints(params)
        self.failures: list[str] = []

    def through(
        self,
        step: Callable[[Params, Item], bytes],
        names: list[str],
        boxes: dict[str, Boxes] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Pairs of name and row of the step, in the order of names, without those it failed on."""
        what = step.__name__
        store = Store(home() / "store", f"{what}-{self.fingerprints[what][:32]}")
        failed: set[str] = set()
        if missing := set(store.missing(names)):
            run = partial(each, partial(step, self.params))
            failed = self._compute(run, store, missing, boxes, what)
            if absent := sorted(set(store.missing(missing)) - failed):
                raise WrongInput(f"{self.folder} lacks the picture {absent[0]}: run `dvc repro`")
            if 1 < len(names) == len(failed):  # it is no picture's fault
                raise WrongInput(
                    f"inpaint: all {len(names)} pictures failed, the last one at "
                    f"{self.failures[-1]}: see whether memory and model suffice, or give another "
                    "inpaint.paint.backend"
                )
        left = [name for name in names if name not in failed]
        return zip(left, store.rows(left), strict=True)

    def _compute(
        self,
        run: Callable[[list[Item]], list[Done]],
        store: Store,
        names: set[str],
        boxes: dict[str, Boxes] | None,
        what: str,
    ) -> set[str]:
        """Store what the step gives; the names that it failed on."""
        items = (
            Item(row["sha256"], row["bytes"], boxes[row["sha256"]] if boxes else None)
            for row in image_store.read(self.folder)
            if row["sha256"] in names
        )
        failed: dict[str, str] = {}
        batches = batched(bar(items, what, len(names)), self.params.batch)
        for part in parallel.run(run, batches, self.workers):
            store.write((done.name, done.row) for done in part if done.row is not None)
            for done in part:
                if done.failure:
                    failed[done.name] = f"{what}: {done.failure}"
        self.failures += failed.values()
        return set(failed)


# ------------------------------------------------------------------------------- the corpus
def pictures_of(records: list[dict], recognise: str) -> tuple[list[str], set[str]]:
    """The sha256 of each picture once, sorted, and of those whose text is to be read."""
    shown = [record for record in records if record["image"]]
    asked = {
        "always": lambda record: True,
        "never": lambda record: False,
        "when_missing": lambda record: not record["text"],
    }[recognise]
    names = sorted({record["image"] for record in shown})
    return names, {record["image"] for record in shown if asked(record)}


def box(quad, score: float) -> dict:
    """The bounds of a quadrilateral, along the axes."""
    (left, top), (right, bottom) = quad.min(0).tolist(), quad.max(0).tolist()
    return {"left": left, "top": top, "right": right, "bottom": bottom, "score": float(score)}


def row(name: str, found: Boxes | None) -> dict:
    """The INPAINTED row of a picture that is passed through and not read."""
    quads, scores = found or ((), ())
    return {
        "image": name,
        "inpainted": name,
        "boxes": [box(quad, score) for quad, score in zip(quads, scores, strict=True)],
        "quads": [quad.reshape(-1).tolist() for quad in quads],
        "masked": 0.0,
        "text": None,
        "mask": None,
    }


def found_boxes(work: Work, names: list[str], asked: set[str]) -> dict[str, Boxes]:
    """Boxes of the pictures that are to be painted or read."""
    wanted = [name for name in names if name in asked or work.params.paint.backend != "none"]
    rows = work.through(find, wanted)
    return {name: text_removal.unpack_boxes(packed) for name, packed in rows}


def rows_of(
    work: Work, names: list[str], asked: set[str], add: Callable[[dict], None]
) -> list[dict]:
    """INPAINTED rows, in the order of names; `add` takes each picture's row of IMAGES."""
    boxes = found_boxes(work, names, asked)
    with_text = [name for name in names if name in boxes and len(boxes[name].quads)]
    rows = {name: row(name, boxes.get(name)) for name in names}
    if work.params.paint.backend != "none":
        for name, packed in work.through(paint, with_text, boxes):
            result = text_removal.unpack_painted(packed)
            image = image_store.trusted(result.content)
            add(image)
            rows[name] |= {"inpainted": image["sha256"], "mask": result.mask}
            rows[name]["masked"] = result.masked
    to_read = [name for name in names if name in asked and name in boxes]
    for name, packed in work.through(read, to_read, boxes):
        rows[name]["text"] = packed.decode()
    same = {name for name, found in rows.items() if found["inpainted"] == name}
    for image in image_store.read(work.folder):
        if image["sha256"] in same:
            add(image)
    return list(rows.values())


def summary(rows: list[dict], failures: list[str]) -> dict:
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


def main(params: Params, workers: parallel.Params, ingest: Path, clean: Path, target: Path) -> None:
    records = schemas.read(clean / "records.parquet", schemas.CLEAN["memes"])
    names, asked = pictures_of(records, params.recognise)
    work = Work(params, workers, ingest / "images")
    with output(target) as folder:
        with image_store.writer(folder / "images", params.shards) as add:
            rows = rows_of(work, names, asked, add)
        schemas.write(folder / "pictures.parquet", rows, schemas.INPAINTED)
        counts = json.dumps(summary(rows, work.failures), indent=2)
        (folder / "summary.json").write_text(counts + "\n")


if __name__ == "__main__":
    with stage():
        *sources, out = map(Path, sys.argv[1:])
        main(load(Params, "inpaint"), load(parallel.Params, "engine"), *sources, out)
