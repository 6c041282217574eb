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
from stages.models.mm_orient.dataset import ImageFeatures, MemeDataset, TaskLabels, TextFeatures
from stages.models.mm_orient.region_features import RegionExtractor
from stages.shared.backbones import bert, resnet
from stages.shared.backbones.bert import TextEncoder
from stages.shared.backbones.classifier import (
    PRECOMPUTED_PATCHES,
    TEXT_ENCODER_DIR,
    check_language,
    count_parameters,
    load_model_config,
    read_model_config,
)
from stages.shared.core.config import Field, build_config, config_class
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.features.store import Features
from stages.shared.modeling.registry import load_paper
from stages.shared.modeling.state_dict import untied_state_dict
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device
from stages.shared.training.loop import Schedule

PRECOMPUTED_TOKENS = "tokens"  # the text encoder that embed ran
TOXICITY_DIR, REGION_WEIGHTS_FILE = (
    "toxicity",
    "regions.safetensors",
)  # within the folder of a model


@config_class
class MmOrientTextConfig:
    encoder: str
    max_subwords: int = Field(ge=1)


@config_class
class MmOrientImageConfig:
    encoder: Literal["patches", resnet.ResNetName]
    image_size: int = Field(ge=resnet.MIN_IMAGE_SIZE)
    grid_size: int = Field(ge=1)


@config_class
class MmOrientRun:
    model: str
    corpus: str
    records: str
    images: str
    text: MmOrientTextConfig
    image: MmOrientImageConfig
    task_features: text_features.TaskFeatureConfig
    training: Schedule
    eval_batch_size: int = Field(ge=1)


@dataclass
class MmOrientClassifier:
    """A model with what is needed to use and to save it.

    text: reads texts, unless embed did. regions: reads pictures, unless embed did. about: which
    task features texts have.
    """

    paper: ModuleType
    model: torch.nn.Module
    text_encoder: TextEncoder | None
    region_extractor: RegionExtractor | None
    task_feature_config: text_features.TaskFeatureConfig
    config: dict

    @property
    def tasks(self) -> TaskLabels:
        """The tasks that were learned, each with all of its labels."""
        return self.config["labels"]

    def frozen_modules(self) -> list[torch.nn.Module]:
        """What it reads with, beside the aligned encoder."""
        return [
            one
            for one in (self.text_encoder, self.region_extractor and self.region_extractor.net)
            if one is not None
        ]

    def build_dataset(self, rows: list[dict], features: Features, pictures: Path) -> MemeDataset:
        """Rows of MEMES, with what embed cached of them, as what is read.

        pictures: the folder whose images/ hold them. Raises WrongInput if embed read no texts and
        the reader needs them.
        """
        texts = list(dict.fromkeys(row["text"] for row in rows if row["text"]))
        names = list(dict.fromkeys(row["image"] for row in rows if row["image"]))
        width = self.config["shapes"]["pooled_width"]
        shown = self._image_features(names, features, pictures)
        return MemeDataset(rows, self.tasks, self._text_features(texts, features), shown, width)

    def _text_features(self, texts: list[str], features: Features) -> TextFeatures:
        shapes = self.config["shapes"]
        read = (
            load_cached_texts(texts, features)
            if self.text_encoder is None
            else encode_texts(texts, self.text_encoder)
        )
        about = text_features.compute_features(texts, self.task_feature_config)
        return TextFeatures(
            **read,
            width=shapes["text_width"],
            clip=load_text_clip(texts, features, shapes["pooled_width"]),
            task_features=dict(zip(texts, about, strict=True)),
            num_task_features=shapes["task_features"],
        )

    def _image_features(
        self, names: list[str], features: Features, pictures: Path
    ) -> ImageFeatures:
        places = {name: features.image_index[name] for name in names}
        if self.region_extractor is None:
            regions = {name: features.patches[place] for name, place in places.items()}
        else:
            regions = self.region_extractor.extract(pictures / "images", names)
        clip = {name: features.pooled[place] for name, place in places.items()}
        return ImageFeatures(regions, tuple(self.config["regions"]), clip)


def check_texts_supported(texts: list[str], features: Features) -> None:
    """Raises WrongInput if there are texts that embed did not read."""
    if texts and features.text_index is None:
        raise InputError(
            "the encoder of 06_align does not read these texts: name a BERT that does in `text` of "
            "the reader's row in params.yaml, or set embed.min_supported to 0"
        )


def load_cached_texts(texts: list[str], features: Features) -> dict[str, dict]:
    """Pieces and tokens of texts as embed left them; what it cut, it did not say."""
    check_texts_supported(texts, features)
    places = {text: features.text_index[text] for text in texts}
    return {
        "spelt": {text: features.subwords[place] for text, place in places.items()},
        "cut": {},
        "tokens": {
            text: features.tokens[place][features.token_mask[place]]
            for text, place in places.items()
        },
    }


def encode_texts(texts: list[str], encoder: TextEncoder) -> dict[str, dict]:
    """Pieces and tokens of texts by an encoder of the reader's own, all frozen."""
    words = [text.split() for text in texts]
    pieces = [encoder.tokenize(one) for one in words]
    states = encoder.encode_frozen([one.ids for one in pieces])
    cut = [len(one) - read.num_words for one, read in zip(words, pieces, strict=True)]
    return {
        "spelt": {text: one.tokens for text, one in zip(texts, pieces, strict=True)},
        "cut": dict(zip(texts, cut, strict=True)),
        # The special tokens stand around the pieces.
        "tokens": {text: state[1:-1] for text, state in zip(texts, states, strict=True)},
    }


