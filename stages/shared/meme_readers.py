"""A reader of memes: MM-ORIENT on one corpus, and the folder it loads from by path.

The folder holds model.safetensors, config.json (encoders, network, shapes, tasks and their labels,
how many numbers were trained) and, in encoder/, the aligned encoder whose features it reads; in
text_encoder/, of a text encoder of its own, that one's tokenizer, configuration and weights. It
needs neither params.yaml nor a network.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file

from stages.models import paper
from stages.shared import images, memes, task_features, text_encoder
from stages.shared.devices import device
from stages.shared.encoder_files import copy_encoder
from stages.shared.features import Features
from stages.shared.memes import Memes, Regions, Tasks, Texts
from stages.shared.params import fill, load
from stages.shared.regions import RegionReader
from stages.shared.stage import WrongInput
from stages.shared.text_encoder import TextEncoder
from stages.shared.training import Schedule
from stages.shared.weights import unique

TOKENS, PATCHES = "tokens", "patches"  # encoders: what embed cached of texts and of pictures
TEXT_ENCODER = "text_encoder"  # folder within that of a model


@dataclass(frozen=True)
class Text:
    encoder: str
    pieces: int


@dataclass(frozen=True)
class Picture:
    encoder: str
    size: int
    grid: int


@dataclass(frozen=True)
class Run:
    model: str
    corpus: str
    records: str
    pictures: str
    text: Text
    picture: Picture
    task_features: task_features.Params
    training: Schedule
    batch: int


@dataclass
class Reader:
    """A model with what is needed to use and to save it.

    text: reads texts, unless embed did.
    """

    paper: ModuleType
    model: torch.nn.Module
    text: TextEncoder | None
    config: dict

    @property
    def tasks(self) -> Tasks:
        """The tasks that were learned, each with all of its labels."""
        return self.config["labels"]

    def items(self, rows: list[dict], features: Features, pictures: Path) -> Memes:
        """Rows of MEMES, with what embed cached of them, as what is read.

        pictures: the folder whose images/ hold them. Raises WrongInput if embed read no texts and
        the reader needs them.
        """
        texts = list(dict.fromkeys(row["text"] for row in rows if row["text"]))
        names = list(dict.fromkeys(row["image"] for row in rows if row["image"]))
        return Memes(
            rows,
            self.tasks,
            features,
            self._texts(texts, features),
            self._regions(names, features, pictures),
        )

    def _texts(self, texts: list[str], features: Features) -> Texts:
        settings = fill(task_features.Params, self.config["task_features"], "config.json")
        about = dict(zip(texts, task_features.read(texts, settings), strict=True))
        if self.text is None:
            spelt, tokens = cached(texts, features)
        else:
            spelt, tokens = encoded(texts, self.text)
        width = self.config["shapes"]["text_width"]
        return Texts(spelt, tokens, width, about, task_features.width(settings))

    def _regions(self, names: list[str], features: Features, pictures: Path) -> Regions:
        picture = fill(Picture, self.config["picture"], "config.json")
        shape = tuple(self.config["regions"])
        if picture.encoder == PATCHES:
            cells = {name: features.patches[features.image_index[name]] for name in names}
            return Regions(cells, shape)
        files = images.find(pictures / "images", names)
        reader = RegionReader(picture.encoder, picture.size, picture.grid)
        return Regions(reader.read(files), shape)


def cached(texts: list[str], features: Features) -> tuple[dict, dict]:
    """Pieces and tokens of texts as embed left them. Raises WrongInput if it read none."""
    if features.text_index is None:
        if not texts:
            return {}, {}
        raise WrongInput(
            "the encoder of 06_align does not read these texts: name a BERT that does in `text` of "
            "the reader's row in params.yaml, or set embed.min_supported to 0"
        )
    spelt, tokens = {}, {}
    for text in texts:
        place = features.text_index[text]
        tokens[text] = features.tokens[place][features.token_mask[place]]
        spelt[text] = features.pieces[place]
    return spelt, tokens


def encoded(texts: list[str], encoder: TextEncoder) -> tuple[dict, dict]:
    """Pieces and tokens of texts by an encoder of the reader's own, all frozen."""
    pieces = [encoder.pieces(text.split()) for text in texts]
    states = encoder.frozen([one.ids for one in pieces])
    spelt = {text: one.spelt for text, one in zip(texts, pieces, strict=True)}
    # The special tokens stand around the pieces.
    tokens = {text: state[1:-1] for text, state in zip(texts, states, strict=True)}
    return spelt, tokens


