"""A project on disk with both MuSE classifiers, trained on tests/support/muse_corpus.py."""

from pathlib import Path

from pipelines.inference.input_rules import load_input_rules
from pipelines.inference.text_labeler import TextLabeler
from stages import embed
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core.config import load_config
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.train_classifier import __main__ as train
from stages.train_classifier import muse as train_muse
from tests.support import muse_corpus
from tests.support.color_caption_corpus import make_image
from tests.support.tiny_clip import save_clip

# The encoder has four patches.
GRID_CHANGES = {f"classifiers.{name}.image.grid_size": 2 for name in muse_corpus.CORPUS_KINDS}
RED_IMAGE = make_image("red", 99)["bytes"]


def create_trained_project(folder: Path, patch) -> Path:
    """Create the project in `folder` and make it the working directory.

    patch: the MonkeyPatch that changes it back
    """
    muse_corpus.create_project(folder, GRID_CHANGES)
    (folder / "dvc.yaml").touch()
    patch.chdir(folder)
    patch.setenv("POLYMUSE_HOME", str(folder / "home"))
    save_clip(folder / "source")
    align = folder / "data/06_align"
    align.mkdir(parents=True)
    huggingface_encoder.fetch(str(folder / "source"), ["en"], align)
    for name, kind in muse_corpus.CORPUS_KINDS.items():
        ingest, clean, _ = muse_corpus.write_corpus(folder / "given", kind)
        features = folder / "data/07_embed" / kind
        config = load_config(extract.EmbedConfig, "embed")
        embed.main(config, kind, "synthetic", ingest, clean, align, features)
        corpus = CorpusFolders(ingest, clean, features)
        output = folder / "data/09_train_classifier" / name
        train.main(name, train_muse, corpus, align, kind, output)
    return folder


def get_model_dir(folder: Path, name: str) -> Path:
    return folder / "data/09_train_classifier" / name / "model"


def load_labeler(folder: Path) -> TextLabeler:
    return TextLabeler(folder, str(folder), load_input_rules("cli_label").build_cleaner)
