"""A reader: one model on one corpus of tweets or posts, and the folder it loads from by path.

The folder holds model.safetensors, config.json (model, its encoders, network, shapes, labels, what
texts and pictures it was trained on, vocabulary of captions, how many numbers were trained), in
text_encoder/ the tokenizer and the configuration of what reads the text, and, of what reads the
patches of the aligned encoder, that encoder in encoder/. It needs neither params.yaml nor a
network.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.models.muse.dataset import (
    OUTSIDE,
    Coding,
    Labelled,
    Task,
    caption_words,
    labels_of,
)
from stages.models.muse.patch_pooling import PatchCells
from stages.models.muse.show_attend_tell import Vocabulary
from stages.shared.backbones import bert, resnet
from stages.shared.backbones.classifier import (
    PATCHES,
    TEXT_ENCODER,
    check_language,
    network,
    parameters,
    read_config,
)
from stages.shared.backbones.resnet import ResNet
from stages.shared.core.config import at_least, fill
from stages.shared.data import image_store
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.features.store import Features
from stages.shared.modeling.registry import paper
from stages.shared.modeling.state_dict import unique
from stages.shared.runtime.stage import WrongInput
from stages.shared.torch_setup.devices import device
from stages.shared.training.loop import Schedule


@dataclass(frozen=True)
class Text:
    encoder: str
    tuned: int | Literal["all"]
    pieces: int
    rate: float

    def __post_init__(self) -> None:
        at_least(self, pieces=1, rate=0)


@dataclass(frozen=True)
class Picture:
    encoder: Literal["patches", resnet.Name]
    weights: resnet.Weights
    size: int
    grid: int
    rate: float

    def __post_init__(self) -> None:
        at_least(self, size=resnet.SMALLEST, grid=1, rate=0)


@dataclass(frozen=True)
class Run:
    model: str
    corpus: str
    records: str
    pictures: str
    text: Text
    picture: Picture
    training: Schedule
    batch: int

    def __post_init__(self) -> None:
        at_least(self, batch=1)


@dataclass
class Reader:
    """A model with what is needed to use and to save it."""

    paper: ModuleType
    model: torch.nn.Module
    coding: Coding
    config: dict

    def items(self, rows: list[dict], features: Features, ingest: Path) -> Labelled:
        """Rows of CLEAN, with what embed and ingest hold of their pictures, as what is read."""
        files = image_store.find(ingest / "images", {row["image"] for row in rows} - {None})
        return Labelled(rows, self.coding, features, files).remember()

    def names(
        self, decided: list[list[int]], items: Labelled, indices: list[int]
    ) -> list[list[str]]:
        """Decided labels by name; words of a tweet that lie beyond what is read are outside."""
        found = [[self.coding.labels[label] for label in row] for row in decided]
        if self.coding.task == "entities":
            for row, index in zip(found, indices, strict=True):
                row += [OUTSIDE] * items.words_cut(index)
        return found


def rates(run: Run) -> dict[str, float]:
    """Factors of the learning rate by how the names of weights begin: what was pretrained learns
    slower, the decoder that only regularises faster."""
    return {
        "text_encoder.": run.text.rate,
        "image_encoder.": run.picture.rate,
        "drawer.": network(run).drawing.rate,
    }


def create(run: Run, rows: list[dict], task: Task, features: Features) -> Reader:
    """A new reader for a corpus, whose train rows give the labels and the words of captions.

    Raises WrongInput if the text encoder does not read the language of most of them.
    """
    check_language(run, rows)
    module, sizes = paper(run.model), network(run)
    encoder = bert.load(run.text.encoder, run.text.tuned, run.text.pieces)
    labels = labels_of(rows, task)
    vocabulary = Vocabulary(map(caption_words, rows), sizes.captioning.min_count)
    patches = patches_of(rows, features, run.picture.grid)
    pictures = image_encoder(run.picture, patches.shape[1:])
    if run.picture.encoder == PATCHES:
        pictures.measure(patches)
    shapes = module.Shapes(
        task=task,
        labels=len(labels),
        text_width=encoder.width,
        cells=pictures.cells,
        cell_width=pictures.width,
        words=len(vocabulary),
    )
    model = module.Model(sizes, shapes, encoder, pictures)
    config = {
        "model": run.model,
        "text": asdict(run.text),
        "picture": asdict(run.picture),
        "pictures": len(patches),  # of training
        "patches": list(patches.shape[1:]),
        "network": asdict(sizes),
        "shapes": asdict(shapes),
        "labels": labels,
        "vocabulary": vocabulary.to_json(),
        "parameters": parameters(model),
    }
    return _reader(module, model.to(device()), config)


def patches_of(rows: list[dict], features: Features, grid: int) -> Tensor:
    """The patches of these rows' pictures, each once; of a corpus without any, none of width 1.

    -> (N, P, D_v)
    """
    places = sorted({features.image_index[row["image"]] for row in rows if row["image"]})
    if not features.image_index:
        return torch.zeros(0, grid * grid, 1)
    return torch.from_numpy(features.patches[places]).float()


def image_encoder(picture: Picture, patches: tuple[int, int]) -> ResNet | PatchCells:
    """What makes cells of pixels, or of patches; patches: their number and width."""
    if picture.encoder == PATCHES:
        return PatchCells(*patches, picture.grid)
    return ResNet(picture.encoder, picture.weights, picture.grid)


def _reader(module: ModuleType, model: torch.nn.Module, config: dict) -> Reader:
    sizes, picture = model.network, fill(Picture, config["picture"], "config.json")
    coding = Coding(
        task=config["shapes"]["task"],
        text_encoder=model.text_encoder,
        labels=config["labels"],
        vocabulary=Vocabulary.from_json(config["vocabulary"]),
        caption=sizes.captioning.at_most,
        drawing=sizes.drawing.decoder.size if sizes.use_drawing else None,
        pixels=None if picture.encoder == PATCHES else picture.size,
    )
    return Reader(module, model, coding, config)


def save(reader: Reader, folder: Path, encoder: Path) -> None:
    """Write the model and, if it reads patches, a copy of the encoder that computed them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reader.config, indent=1, ensure_ascii=False))
    reader.model.text_encoder.save(folder / TEXT_ENCODER)
    save_file(weights_of(reader.model), folder / "model.safetensors")
    if reader.coding.pixels is None:
        copy_encoder(encoder, folder)


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that the folder must hold: not those of an installed package."""
    left_out = {f"text_encoder.{name}" for name in model.text_encoder.unsaved()}
    return {name: value for name, value in unique(model).items() if name not in left_out}


def restore(folder: Path) -> Reader:
    """The reader that `save` wrote, in evaluation mode. Raises WrongInput if it is not there."""
    config = read_config(folder)
    module, place = paper(config["model"]), f"{folder}/config.json"
    picture = fill(Picture, config["picture"], place)
    model = module.Model(
        fill(module.Network, config["network"], place),
        fill(module.Shapes, config["shapes"], place),
        bert.restore(folder / TEXT_ENCODER),
        image_encoder(replace(picture, weights="none"), config["patches"]),
    )
    weights = load_file(folder / "model.safetensors")
    if weights.keys() != weights_of(model).keys():
        raise WrongInput(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights, strict=False)  # what a package holds is there already
    return _reader(module, model.to(device()).eval(), config)