def network(run: Run):
    """The numbers of a run's model that its weights depend on."""
    return load(paper(run.model).Network, "models", run.model, "network")


def create(run: Run, rows: list[dict], tasks: Tasks, features: Features) -> Reader:
    """A new reader for a corpus with these train rows; it learns the tasks they are judged on.

    Raises WrongInput if there is none.
    """
    module, sizes = paper(run.model), network(run)
    learned = memes.judged(rows, tasks)
    if not learned:
        raise WrongInput("no meme of the train split has a label: give the corpus some")
    text = None if run.text.encoder == TOKENS else own_encoder(run.text)
    regions = region_shape(run.picture, features)
    shapes = module.Shapes(
        tasks={task: len(labels) for task, labels in learned.items()},
        text_width=text.width if text else features.topic_width,
        region_width=regions[1],
        pooled_width=features.pooled.shape[1],
        task_features=task_features.width(run.task_features),
    )
    model = module.Model(sizes, shapes).to(device())
    config = {
        "model": run.model,
        "text": asdict(run.text),
        "picture": asdict(run.picture),
        "task_features": asdict(run.task_features),
        "texts": features.text,  # whether the aligned encoder reads them
        "regions": regions,
        "network": asdict(sizes),
        "shapes": asdict(shapes),
        "labels": learned,
        "not_learned": [task for task in tasks if task not in learned],
        "parameters": parameters(model),
    }
    return Reader(module, model, text, config)


def own_encoder(text: Text) -> TextEncoder:
    return text_encoder.load(text.encoder, 0, text.pieces)


def region_shape(picture: Picture, features: Features) -> list[int]:
    """P and D_v of the regions of a picture. Raises WrongInput for a ResNet that does not exist."""
    if picture.encoder == PATCHES:
        return list(features.patches.shape[1:])
    return [picture.grid**2, RegionReader(picture.encoder, picture.size, picture.grid).net.width]


def parameters(model: torch.nn.Module) -> dict[str, int]:
    """How many numbers are trained, and how many are not."""
    counts = {"trained": 0, "frozen": 0}
    for weight in model.parameters():
        counts["trained" if weight.requires_grad else "frozen"] += weight.numel()
    return counts


def save(reader: Reader, folder: Path, encoder: Path) -> None:
    """Write the model, its text encoder if it has one, and a copy of the aligned encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reader.config, indent=1, ensure_ascii=False))
    save_file(unique(reader.model), folder / "model.safetensors")
    if reader.text is not None:
        reader.text.save(folder / TEXT_ENCODER)
        if held := weights_of(reader.text):
            save_file(held, folder / TEXT_ENCODER / "model.safetensors")
    copy_encoder(encoder, folder)


def weights_of(encoder: TextEncoder) -> dict[str, torch.Tensor]:
    """The weights that the folder must hold: not those of an installed package."""
    left_out = encoder.unsaved()
    return {name: value for name, value in unique(encoder).items() if name not in left_out}


def restore(folder: Path) -> Reader:
    """The reader that `save` wrote, in evaluation mode. Raises WrongInput if it is not there."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise WrongInput(f"{folder} holds no trained model: run `dvc repro`") from None
    module, place = paper(config["model"]), f"{folder}/config.json"
    model = module.Model(
        fill(module.Network, config["network"], place), fill(module.Shapes, config["shapes"], place)
    )
    weights = load_file(folder / "model.safetensors")
    if weights.keys() != unique(model).keys():
        raise WrongInput(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights)
    text = None
    if config["text"]["encoder"] != TOKENS:
        text = text_encoder.restore(folder / TEXT_ENCODER)
        if (held := folder / TEXT_ENCODER / "model.safetensors").exists():
            text.load_state_dict(load_file(held), strict=False)
        text.eval()
    return Reader(module, model.to(device()).eval(), text, config)
