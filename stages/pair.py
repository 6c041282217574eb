"""Compute the locked towers' features of the image-text pairs that align them.

python -m stages.pair --corpus CORPUS --ingest INGEST --clean CLEAN --output OUTPUT

reads   INGEST/images, CLEAN/records.parquet
writes  OUTPUT in the format of stages/shared/retrieval/pairs.py

Only the corpora in align.corpora have pairs; there are none unless align.encoder is
efficientnet-lite0. The features are cached, so that the stage embed does not compute them again.
"""

from pathlib import Path

from stages.shared.core.config import load_config
from stages.shared.core.schemas import CLEAN_RECORDS, read_parquet
from stages.shared.encoders import extract
from stages.shared.encoders.locked_towers import LockedTowers, TextEncoderName, load_text_tower
from stages.shared.retrieval.pairs import collect_pairs, write_pairs
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage


def main(
    embed: extract.EmbedConfig,
    text_encoder: TextEncoderName,
    max_tokens: int,
    kind: str,
    ingest: Path,
    clean: Path,
    output: Path,
) -> None:
    """Run the stage. Raises InputError if no image has a text in a supported language."""
    towers = LockedTowers(load_text_tower(text_encoder, max_tokens))
    records = read_parquet(clean / "records.parquet", CLEAN_RECORDS[kind])
    pairs = collect_pairs(records, kind, towers.languages)
    if not pairs:
        raise InputError(
            f"align.corpora: {clean.name} has no image with a text in a language of "
            f"align.locked.text_encoder: {text_encoder}: remove it, or give another text encoder"
        )
    names = [pair.image for pair in pairs]
    texts = [text for pair in pairs for text in pair.texts]
    images = extract.extract_image_features(
        towers, ingest / "images", names, embed.image_batch_size
    )
    vectors = extract.extract_text_features(towers, texts, embed.text_batch_size)
    with atomic_output_dir(output) as folder:
        write_pairs(folder, pairs, images, vectors)


def cli(corpus: str, ingest: Path, clean: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    embed = load_config(extract.EmbedConfig, "embed")
    text_encoder = load_config(TextEncoderName, "align", "locked", "text_encoder")
    max_tokens = load_config(int, "align", "locked", "max_tokens")
    kind = load_config(str, "corpora", corpus, "kind")
    main(embed, text_encoder, max_tokens, kind, ingest, clean, output)


if __name__ == "__main__":
    run_stage(cli)
