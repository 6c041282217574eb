"""Cache the features of every picture and text of a corpus.

python -m stages.embed INGEST CHUNK ALIGN TARGET

reads   INGEST/images, CHUNK/chunks.parquet, ALIGN (an encoder)
writes  TARGET as stages/shared/features.py says

The texts are the titles of articles and, of what has no title, all references. Where the encoder
does not read the language there are no text features: MiniLM turns 77 % of the characters of
Chinese recipes into [UNK], and a model learns better from the characters themselves.
"""

import sys
from pathlib import Path

from stages.shared import embedding, encoders, features
from stages.shared.params import load
from stages.shared.stage import output, stage
from stages.shared.tables import CHUNKS, read


def pictures_of(chunks: list[dict]) -> list[str]:
    """The sha256 of each picture once, sorted."""
    return sorted({chunk["image"] for chunk in chunks if chunk["image"]})


def texts_of(chunks: list[dict]) -> list[str]:
    """Titles, or the references where there is none, each once, in order of first appearance."""
    texts: dict[str, None] = {}
    for chunk in chunks:
        for text in [chunk["title"]] if chunk["title"] else chunk["references"]:
            texts[text] = None
    return list(texts)


def supported(chunks: list[dict], languages: list[str]) -> float:
    """The share of train records in one of these languages; of all records if none is for train."""
    records = {chunk["record"]: chunk for chunk in chunks}.values()
    records = [record for record in records if record["split"] == "train"] or list(records)
    return sum(record["language"] in languages for record in records) / len(records)


def main(params: embedding.Params, ingest: Path, chunk: Path, align: Path, target: Path) -> None:
    chunks = read(chunk / "chunks.parquet", CHUNKS)
    names = pictures_of(chunks)
    encoder = encoders.load(align)
    pictures = embedding.picture_rows(encoder, ingest / "images", names, params.image_batch)
    texts = None
    if supported(chunks, encoder.languages) >= params.min_supported:
        words = texts_of(chunks)
        rows = embedding.text_rows(encoder, words, params.text_batch)
        texts = words, encoder.pieces(words), rows
    with output(target) as folder:
        features.write(folder, (names, pictures), texts)


if __name__ == "__main__":
    with stage():
        main(load(embedding.Params, "embed"), *map(Path, sys.argv[1:]))