def load_text_clip(texts: list[str], features: Features, width: int) -> dict[str, np.ndarray]:
    """E^t by text, zeros where the aligned encoder does not read it.  (width,)"""
    if features.text_index is None:
        return dict.fromkeys(texts, np.zeros(width, np.float16))
    return {text: features.text_pooled[features.text_index[text]] for text in texts}


def create(
    run: MmOrientRun, rows: list[dict], tasks: TaskLabels, features: Features
) -> MmOrientClassifier:
    """A new reader for a corpus with these train rows; it learns the tasks they are judged on.

    Raises WrongInput if there is none, or if nothing reads the language of the texts.
    """
    module, sizes = load_paper(run.model), load_model_config(run)
    learned = meme_dataset.filter_labeled_tasks(rows, tasks)
    if not learned:
        raise InputError("no meme of the train split has a label: give the corpus some")
    check_language(run, rows)
    text = None if run.text.encoder == PRECOMPUTED_TOKENS else load_text_encoder(run.text)
    picture = run.image
    regions = (
        None
        if picture.encoder == PRECOMPUTED_PATCHES
        else build_region_extractor(picture, "default")
    )
    shape = region_shape(regions, features)
    shapes = module.InputDims(
        tasks={task: len(labels) for task, labels in learned.items()},
        text_width=text.width if text else tokens_width(rows, features),
        region_width=shape[1],
        pooled_width=pooled_width(features),
        task_features=text_features.feature_dim(run.task_features),
    )
    model = module.Model(sizes, shapes).to(get_device())
    config = {
        "model": run.model,
        "text": asdict(run.text),
        "picture": asdict(picture),
        "task_features": asdict(run.task_features),
        "texts": features.text_kind,  # whether the aligned encoder reads them
        "regions": shape,
        "network": asdict(sizes),
        "shapes": asdict(shapes),
        "labels": learned,
        "not_learned": [task for task in tasks if task not in learned],
        "parameters": count_parameters(model),
    }
    return MmOrientClassifier(module, model, text, regions, run.task_features, config)


def load_text_encoder(text: MmOrientTextConfig) -> TextEncoder:
    return bert.load(text.encoder, 0, text.max_subwords)


def build_region_extractor(
    picture: MmOrientImageConfig, weights: resnet.ResNetWeights
) -> RegionExtractor:
    return RegionExtractor(picture.encoder, weights, picture.image_size, picture.grid_size)


def tokens_width(rows: list[dict], features: Features) -> int:
    """D_t of the aligned encoder; 1 in a corpus without any text."""
    check_texts_supported([row["text"] for row in rows if row["text"]], features)
    return features.token_width or 1


def region_shape(regions: RegionExtractor | None, features: Features) -> list[int]:
    """P and D_v of the regions of a picture; 1 and 1 in a corpus without any."""
    if regions is not None:
        return [regions.net.cells, regions.net.width]
    return list(features.patches.shape[1:]) if features.image_index else [1, 1]


def pooled_width(features: Features) -> int:
    """D of the aligned encoder, known by pictures or by texts; 1 where it read neither."""
    known = features.pooled if features.text_pooled is None else features.text_pooled
    return known.shape[1] or 1


def save(reader: MmOrientClassifier, folder: Path, encoder: Path) -> None:
    """Write the model, a copy of the aligned encoder, and what else it reads with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reader.config, indent=1, ensure_ascii=False))
    save_file(untied_state_dict(reader.model), folder / "model.safetensors")
    if reader.text_encoder is not None:
        reader.text_encoder.save(folder / TEXT_ENCODER_DIR)
        if held := state_dict_to_save(reader.text_encoder):
            save_file(held, folder / TEXT_ENCODER_DIR / "model.safetensors")
    if reader.region_extractor is not None:
        save_file(untied_state_dict(reader.region_extractor.net), folder / REGION_WEIGHTS_FILE)
    text_features.save_toxicity_model(reader.task_feature_config, folder / TOXICITY_DIR)
    copy_encoder(encoder, folder)


def state_dict_to_save(encoder: TextEncoder) -> dict[str, torch.Tensor]:
    """The weights that the folder must hold: not those of an installed package."""
    left_out = encoder.excluded_weights()
    return {
        name: value for name, value in untied_state_dict(encoder).items() if name not in left_out
    }


def restore(folder: Path) -> MmOrientClassifier:
    """The reader that `save` wrote, in evaluation mode. Raises WrongInput if it is not there."""
    config = read_model_config(folder)
    module, place = load_paper(config["model"]), f"{folder}/config.json"
    model = module.Model(
        build_config(module.ModelConfig, config["network"], place),
        build_config(module.InputDims, config["shapes"], place),
    )
    weights = load_file(folder / "model.safetensors")
    if weights.keys() != untied_state_dict(model).keys():
        raise InputError(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights)
    text = (
        restore_text_encoder(folder / TEXT_ENCODER_DIR)
        if config["text"]["encoder"] != PRECOMPUTED_TOKENS
        else None
    )
    picture, regions = build_config(MmOrientImageConfig, config["picture"], place), None
    if picture.encoder != PRECOMPUTED_PATCHES:
        regions = build_region_extractor(picture, "none")
        regions.net.load_state_dict(load_file(folder / REGION_WEIGHTS_FILE))
    about = build_config(text_features.TaskFeatureConfig, config["task_features"], place)
    if about.toxicity != text_features.NO_MODEL:
        about = replace(about, toxicity_model=str(folder / TOXICITY_DIR))
    return MmOrientClassifier(module, model.to(get_device()).eval(), text, regions, about, config)


def restore_text_encoder(folder: Path) -> TextEncoder:
    """A text encoder with all its weights: those that `save` wrote, or a package's."""
    text = bert.restore(folder)
    if (held := folder / "model.safetensors").exists():
        text.load_state_dict(load_file(held), strict=False)
    return text.eval()
