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
    OUTSIDE_TAG,
    LabelCodec,
    Task,
    TextImageDataset,
    collect_labels,
    get_caption_words,
)
from stages.models.muse.patch_pooling import PatchPooling
from stages.models.muse.show_attend_tell import Vocabulary
from stages.shared.backbones import bert, resnet
from stages.shared.backbones.classifier import (
    PRECOMPUTED_PATCHES,
    TEXT_ENCODER_DIR,
    check_language,
    count_parameters,
    load_model_config,
    read_model_config,
)
from stages.shared.backbones.resnet import ResNet
from stages.shared.core.config import Field, build_config, config_class
from stages.shared.data import image_store
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.features.store import Features
from stages.shared.modeling.registry import load_paper
from stages.shared.modeling.state_dict import untied_state_dict
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device
from stages.shared.training.schedule import Schedule


@config_class
class MuseTextConfig:
    encoder: str
    num_tuned_layers: int | Literal["all"]
    max_subwords: int = Field(ge=1)
    lr_multiplier: float = Field(ge=0)


@config_class
class MuseImageConfig:
    encoder: Literal["patches", resnet.ResNetName]
    weights: resnet.ResNetWeights
    image_size: int = Field(ge=resnet.MIN_IMAGE_SIZE)
    grid_size: int = Field(ge=1)
    lr_multiplier: float = Field(ge=0)


@config_class
class MuseRun:
    model: str
    corpus: str
    records: str
    images: str
    text: MuseTextConfig
    image: MuseImageConfig
    training: Schedule
    eval_batch_size: int = Field(ge=1)


@dataclass
class MuseClassifier:
    """A model with what is needed to use and to save it."""

    paper: ModuleType
    model: torch.nn.Module
    codec: LabelCodec
    config: dict

    def build_dataset(self, rows: list[dict], features: Features, ingest: Path) -> TextImageDataset:
        """Rows of CLEAN, with what embed and ingest hold of their pictures, as what is read."""
        files = image_store.load_image_bytes(
            ingest / "images", {row["image"] for row in rows} - {None}
        )
        return TextImageDataset(rows, self.codec, features, files).cache_hidden_states()

    def decode_labels(
        self, decided: list[list[int]], items: TextImageDataset, indices: list[int]
    ) -> list[list[str]]:
        """Decided labels by name; words of a tweet that lie beyond what is read are outside."""
        found = [[self.codec.labels[label] for label in row] for row in decided]
        if self.codec.task == "entities":
            for row, index in zip(found, indices, strict=True):
                row += [OUTSIDE_TAG] * items.num_truncated_words(index)
        return found


def lr_multipliers(run: MuseRun) -> dict[str, float]:
    """Factors of the learning rate by how the names of weights begin: what was pretrained learns
    slower, the decoder that only regularises faster."""
    return {
        "text_encoder.": run.text.lr_multiplier,
        "image_encoder.": run.image.lr_multiplier,
        "drawer.": load_model_config(run).image_generation.lr_multiplier,
    }


def create(run: MuseRun, rows: list[dict], task: Task, features: Features) -> MuseClassifier:
    """A new reader for a corpus, whose train rows give the labels and the words of captions.

    Raises WrongInput if the text encoder does not read the language of most of them.
    """
    check_language(run, rows)
    module, sizes = load_paper(run.model), load_model_config(run)
    encoder = bert.load(run.text.encoder, run.text.num_tuned_layers, run.text.max_subwords)
    labels = collect_labels(rows, task)
    vocabulary = Vocabulary(map(get_caption_words, rows), sizes.captioning.min_count)
    patches = collect_patches(rows, features, run.image.grid_size)
    pictures = build_image_encoder(run.image, patches.shape[1:])
    if run.image.encoder == PRECOMPUTED_PATCHES:
        pictures.fit_normalization(patches)
    shapes = module.InputDims(
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
        "picture": asdict(run.image),
        "pictures": len(patches),  # of training
        "patches": list(patches.shape[1:]),
        "network": asdict(sizes),
        "shapes": asdict(shapes),
        "labels": labels,
        "vocabulary": vocabulary.to_json(),
        "parameters": count_parameters(model),
    }
    return _build_classifier(module, model.to(get_device()), config)


def collect_patches(rows: list[dict], features: Features, grid: int) -> Tensor:
    """The patches of these rows' pictures, each once; of a corpus without any, none of width 1.

    -> (N, P, D_v)
    """
    places = sorted({features.image_index[row["image"]] for row in rows if row["image"]})
    if not features.image_index:
        return torch.zeros(0, grid * grid, 1)
    return torch.from_numpy(features.patches[places]).float()


def build_image_encoder(
    picture: MuseImageConfig, patches: tuple[int, int]
) -> ResNet | PatchPooling:
    """What makes cells of pixels, or of patches; patches: their number and width."""
    if picture.encoder == PRECOMPUTED_PATCHES:
        return PatchPooling(*patches, picture.grid_size)
    return ResNet(picture.encoder, picture.weights, picture.grid_size)


def _build_classifier(module: ModuleType, model: torch.nn.Module, config: dict) -> MuseClassifier:
    sizes, picture = model.network, build_config(MuseImageConfig, config["picture"], "config.json")
    coding = LabelCodec(
        task=config["shapes"]["task"],
        text_encoder=model.text_encoder,
        labels=config["labels"],
        vocabulary=Vocabulary.from_json(config["vocabulary"]),
        max_caption_ids=sizes.captioning.max_length,
        drawing_size=sizes.image_generation.decoder.image_size if sizes.use_image_generation else None,
        image_size=None if picture.encoder == PRECOMPUTED_PATCHES else picture.image_size,
    )
    return MuseClassifier(module, model, coding, config)


def save(reader: MuseClassifier, folder: Path, encoder: Path) -> None:
    """Write the model and, if it reads patches, a copy of the encoder that computed them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reader.config, indent=1, ensure_ascii=False))
    reader.model.text_encoder.save(folder / TEXT_ENCODER_DIR)
    save_file(state_dict_to_save(reader.model), folder / "model.safetensors")
    if reader.codec.image_size is None:
        copy_encoder(encoder, folder)


def state_dict_to_save(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that the folder must hold: not those of an installed package."""
    left_out = {f"text_encoder.{name}" for name in model.text_encoder.excluded_weights()}
    return {name: value for name, value in untied_state_dict(model).items() if name not in left_out}


def restore(folder: Path) -> MuseClassifier:
    """The reader that `save` wrote, in evaluation mode. Raises WrongInput if it is not there."""
    config = read_model_config(folder)
    module, place = load_paper(config["model"]), f"{folder}/config.json"
    picture = build_config(MuseImageConfig, config["picture"], place)
    model = module.Model(
        build_config(module.ModelConfig, config["network"], place),
        build_config(module.InputDims, config["shapes"], place),
        bert.restore(folder / TEXT_ENCODER_DIR),
        build_image_encoder(replace(picture, weights="none"), config["patches"]),
    )
    weights = load_file(folder / "model.safetensors")
    if weights.keys() != state_dict_to_save(model).keys():
        raise InputError(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights, strict=False)  # what a package holds is there already
    return _build_classifier(module, model.to(get_device()).eval(), config)
