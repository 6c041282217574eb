"""Give a picture to each chunk that has none: V = T2I(T) (FlexMUSE, arXiv:2508.16230).

python -m stages.illustrate --ingest INGEST --chunks CHUNKS --encoder ENCODER --features FEATURES --output OUTPUT

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
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from stages.illustrate import base as illustrators
from stages.illustrate.base import IllustrateConfig, Illustrator, ImageGallery
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.data.cache import batched
from stages.shared.data.records import SPLITS
from stages.shared.features import store as feature_store
from stages.shared.runtime import tracking
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage

TITLE_BATCH_SIZE = 64  # whose pictures are in memory


def illustrate_chunks(
    chunks: list[dict], illustrator: Illustrator, seed: int, add: Callable[[bytes], str]
) -> tuple[list[dict], Counter]:
    """ILLUSTRATIONS rows without similarity, and how many chunks stay without picture, by reason.

    `add` takes a picture file and returns its sha256.
    """
    left = Counter({"no title": sum(not chunk["title"] for chunk in chunks)})
    titled = [chunk for chunk in chunks if chunk["title"]]
    if illustrator.unavailable_reason:
        return [], left + Counter({illustrator.unavailable_reason: len(titled)})
    pictures: dict[str, dict] = {}
    titles = list(dict.fromkeys(chunk["title"] for chunk in titled))
    for part in batched(progress_bar(titles, "illustrate"), TITLE_BATCH_SIZE):
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


def write_image_features(folder: Path, names: list[str], gallery: ImageGallery) -> None:
    """The features of the pictures in folder/images, through the store that embed fills too."""
    from stages.shared.encoders import extract

    batch = load_config(extract.EmbedConfig, "embed").image_batch_size
    rows = extract.extract_image_features(gallery.encoder, folder / "images", names, batch)
    (folder / "features").mkdir()
    feature_store.write_features(folder / "features", (names, rows), None)


def compute_similarities(
    rows: list[dict], folder: Path, gallery: ImageGallery
) -> list[float | None]:
    """The cosine of the title and the picture of each row."""
    if not gallery.supports_language:
        return [None] * len(rows)
    index, pooled = feature_store.read_pooled_images(folder / "features")
    vectors = gallery.embed_texts([row["text"] for row in rows])
    return [
        float(pooled[index[row["image"]]].astype("f4") @ vector.astype("f4"))
        for row, vector in zip(rows, vectors, strict=True)
    ]


def summarize_illustrations(backend: str, rows: list[dict], left: Counter) -> dict:
    splits = Counter(row["split"] for row in rows)
    known = [row["similarity"] for row in rows if row["similarity"] is not None]
    return {
        "backend": backend,
        "illustrated": {split: splits[split] for split in SPLITS},
        "left_without": {reason: count for reason, count in sorted(left.items()) if count},
        "similarity": sum(known) / len(known) if known else None,
    }


def build_illustrations(
    params: IllustrateConfig, chunks: list[dict], gallery: ImageGallery, folder: Path
) -> tuple:
    """ILLUSTRATIONS rows and the summary; the pictures and their features are in `folder`."""
    illustrator = illustrators.load_illustrator(params.backend, params, gallery)
    with image_store.image_writer(folder / "images", params.num_shards) as write:

        def add(content: bytes) -> str:
            row = image_store.build_image_row(content)
            write(row)
            return row["sha256"]

        rows, left = illustrate_chunks(chunks, illustrator, params.seed, add)
    if rows:
        write_image_features(folder, sorted({row["image"] for row in rows}), gallery)
        found = compute_similarities(rows, folder, gallery)
        rows = [row | {"similarity": value} for row, value in zip(rows, found, strict=True)]
    else:
        shutil.rmtree(folder / "images")
    return rows, summarize_illustrations(illustrator.name, rows, left)


def write_outputs(folder: Path, chunks: list[dict], rows: list[dict], figures: dict) -> None:
    """The tables and summary.json."""
    found = {(row["record"], row["position"]): row["image"] for row in rows}
    filled = [
        chunk | {"image": chunk["image"] or found.get((chunk["record"], chunk["position"]))}
        for chunk in chunks
    ]
    schemas.write_parquet(folder / "chunks.parquet", filled, schemas.CHUNKS)
    schemas.write_parquet(folder / "illustrations.parquet", rows, schemas.ILLUSTRATIONS)
    (folder / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")


def main(params: IllustrateConfig, folders: list[Path], target: Path) -> None:
    ingest, chunk, align, embed = folders
    chunks = schemas.read_parquet(chunk / "chunks.parquet", schemas.CHUNKS)
    bare = [row for row in chunks if not row["image"]]
    if not bare:  # captions have pictures always: nothing to load, nothing to track
        with atomic_output_dir(target) as folder:
            write_outputs(
                folder,
                chunks,
                [],
                summarize_illustrations(
                    illustrators.get_backend_name(params.backend), [], Counter()
                ),
            )
        return
    gallery = ImageGallery(ingest, chunk, align, embed, load_config(int, "embed", "text_batch_size"))
    with tracking.start_run(stage="illustrate", name=target.name, params=asdict(params)) as tracked:
        with atomic_output_dir(target) as folder:
            rows, figures = build_illustrations(params, bare, gallery, folder)
            if not rows and len(bare) == len(chunks):
                raise InputError(
                    f"{chunk}/chunks.parquet has no picture, and {figures['backend']} gave none "
                    f"({', '.join(figures['left_without'])}): set illustrate.backend to "
                    "diffusers:NAME or openai:MODEL, and give titles"
                )
            write_outputs(folder, chunks, rows, figures)
        for number, row in enumerate(rows):
            if row["similarity"] is not None:
                tracked.log_metrics({"similarity": row["similarity"]}, number)
        tracked.log_metrics({"illustrated": len(rows), "left_without": len(bare) - len(rows)}, 0)
        tracked.log_artifact_hash(target / "illustrations.parquet", "illustrations.parquet")


def cli(ingest: Path, chunks: Path, encoder: Path, features: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    folders = [ingest, chunks, encoder, features]
    main(load_config(IllustrateConfig, "illustrate"), folders, output)


if __name__ == "__main__":
    run_stage(cli)
