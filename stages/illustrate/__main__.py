"""Give a picture to each chunk that has none: V = T2I(T) (FlexMUSE, arXiv:2508.16230).

python -m stages.illustrate INGEST CHUNK ALIGN FEATURES TARGET

reads   INGEST/images, CHUNK/chunks.parquet, ALIGN (an encoder), FEATURES (stages/embed.py)
writes  TARGET/chunks.parquet          CHUNKS, `image` filled in where a picture was found or made
        TARGET/illustrations.parquet   ILLUSTRATIONS: what was illustrated, with what, from where
        TARGET/images, TARGET/features of these pictures; absent when there is none
        TARGET/summary.json            counts, and the mean similarity

What is illustrated is the title. The text of a chunk is what a model has to write: a picture of it
would tell the answer. So a chunk without title stays without picture.

`similarity` is the cosine of title and picture: how far the picture drifts from what it stands for.
It is null where the encoder does not read the language.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from stages.illustrate import base as illustrators
from stages.illustrate.base import Gallery, Illustrator, Params
from stages.shared.core import schemas
from stages.shared.core.config import load
from stages.shared.data import image_store
from stages.shared.data.cache import batched
from stages.shared.data.records import SPLITS
from stages.shared.features import store as feature_store
from stages.shared.runtime import tracking
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput, output, stage

TITLES_AT_ONCE = 64  # whose pictures are in memory


def illustrate(
    chunks: list[dict], illustrator: Illustrator, seed: int, add: Callable[[bytes], str]
) -> tuple[list[dict], Counter]:
    """ILLUSTRATIONS rows without similarity, and how many chunks stay without picture, by reason.

    `add` takes a picture file and returns its sha256.
    """
    left = Counter({"no title": sum(not chunk["title"] for chunk in chunks)})
    titled = [chunk for chunk in chunks if chunk["title"]]
    if illustrator.obstacle:
        return [], left + Counter({illustrator.obstacle: len(titled)})
    pictures: dict[str, dict] = {}
    titles = list(dict.fromkeys(chunk["title"] for chunk in titled))
    for part in batched(bar(titles, "illustrate"), TITLES_AT_ONCE):
        for title, found in zip(part, illustrator.illustrate(part, 1, seed), strict=True):
            for picture in found:
                pictures[title] = {"image": add(picture.content), "source": picture.source}
    rows = [
        {name: chunk[name] for name in ("record", "position", "split")}
        | {"text": chunk["title"], "backend": illustrator.name, "seed": seed}
        | pictures[chunk["title"]]
        for chunk in titled
        if chunk["title"] in pictures
    ]
    return rows, left + Counter({"no picture found": len(titled) - len(rows)})


def write_features(folder: Path, names: list[str], gallery: Gallery) -> None:
    """The features of the pictures in folder/images, through the store that embed fills too."""
    from stages.shared.encoders import extract

    batch = load(extract.Params, "embed").image_batch
    rows = extract.picture_rows(gallery.encoder, folder / "images", names, batch)
    (folder / "features").mkdir()
    feature_store.write(folder / "features", (names, rows), None)


def similarities(rows: list[dict], folder: Path, gallery: Gallery) -> list[float | None]:
    """The cosine of the title and the picture of each row."""
    if not gallery.readable:
        return [None] * len(rows)
    index, pooled = feature_store.read_pooled(folder / "features")
    vectors = gallery.vectors([row["text"] for row in rows])
    return [
        float(pooled[index[row["image"]]].astype("f4") @ vector.astype("f4"))
        for row, vector in zip(rows, vectors, strict=True)
    ]


def summary(backend: str, rows: list[dict], left: Counter) -> dict:
    splits = Counter(row["split"] for row in rows)
    known = [row["similarity"] for row in rows if row["similarity"] is not None]
    return {
        "backend": backend,
        "illustrated": {split: splits[split] for split in SPLITS},
        "left_without": {reason: count for reason, count in sorted(left.items()) if count},
        "similarity": sum(known) / len(known) if known else None,
    }


def pictures(params: Params, chunks: list[dict], gallery: Gallery, folder: Path) -> tuple:
    """ILLUSTRATIONS rows and the summary; the pictures and their features are in `folder`."""
    illustrator = illustrators.load(params.backend, params, gallery)
    with image_store.writer(folder / "images", params.shards) as write:

        def add(content: bytes) -> str:
            row = image_store.trusted(content)
            write(row)
            return row["sha256"]

        rows, left = illustrate(chunks, illustrator, params.seed, add)
    if rows:
        write_features(folder, sorted({row["image"] for row in rows}), gallery)
        found = similarities(rows, folder, gallery)
        rows = [row | {"similarity": value} for row, value in zip(rows, found, strict=True)]
    else:
        shutil.rmtree(folder / "images")
    return rows, summary(illustrator.name, rows, left)


def write(folder: Path, chunks: list[dict], rows: list[dict], figures: dict) -> None:
    """The tables and summary.json."""
    found = {(row["record"], row["position"]): row["image"] for row in rows}
    filled = [
        chunk | {"image": chunk["image"] or found.get((chunk["record"], chunk["position"]))}
        for chunk in chunks
    ]
    schemas.write(folder / "chunks.parquet", filled, schemas.CHUNKS)
    schemas.write(folder / "illustrations.parquet", rows, schemas.ILLUSTRATIONS)
    (folder / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")


def main(params: Params, folders: list[Path], target: Path) -> None:
    ingest, chunk, align, embed = folders
    chunks = schemas.read(chunk / "chunks.parquet", schemas.CHUNKS)
    bare = [row for row in chunks if not row["image"]]
    if not bare:  # captions have pictures always: nothing to load, nothing to track
        with output(target) as folder:
            write(folder, chunks, [], summary(illustrators.name_of(params.backend), [], Counter()))
        return
    gallery = Gallery(ingest, chunk, align, embed, load(int, "embed", "text_batch"))
    with tracking.run(stage="illustrate", name=target.name, params=asdict(params)) as tracked:
        with output(target) as folder:
            rows, figures = pictures(params, bare, gallery, folder)
            if not rows and len(bare) == len(chunks):
                raise WrongInput(
                    f"{chunk}/chunks.parquet has no picture, and {figures['backend']} gave none "
                    f"({', '.join(figures['left_without'])}): set illustrate.backend to "
                    "diffusers:NAME or openai:MODEL, and give titles"
                )
            write(folder, chunks, rows, figures)
        for number, row in enumerate(rows):
            if row["similarity"] is not None:
                tracked.log({"similarity": row["similarity"]}, number)
        tracked.log({"illustrated": len(rows), "left_without": len(bare) - len(rows)}, 0)
        tracked.artifact(target / "illustrations.parquet", "illustrations.parquet")


if __name__ == "__main__":
    with stage():
        *sources, out = map(Path, sys.argv[1:])
        main(load(Params, "illustrate"), sources, out)
