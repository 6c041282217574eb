"""Provide an image for each chunk that has none: V = T2I(T) (FlexMUSE, arXiv:2508.16230).

python -m stages.illustrate --ingest INGEST --chunks CHUNKS --encoder ENCODER \\
    --features FEATURES --output OUTPUT

reads   INGEST/images, CHUNKS/chunks.parquet, ENCODER (stages/align.py), FEATURES (stages/embed.py)
writes  OUTPUT/chunks.parquet           CHUNKS, with `image` filled in where possible
        OUTPUT/illustrations.parquet    ILLUSTRATIONS: the text, backend and source of each image
        OUTPUT/images, OUTPUT/features  of these images; absent if there are none
        OUTPUT/summary.json             counts and the mean similarity

Chunks are illustrated by their title. The text of a chunk is the target of the models, and an image
of it would leak the target. A chunk without title therefore stays without image.

`similarity` is the cosine of title and image: how well the image matches its title. It is null if
the encoder does not support the language.
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

TITLE_BATCH_SIZE = 64  # titles whose images are in memory at the same time


def illustrate_chunks(
    chunks: list[dict], illustrator: Illustrator, seed: int, add: Callable[[bytes], str]
) -> tuple[list[dict], Counter]:
    """ILLUSTRATIONS rows without similarity, and counts of the chunks left without image by reason.

    add: a function that stores an image file and returns its sha256.
    """
    left_without = Counter({"no title": sum(not chunk["title"] for chunk in chunks)})
    titled = [chunk for chunk in chunks if chunk["title"]]
    if illustrator.unavailable_reason:
        return [], left_without + Counter({illustrator.unavailable_reason: len(titled)})
    image_of_title: dict[str, dict] = {}
    titles = list(dict.fromkeys(chunk["title"] for chunk in titled))
    for part in batched(progress_bar(titles, "illustrate"), TITLE_BATCH_SIZE):
        for title, images in zip(part, illustrator.illustrate(part, 1, seed), strict=True):
            for image in images:
                image_of_title[title] = {"image": add(image.content), "source": image.source}
    rows = [
        {name: chunk[name] for name in ("record", "position", "split")}
        | {"text": chunk["title"], "backend": illustrator.name, "seed": seed}
        | image_of_title[chunk["title"]]
        for chunk in titled
        if chunk["title"] in image_of_title
    ]
    return rows, left_without + Counter({"no picture found": len(titled) - len(rows)})


def write_image_features(folder: Path, names: list[str], gallery: ImageGallery) -> None:
    """Write folder/features of the images in folder/images, with the cache of the stage embed."""
    from stages.shared.encoders import extract

    batch_size = load_config(extract.EmbedConfig, "embed").image_batch_size
    rows = extract.extract_image_features(gallery.encoder, folder / "images", names, batch_size)
    (folder / "features").mkdir()
    feature_store.write_features(folder / "features", (names, rows), None)


def compute_similarities(
    rows: list[dict], folder: Path, gallery: ImageGallery
) -> list[float | None]:
    """The cosine of title and image for each row; None if the language is not supported."""
    if not gallery.supports_language:
        return [None] * len(rows)
    index, pooled = feature_store.read_pooled_images(folder / "features")
    vectors = gallery.embed_texts([row["text"] for row in rows])
    return [
        float(pooled[index[row["image"]]].astype("f4") @ vector.astype("f4"))
        for row, vector in zip(rows, vectors, strict=True)
    ]


def summarize_illustrations(backend: str, rows: list[dict], left_without: Counter) -> dict:
    """summary.json: illustrated chunks per split, chunks left without image, mean similarity."""
    splits = Counter(row["split"] for row in rows)
    similarities = [row["similarity"] for row in rows if row["similarity"] is not None]
    return {
        "backend": backend,
        "illustrated": {split: splits[split] for split in SPLITS},
        "left_without": {reason: count for reason, count in sorted(left_without.items()) if count},
        "similarity": sum(similarities) / len(similarities) if similarities else None,
    }


def build_illustrations(
    config: IllustrateConfig, chunks: list[dict], gallery: ImageGallery, folder: Path
) -> tuple[list[dict], dict]:
    """Write images and features to `folder`; returns ILLUSTRATIONS rows and the summary.

    Raises InputError if the backend is unusable.
    """
    illustrator = illustrators.load_illustrator(config.backend, config, gallery)
    with image_store.image_writer(folder / "images", config.num_shards) as write:

        def add(content: bytes) -> str:
            row = image_store.build_image_row(content)
            write(row)
            return row["sha256"]

        rows, left_without = illustrate_chunks(chunks, illustrator, config.seed, add)
    if rows:
        write_image_features(folder, sorted({row["image"] for row in rows}), gallery)
        similarities = compute_similarities(rows, folder, gallery)
        rows = [row | {"similarity": value} for row, value in zip(rows, similarities, strict=True)]
    else:
        shutil.rmtree(folder / "images")
    return rows, summarize_illustrations(illustrator.name, rows, left_without)


def write_outputs(folder: Path, chunks: list[dict], rows: list[dict], summary: dict) -> None:
    """Write the two tables and summary.json."""
    new_images = {(row["record"], row["position"]): row["image"] for row in rows}
    illustrated = [
        chunk | {"image": chunk["image"] or new_images.get((chunk["record"], chunk["position"]))}
        for chunk in chunks
    ]
    schemas.write_parquet(folder / "chunks.parquet", illustrated, schemas.CHUNKS)
    schemas.write_parquet(folder / "illustrations.parquet", rows, schemas.ILLUSTRATIONS)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def main(config: IllustrateConfig, folders: list[Path], output: Path) -> None:
    """Run the stage; `folders` are those of ingest, chunk, align and embed, in this order.

    Raises InputError if the backend is unusable, or no chunk has an image in the end.
    """
    ingest, chunk, align, embed = folders
    chunks = schemas.read_parquet(chunk / "chunks.parquet", schemas.CHUNKS)
    missing = [row for row in chunks if not row["image"]]
    if not missing:  # always so for captions: do not load the encoder, do not track a run
        backend = illustrators.get_backend_name(config.backend)
        with atomic_output_dir(output) as folder:
            write_outputs(folder, chunks, [], summarize_illustrations(backend, [], Counter()))
        return
    text_batch_size = load_config(int, "embed", "text_batch_size")
    gallery = ImageGallery(ingest, chunk, align, embed, text_batch_size)
    with tracking.start_run(stage="illustrate", name=output.name, params=asdict(config)) as tracked:
        with atomic_output_dir(output) as folder:
            rows, summary = build_illustrations(config, missing, gallery, folder)
            if not rows and len(missing) == len(chunks):
                raise InputError(
                    f"{chunk}/chunks.parquet has no image, and {summary['backend']} provided none "
                    f"({', '.join(summary['left_without'])}): set illustrate.backend to "
                    "diffusers:NAME or openai:MODEL, and give titles"
                )
            write_outputs(folder, chunks, rows, summary)
        for step, row in enumerate(rows):
            if row["similarity"] is not None:
                tracked.log_metrics({"similarity": row["similarity"]}, step)
        tracked.log_metrics({"illustrated": len(rows), "left_without": len(missing) - len(rows)}, 0)
        tracked.log_artifact_hash(output / "illustrations.parquet", "illustrations.parquet")


def cli(ingest: Path, chunks: Path, encoder: Path, features: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    folders = [ingest, chunks, encoder, features]
    main(load_config(IllustrateConfig, "illustrate"), folders, output)


if __name__ == "__main__":
    run_stage(cli)
