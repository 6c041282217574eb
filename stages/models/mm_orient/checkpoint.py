"""A reader of memes: MM-ORIENT on one corpus, and the folder it loads from by path.

The folder holds model.safetensors, config.json (encoders, network, shapes, tasks and their labels,
whether the aligned encoder reads the texts, how many numbers were trained) and, in encoder/, the
aligned encoder whose features it reads. What it reads with beside that lies there too: a text
encoder of its own in text_encoder/, a model of toxicity in toxicity/, the weights of a ResNet in
regions.safetensors. It needs neither params.yaml nor a network.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient import text_features
from stages.models.mm_orient.dataset import Memes, Pictures, Tasks, Texts
from stages.models.mm_orient.region_features import RegionReader
from stages.shared.backbones import bert, resnet
from stages.shared.backbones.bert import TextEncoder
from stages.shared.backbones.classifier import (
    PATCHES,
    TEXT_ENCODER,
    check_language,
    network,
    parameters,
    read_config,
)
from stages.shared.core.config import at_least, fill
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.features.store import Features
from stages.shared.modeling.registry import paper
from stages.shared.modeling.state_dict import unique
from stages.shared.runtime.stage import WrongInput
from stages.shared.torch_setup.devices import device
from stages.shared.training.loop import Schedule

TOKENS = "tokens"  # the text encoder that embed ran
TOXICITY, REGIONS = "toxicity", "regions.safetensors"  # within the folder of a model


@dataclass(frozen=True)
class Text:
    encoder: str
    pieces: int

    def __post_init__(self) -> None:
        at_least(self, pieces=1)


@dataclass(frozen=True)
class Picture:
    encoder: Literal["patches", resnet.Name]
    size: int
    grid: int

    def __post_init__(self) -> None:
        at_least(self, size=resnet.SMALLEST, grid=1)


@dataclass(frozen=True)
class Run:
    model: str
    corpus: str
    records: str
    pictures: str
    text: Text
    picture: Picture
    task_features: text_features.Params
    training: Schedule
    batch: int

    def __post_init__(self) -> None:
        at_least(self, batch=1)


@dataclass
class Reader:
    """A model with what is needed to use and to save it.

    text: reads texts, unless embed did. regions: reads pictures, unless embed did. about: which
    task features texts have.
    """

    paper: ModuleType
    model: torch.nn.Module
    text: TextEncoder | None
    regions: RegionReader | None
    about: text_features.Params
    config: dict

    @property
    def tasks(self) -> Tasks:
        """The tasks that were learned, each with all of its labels."""
        return self.config["labels"]

    def frozen(self) -> list[torch.nn.Module]:
        """What it reads with, beside the aligned encoder."""
        return [one for one in (self.text, self.regions and self.regions.net) if one is not None]

    def items(self, rows: list[dict], features: Features, pictures: Path) -> Memes:
        """Rows of MEMES, with what embed cached of them, as what is read.

        pictures: the folder whose images/ hold them. Raises WrongInput if embed read no texts and
        the reader needs them.
        """
        texts = list(dict.fromkeys(row["text"] for row in rows if row["text"]))
        names = list(dict.fromkeys(row["image"] for row in rows if row["image"]))
        width = self.config["shapes"]["pooled_width"]
        shown = self._pictures(names, features, pictures)
        return Memes(rows, self.tasks, self._texts(texts, features), shown, width)

    def _texts(self, texts: list[str], features: Features) -> Texts:
        shapes = self.config["shapes"]
        read = cached(texts, features) if self.text is None else encoded(texts, self.text)
        about = text_features.read(texts, self.about)
        return Texts(
            **read,
            width=shapes["text_width"],
            clip=clip_of(texts, features, shapes["pooled_width"]),
            task_features=dict(zip(texts, about, strict=True)),
            features=shapes["task_features"],
        )

    def _pictures(self, names: list[str], features: Features, pictures: Path) -> Pictures:
        places = {name: features.image_index[name] for name in names}
        if self.regions is None:
            regions = {name: features.patches[place] for name, place in places.items()}
        else:
            regions = self.regions.read(pictures / "images", names)
        clip = {name: features.pooled[place] for name, place in places.items()}
        return Pictures(regions, tuple(self.config["regions"]), clip)


def check_texts(texts: list[str], features: Features) -> None:
    """Raises WrongInput if there are texts that embed did not read."""
    if texts and features.text_index is None:
        raise WrongInput(
            "the encoder of 06_align does not read these texts: name a BERT that does in `text` of "
            "the reader's row in params.yaml, or set embed.min_supported to 0"
        )


def cached(texts: list[str], features: Features) -> dict[str, dict]:
    """Pieces and tokens of texts as embed left them; what it cut, it did not say."""
    check_texts(texts, features)
    places = {text: features.text_index[text] for text in texts}
    return {
        "spelt": {text: features.pieces[place] for text, place in places.items()},
        "cut": {},
        "tokens": {
            text: features.tokens[place][features.token_mask[place]]
            for text, place in places.items()
        },
    }


def encoded(texts: list[str], encoder: TextEncoder) -> dict[str, dict]:
    """Pieces and tokens of texts by an encoder of the reader's own, all frozen."""
    words = [text.split() for text in texts]
    pieces = [encoder.pieces(one) for one in words]
    states = encoder.frozen([one.ids for one in pieces])
    cut = [len(one) - read.kept for one, read in zip(words, pieces, strict=True)]
    return {
        "spelt": {text: one.spelt for text, one in zip(texts, pieces, strict=True)},
        "cut": dict(zip(texts, cut, strict=True)),
        # The special tokens stand around the pieces.
        "tokens": {text: state[1:-1] for text, state in zip(texts, states, strict=True)},
    }


