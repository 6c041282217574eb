"""A project on disk with both readers trained on tests/support/muse_corpus.py, and their pictures' encoder."""

from pathlib import Path

from pipelines.inference.input_rules import rules
from pipelines.inference.text_labeler import Labeller
from stages import embed
from stages.shared.core.config import load
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.train_classifier import __main__ as train
from stages.train_classifier import muse as train_muse
from tests.support import muse_corpus
from tests.support.color_caption_corpus import picture
from tests.support.tiny_clip import clip

GRID = {
    f"readers.{name}.picture.grid": 2 for name in muse_corpus.RUNS
}  # the encoder has four patches
RED = picture("red", 99)["bytes"]


def project(place: Path, patch) -> Path:
    """Fill the folder `place`; patch: a MonkeyPatch, under which it is current."""
    muse_corpus.project(place, GRID)
    (place / "dvc.yaml").touch()
    patch.chdir(place)
    patch.setenv("POLYMUSE_HOME", str(place / "home"))
    clip(place / "source")
    align = place / "data/06_align"
    align.mkdir(parents=True)
    huggingface_encoder.fetch(str(place / "source"), ["en"], align)
    for name, kind in muse_corpus.RUNS.items():
        ingest, clean, _ = muse_corpus.write(place / "given", kind)
        cached = place / "data/07_embed" / kind
        embed.main(load(extract.Params, "embed"), kind, ingest, clean, align, cached)
        folders, target = [ingest, clean, cached, align], place / "data/09_train_classifier" / name
        train.main(name, train_muse, folders, kind, target)
    return place


def model_of(place: Path, name: str) -> Path:
    return place / "data/09_train_classifier" / name / "model"


def labeller_of(folder: Path) -> Labeller:
    return Labeller(folder, str(folder), rules("read").cleaner)
