"""A project on disk with both readers trained on tests/support/muse_corpus.py, and their pictures' encoder."""

from pathlib import Path

from pipelines.inference.input_rules import load_input_rules
from pipelines.inference.text_labeler import TextLabeler
from stages import embed
from stages.shared.core.config import load_config
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.train_classifier import __main__ as train
from stages.train_classifier import muse as train_muse
from tests.support import muse_corpus
from tests.support.color_caption_corpus import make_image
from tests.support.tiny_clip import save_clip

GRID_CHANGES = {
    f"classifiers.{name}.image.grid_size": 2 for name in muse_corpus.CORPUS_KINDS
}  # the encoder has four patches
RED_IMAGE = make_image("red", 99)["bytes"]


def create_trained_project(place: Path, patch) -> Path:
    """Fill the folder `place`; patch: a MonkeyPatch, under which it is current."""
    muse_corpus.create_project(place, GRID_CHANGES)
    (place / "dvc.yaml").touch()
    patch.chdir(place)
    patch.setenv("POLYMUSE_HOME", str(place / "home"))
    save_clip(place / "source")
    align = place / "data/06_align"
    align.mkdir(parents=True)
    huggingface_encoder.fetch(str(place / "source"), ["en"], align)
    for name, kind in muse_corpus.CORPUS_KINDS.items():
        ingest, clean, _ = muse_corpus.write_corpus(place / "given", kind)
        cached = place / "data/07_embed" / kind
        embed.main(load_config(extract.EmbedConfig, "embed"), kind, ingest, clean, align, cached)
        folders, target = [ingest, clean, cached, align], place / "data/09_train_classifier" / name
        train.main(name, train_muse, folders, kind, target)
    return place


def get_model_dir(place: Path, name: str) -> Path:
    return place / "data/09_train_classifier" / name / "model"


def load_labeler(folder: Path) -> TextLabeler:
    return TextLabeler(folder, str(folder), load_input_rules("cli_label").build_cleaner)
