"""Compute the features of every image and text of a corpus.

python -m stages.embed --kind KIND --format FORMAT --images IMAGES --records RECORDS \\
    --encoder ENCODER --output OUTPUT

reads   IMAGES/images, RECORDS/records.parquet, ENCODER (the output of the stage align)
writes  OUTPUT in the format of stages/shared/features/store.py, and retrieval.json unless the
        format is synthetic: retrieval on held-out image-text pairs, and a warning or null

The texts are the titles of articles, the captions of images and the texts of memes. Tweets and
posts have no text features: their text encoder is trained with the classifier. A corpus in a
language that the encoder does not support has none either: MiniLM maps 77 % of the characters of
Chinese recipes to [UNK], and a model learns better from the characters themselves.
"""

import json
from pathlib import Path

from stages.shared.core.config import load_config
from stages.shared.core.schemas import EMBED_INPUTS, read_parquet
from stages.shared.encoders import base as encoders
from stages.shared.encoders import extract
from stages.shared.features import store as feature_store
from stages.shared.retrieval.evaluation import describe_weakness, evaluate_encoder
from stages.shared.retrieval.pairs import collect_pairs, select_held_out
from stages.shared.runtime.stage import atomic_output_dir, run_stage


def collect_image_ids(records: list[dict], kind: str) -> list[str]:
    """The sha256 of each image once, sorted."""
    if kind == "articles":
        ids = {block["image"] for record in records for block in record["blocks"]}
    else:
        ids = {record["image"] for record in records}
    return sorted(ids - {None})


def collect_texts(records: list[dict], kind: str) -> list[str]:
    """Titles of articles, captions, or texts of memes, each once, in order of first appearance.

    The list is empty for tweets and posts.
    """
    match kind:
        case "articles":
            texts = [record["title"] for record in records if record["title"]]
        case "captions":
            texts = [caption for record in records for caption in record["captions"]]
        case "memes":
            texts = [record["text"] for record in records if record["text"]]
        case _:
            texts = []
    return list(dict.fromkeys(texts))


def compute_supported_share(records: list[dict], languages: list[str]) -> float:
    """Share of train records in one of these languages; without train records, of all records."""
    records = [record for record in records if record["split"] == "train"] or records
    return sum(record["language"] in languages for record in records) / len(records)


def measure_retrieval(
    encoder: encoders.Encoder,
    config: extract.EmbedConfig,
    rows: list[dict],
    kind: str,
    folder: Path,
) -> dict | None:
    """Retrieval on held-out pairs in the encoder's languages, or None if there is only one.

    folder: holds the image shards
    """
    pairs = collect_pairs(rows, kind, encoder.languages)
    split, held_out = select_held_out(pairs, config.max_retrieval_pairs)
    if len(held_out) < 2:
        return None
    examples = [(pair.image, pair.texts[0]) for pair in held_out]
    return {"split": split} | evaluate_encoder(encoder, examples, folder, config)


def main(
    config: extract.EmbedConfig,
    kind: str,
    corpus_format: str,
    images: Path,
    records: Path,
    align: Path,
    output: Path,
) -> None:
    """Run the stage. Raises InputError if an input or one of its images is missing."""
    rows = read_parquet(records / "records.parquet", EMBED_INPUTS[kind])
    image_ids = collect_image_ids(rows, kind)
    encoder = encoders.load_encoder(align)
    image_features = extract.extract_image_features(
        encoder, images / "images", image_ids, config.image_batch_size
    )
    texts, text_features = collect_texts(rows, kind), None
    if texts and compute_supported_share(rows, encoder.languages) >= config.min_supported_fraction:
        features = extract.extract_text_features(encoder, texts, config.text_batch_size)
        text_features = texts, encoder.subwords(texts), features
    with atomic_output_dir(output) as folder:
        feature_store.write_features(folder, (image_ids, image_features), text_features)
        if image_ids and corpus_format != "synthetic":
            retrieval = measure_retrieval(encoder, config, rows, kind, images / "images")
            warning = describe_weakness(encoders.read_kind(align), retrieval)
            if warning:
                print(f"warning: {warning}", flush=True)
            report = {"retrieval": retrieval, "warning": warning}
            (folder / "retrieval.json").write_text(json.dumps(report, indent=2) + "\n")


def cli(kind: str, format: str, images: Path, records: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    embed = load_config(extract.EmbedConfig, "embed")
    main(embed, kind, format, images, records, encoder, output)


if __name__ == "__main__":
    run_stage(cli)