def clip_of(texts: list[str], features: Features, width: int) -> dict[str, np.ndarray]:
    """E^t by text, zeros where the aligned encoder does not read it.  (width,)"""
    if features.text_index is None:
        return dict.fromkeys(texts, np.zeros(width, np.float16))
    return {text: features.text_pooled[features.text_index[text]] for text in texts}


def create(run: Run, rows: list[dict], tasks: Tasks, features: Features) -> Reader:
    """A new reader for a corpus with these train rows; it learns the tasks they are judged on.

    Raises WrongInput if there is none, or if nothing reads the language of the texts.
    """
    module, sizes = paper(run.model), network(run)
    learned = meme_dataset.judged(rows, tasks)
    if not learned:
        raise WrongInput("no meme of the train split has a label: give the corpus some")
    check_language(run, rows)
    text = None if run.text.encoder == TOKENS else own_encoder(run.text)
    picture = run.picture
    regions = None if picture.encoder == PATCHES else region_reader(picture, "default")
    shape = region_shape(regions, features)
    shapes = module.Shapes(
        tasks={task: len(labels) for task, labels in learned.items()},
        text_width=text.width if text else tokens_width(rows, features),
        region_width=shape[1],
        pooled_width=pooled_width(features),
        task_features=text_features.width(run.task_features),
    )
    model = module.Model(sizes, shapes).to(device())
    config = {
        "model": run.model,
        "text": asdict(run.text),
        "picture": asdict(picture),
        "task_features": asdict(run.task_features),
        "texts": features.text,  # whether the aligned encoder reads them
        "regions": shape,
        "network": asdict(sizes),
        "shapes": asdict(shapes),
        "labels": learned,
        "not_learned": [task for task in tasks if task not in learned],
        "parameters": parameters(model),
    }
    return Reader(module, model, text, regions, run.task_features, config)


def own_encoder(text: Text) -> TextEncoder:
    return bert.load(text.encoder, 0, text.pieces)


def region_reader(picture: Picture, weights: resnet.Weights) -> RegionReader:
    return RegionReader(picture.encoder, weights, picture.size, picture.grid)


def tokens_width(rows: list[dict], features: Features) -> int:
    """D_t of the aligned encoder; 1 in a corpus without any text."""
    check_texts([row["text"] for row in rows if row["text"]], features)
    return features.topic_width or 1


def region_shape(regions: RegionReader | None, features: Features) -> list[int]:
    """P and D_v of the regions of a picture; 1 and 1 in a corpus without any."""
    if regions is not None:
        return [regions.net.cells, regions.net.width]
    return list(features.patches.shape[1:]) if features.image_index else [1, 1]


def pooled_width(features: Features) -> int:
    """D of the aligned encoder, known by pictures or by texts; 1 where it read neither."""
    known = features.pooled if features.text_pooled is None else features.text_pooled
    return known.shape[1] or 1


def save(reader: Reader, folder: Path, encoder: Path) -> None:
    """Write the model, a copy of the aligned encoder, and what else it reads with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reader.config, indent=1, ensure_ascii=False))
    save_file(unique(reader.model), folder / "model.safetensors")
    if reader.text is not None:
        reader.text.save(folder / TEXT_ENCODER)
        if held := weights_of(reader.text):
            save_file(held, folder / TEXT_ENCODER / "model.safetensors")
    if reader.regions is not None:
        save_file(unique(reader.regions.net), folder / REGIONS)
    text_features.save(reader.about, folder / TOXICITY)
    copy_encoder(encoder, folder)


def weights_of(encoder: TextEncoder) -> dict[str, torch.Tensor]:
    """The weights that the folder must hold: not those of an installed package."""
    left_out = encoder.unsaved()
    return {name: value for name, value in unique(encoder).items() if name not in left_out}


def restore(folder: Path) -> Reader:
    """The reader that `save` wrote, in evaluation mode. Raises WrongInput if it is not there."""
    config = read_config(folder)
    module, place = paper(config["model"]), f"{folder}/config.json"
    model = module.Model(
        fill(module.Network, config["network"], place), fill(module.Shapes, config["shapes"], place)
    )
    weights = load_file(folder / "model.safetensors")
    if weights.keys() != unique(model).keys():
        raise WrongInput(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights)
    text = restored_text(folder / TEXT_ENCODER) if config["text"]["encoder"] != TOKENS else None
    picture, regions = fill(Picture, config["picture"], place), None
    if picture.encoder != PATCHES:
        regions = region_reader(picture, "none")
        regions.net.load_state_dict(load_file(folder / REGIONS))
    about = fill(text_features.Params, config["task_features"], place)
    if about.toxicity != text_features.NO_MODEL:
        about = replace(about, toxicity=str(folder / TOXICITY))
    return Reader(module, model.to(device()).eval(), text, regions, about, config)


def restored_text(folder: Path) -> TextEncoder:
    """A text encoder with all its weights: those that `save` wrote, or a package's."""
    text = bert.restore(folder)
    if (held := folder / "model.safetensors").exists():
        text.load_state_dict(load_file(held), strict=False)
    return text.eval()
