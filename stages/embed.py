"""Cache the features of every picture and text of a corpus.

python -m stages.embed --kind KIND --images IMAGES --records RECORDS --encoder ENCODER --output OUTPUT

reads   PICTURES/images, RECORDS/records.parquet, ALIGN (an encoder)
writes  TARGET as stages/shared/features/store.py says

The texts are the titles of articles, the captions of pictures and the words of memes; tweets and
posts are read by a text encoder that learns with its reader. Where the encoder does not read the
language there are no text features: MiniLM turns 77 % of the characters of Chinese recipes into
[UNK], and a model learns better from the characters themselves.
"""

from pathlib import Path

from stages.shared.core.config import load_config
from stages.shared.core.schemas import EMBED_INPUTS, read_parquet
from stages.shared.encoders import base as encoders
from stages.shared.encoders import extract
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import atomic_output_dir, run_stage


def collect_image_ids(records: list[dict], kind: str) -> list[str]:
    """The sha256 of each picture once, sorted."""
    if kind == "articles":
        found = {block["image"] for record in records for block in record["blocks"]}
    else:
        found = {record["image"] for record in records}
    return sorted(found - {None})


def collect_texts(records: list[dict], kind: str) -> list[str]:
    """Titles of articles, captions, or words of memes, each once, in order of first appearance.

    There are none of tweets and posts.
    """
    of_kind = {
        "articles": lambda record: [record["title"]] if record["title"] else [],
        "captions": lambda record: record["captions"],
        "memes": lambda record: [record["text"]] if record["text"] else [],
    }
    take = of_kind.get(kind, lambda record: [])
    return list(dict.fromkeys(text for record in records for text in take(record)))


def compute_supported_share(records: list[dict], languages: list[str]) -> float:
    """The share of train records in one of these languages; of all records if none is for train."""
    records = [record for record in records if record["split"] == "train"] or records
    return sum(record["language"] in languages for record in records) / len(records)


def main(
    params: extract.EmbedConfig, kind: str, pictures: Path, records: Path, align: Path, target: Path
) -> None:
    rows = read_parquet(records / "records.parquet", EMBED_INPUTS[kind])
    names = collect_image_ids(rows, kind)
    encoder = encoders.load_encoder(align)
    looks = extract.extract_image_features(
        encoder, pictures / "images", names, params.image_batch_size
    )
    words, texts = collect_texts(rows, kind), None
    if words and compute_supported_share(rows, encoder.languages) >= params.min_supported_fraction:
        read_words = extract.extract_text_features(encoder, words, params.text_batch_size)
        texts = words, encoder.subwords(words), read_words
    with atomic_output_dir(target) as folder:
        feature_store.write_features(folder, (names, looks), texts)


def cli(kind: str, images: Path, records: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    main(load_config(extract.EmbedConfig, "embed"), kind, images, records, encoder, output)


if __name__ == "__main__":
    run_stage(cli)
