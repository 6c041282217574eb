"""A project on disk with both readers trained on tests/tagged.py, and their pictures' encoder."""

from pathlib import Path

import tagged
from corpora import picture
from tiny_clips import clip

from pipelines.inference.input_rules import rules
from pipelines.inference.text_labeler import Labeller
from stages import embed
from stages.shared.core.config import load
from stages.shared.encoders import extract
from stages.shared.encoders import huggingface as huggingface_encoder
from stages.train_classifier import __main__ as train
from stages.train_classifier import muse as train_muse

GRID = {f"readers.{name}.picture.grid": 2 for name in tagged.RUNS}  # the encoder has four patches
RED = picture("red", 99)["bytes"]


def project(place: Path, patch) -> Path:
    """Fill the folder `place`; patch: a MonkeyPatch, under which it is current."""
    tagged.project(place, GRID)
    (place / "dvc.yaml").touch()
    patch.chdir(place)
    patch.setenv("POLYMUSE_HOME", str(place / "home"))
    clip(place / "source")
    align = place / "data/06_align"
    align.mkdir(parents=True)
    huggingface_encoder.fetch(str(place / "source"), ["en"], align)
    for name, kind in tagged.RUNS.items():
        ingest, clean, _ = tagged.write(place / "given", kind)
        cached = place / "data/07_embed" / kind
        embed.main(load(extract.Params, "embed"), kind, ingest, clean, align, cached)
        folders, target = [ingest, clean, cached, align], place / "data/09_train_classifier" / name
        train.main(name, train_muse, folders, kind, target)
    return place


def model_of(place: Path, name: str) -> Path:
    return place / "data/09_train_classifier" / name / "model"


def labeller_of(folder: Path) -> Labeller:
    return Labeller(folder, str(folder), rules("read").cleaner)
