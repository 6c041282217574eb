"""A trained MM-ORIENT classifier: create, save and restore it.

The files of a saved classifier are those in stages/shared/backbones/classifier.py. config.json also
has the tasks and whether the aligned encoder supports the texts. Depending on the run the folder
has the weights of a text encoder in text_encoder/, a toxicity model in toxicity/ and ResNet weights
in regions.safetensors. An EfficientNet is trained with the model and part of its weights.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient import model as mm_orient_model
from stages.models.mm_orient import text_features
from stages.models.mm_orient.dataset import (
    ImageFeatures,
    IndexedFeatures,
    MemeDataset,
    TaskLabels,
    TextFeatures,
)
from stages.models.mm_orient.model import InputDims, MmOrientPredictions, ModelConfig
from stages.models.mm_orient.region_features import RegionExtractor
from stages.shared.backbones import bert, efficientnet, resnet
from stages.shared.backbones.bert import TextEncoder
from stages.shared.backbones.classifier import (
    PRECOMPUTED_PATCHES,
    TEXT_ENCODER_DIR,
    WEIGHTS_FILE,
    ClassifierPaper,
    check_language,
    count_parameters,
    load_weights,
    read_model_config,
    save_classifier,
    state_dict_to_save,
)
from stages.shared.backbones.efficientnet import EfficientNetLite0
from stages.shared.backbones.resnet import ResNet
from stages.shared.core.config import Field, build_config, config_class
from stages.shared.data import image_store
from stages.shared.features.store import Features
from stages.shared.modeling.state_dict import untied_state_dict
from stages.shared.pretrained import efficientnet_lite0
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device
from stages.shared.training.schedule import Schedule

PRECOMPUTED_TOKENS = "tokens"  # text.encoder: use the token features that `embed` cached
TOXICITY_DIR, REGION_WEIGHTS_FILE = "toxicity", "regions.safetensors"  # within a model folder


@config_class
class MmOrientTextConfig:
    """The section `classifiers.<run>.text`."""

    encoder: str = Field(description="tokens (aligned encoder), minilm or a BERT by name")
    max_subwords: int = Field(ge=1, description="maximum text length; not used with tokens")


@config_class
class MmOrientImageConfig:
    """The section `classifiers.<run>.image`."""

    encoder: Literal["patches", "efficientnet-lite0", resnet.ResNetName] = Field(
        description="patches (aligned encoder), efficientnet-lite0, or a frozen ResNet"
    )
    num_tuned_blocks: int = Field(
        ge=1,
        le=efficientnet_lite0.NUM_BLOCKS,
        description="last blocks of efficientnet-lite0 that are trained",
    )
    image_size: int = Field(ge=resnet.MIN_IMAGE_SIZE, description="ResNet input side, pixels")
    grid_size: int = Field(ge=1, description="regions per side of efficientnet-lite0 or a ResNet")
    lr_multiplier: float = Field(
        ge=0, description="learning rate of efficientnet-lite0, relative to other weights"
    )


@config_class
class MmOrientRun:
    """The section `classifiers.<run>`."""

    model: str = Field(description="mm_orient")
    corpus: str = Field(description="a corpus of kind memes")
    records: str = Field(description="stage folder of the records")
    images: str = Field(description="stage folder of the images")
    text: MmOrientTextConfig
    image: MmOrientImageConfig
    task_features: text_features.TaskFeatureConfig
    training: Schedule
    eval_batch_size: int = Field(ge=1, description="memes per batch at evaluation")


@dataclass
class MmOrientClassifier:
    """A model with its encoders and config.

    text_encoder, region_extractor: frozen; None if the features that `embed` cached are used
    instead, or the regions of the image encoder that the model trains.
    config: the content of config.json.
    """

    paper: ClassifierPaper[MmOrientPredictions]
    model: mm_orient_model.Model
    text_encoder: TextEncoder | None
    region_extractor: RegionExtractor | None
    task_feature_config: text_features.TaskFeatureConfig
    config: dict

    @property
    def tasks(self) -> TaskLabels:
        """The learned tasks and their labels."""
        return self.config["labels"]

    @property
    def reads_pixels(self) -> bool:
        """Whether a dataset needs the image files, not only what `embed` cached."""
        return self.region_extractor is not None or self.model.image_encoder is not None

    def frozen_modules(self) -> list[torch.nn.Module]:
        """The frozen encoders of this classifier, without the aligned encoder."""
        encoders = (self.text_encoder, self.region_extractor and self.region_extractor.net)
        return [encoder for encoder in encoders if encoder is not None]

    def build_dataset(self, rows: list[dict], features: Features, images: Path) -> MemeDataset:
        """A dataset of rows of MEMES.

        features: the output of `embed` for these rows. images: the folder that contains images/.
        Raises InputError if the classifier needs text features that `embed` did not compute.
        """
        texts = list(dict.fromkeys(row["text"] for row in rows if row["text"]))
        names = list(dict.fromkeys(row["image"] for row in rows if row["image"]))
        width = self.config["shapes"]["pooled_width"]
        image_features = self._image_features(names, features, images)
        return MemeDataset(
            rows, self.tasks, self._text_features(texts, rows, features), image_features, width
        )

    def _text_features(
        self, texts: list[str], rows: list[dict], features: Features
    ) -> TextFeatures:
        shapes = self.config["shapes"]
        encoded = (
            load_cached_texts(texts, features)
            if self.text_encoder is None
            else encode_texts(texts, self.text_encoder)
        )
        column = self.task_feature_config.input_text
        task_texts = list(dict.fromkeys(row[column] for row in rows if row[column]))
        task_features = text_features.compute_features(task_texts, self.task_feature_config)
        return TextFeatures(
            **encoded,
            width=shapes["text_width"],
            clip=load_text_clip(texts, features, shapes["pooled_width"]),
            task_input=column,
            task_features=dict(zip(task_texts, task_features, strict=True)),
            num_task_features=shapes["task_features"],
        )

    def _image_features(self, names: list[str], features: Features, images: Path) -> ImageFeatures:
        indices = {name: features.image_index[name] for name in names}
        clip = IndexedFeatures(indices, features.pooled.__getitem__)
        shape: tuple[int, ...] = tuple(self.config["regions"])
        if self.model.image_encoder is not None:
            blocks = self.model.image_encoder.frozen
            files = image_store.load_image_bytes(images / "images", names)
            regions, shape = blocks.encode_cached(files), blocks.shape
        elif self.region_extractor is not None:
            regions = self.region_extractor.extract(images / "images", names)
        else:
            regions = IndexedFeatures(indices, features.patches.__getitem__)
        return ImageFeatures(regions, shape, clip)


def check_texts_supported(texts: list[str], features: Features) -> None:
    """Raises InputError if there are texts but `embed` computed no text features."""
    if texts and features.text_kind == "learned":
        raise InputError(
            "the encoder of 06_align does not support these texts: set text.encoder of the "
            "classifier in params.yaml to a BERT that does, or embed.min_supported_fraction to 0"
        )


def load_cached_texts(texts: list[str], features: Features) -> dict[str, Mapping]:
    """Subwords and token features from the output of `embed`, as arguments of TextFeatures.

    `truncated_words` is empty: `embed` does not record it.
    """
    check_texts_supported(texts, features)
    indices = {text: features.text_index[text] for text in texts}
    return {
        "subwords": {text: features.subwords[index] for text, index in indices.items()},
        "truncated_words": {},
        "tokens": IndexedFeatures(indices, features.text_tokens),
    }


def encode_texts(texts: list[str], encoder: TextEncoder) -> dict[str, dict]:
    """Subwords and token features from a frozen text encoder, as arguments of TextFeatures."""
    words = [text.split() for text in texts]
    tokenized = [encoder.tokenize(text_words) for text_words in words]
    states = encoder.compute_frozen_states([subwords.ids for subwords in tokenized])
    truncated = [
        len(text_words) - subwords.num_words
        for text_words, subwords in zip(words, tokenized, strict=True)
    ]
    return {
        "subwords": {
            text: subwords.tokens for text, subwords in zip(texts, tokenized, strict=True)
        },
        "truncated_words": dict(zip(texts, truncated, strict=True)),
        # Without the special tokens at both ends.
        "tokens": {text: state[1:-1] for text, state in zip(texts, states, strict=True)},
    }


def load_text_clip(texts: list[str], features: Features, width: int) -> Mapping[str, np.ndarray]:
    """E_t (width,) by text; zeros if the aligned encoder does not support the texts."""
    if features.text_kind == "learned":
        return dict.fromkeys(texts, np.zeros(width, np.float16))
    indices = {text: features.text_index[text] for text in texts}
    return IndexedFeatures(indices, features.text_pooled.__getitem__)


def create(
    run: MmOrientRun,
    network: ModelConfig,
    rows: list[dict],
    tasks: TaskLabels,
    features: Features,
) -> MmOrientClassifier:
    """An untrained classifier for the tasks that have a label in the train split.

    rows: the train split. Raises InputError if no row has a label, or if no encoder supports the
    language of the texts.
    """
    learned_tasks = meme_dataset.filter_labeled_tasks(rows, tasks)
    if not learned_tasks:
        raise InputError("no meme of the train split has a label: add labels to the corpus")
    check_language(run, rows)
    text_encoder = None if run.text.encoder == PRECOMPUTED_TOKENS else load_text_encoder(run.text)
    region_extractor = build_region_extractor(run.image, "default")
    image_encoder = build_image_encoder(run.image, network)
    regions = region_shape(image_encoder or (region_extractor and region_extractor.net), features)
    dims = InputDims(
        tasks={task: len(labels) for task, labels in learned_tasks.items()},
        text_width=text_encoder.width if text_encoder else tokens_width(rows, features),
        region_width=regions[1],
        pooled_width=pooled_width(features),
        task_features=text_features.feature_dim(run.task_features),
    )
    model = mm_orient_model.Model(network, dims, image_encoder).to(get_device())
    config = {
        "model": run.model,
        "text": asdict(run.text),
        "picture": asdict(run.image),
        "task_features": asdict(run.task_features),
        "texts": features.text_kind,  # whether the aligned encoder supports them
        "regions": regions,
        "network": asdict(network),
        "shapes": asdict(dims),
        "labels": learned_tasks,
        "not_learned": [task for task in tasks if task not in learned_tasks],
        "parameters": count_parameters(model),
    }
    return MmOrientClassifier(
        mm_orient_model, model, text_encoder, region_extractor, run.task_features, config
    )


def load_text_encoder(config: MmOrientTextConfig) -> TextEncoder:
    return bert.load(config.encoder, 0, config.max_subwords)


def build_region_extractor(
    config: MmOrientImageConfig, weights: resnet.ResNetWeights
) -> RegionExtractor | None:
    """The frozen ResNet; None with another image encoder."""
    if config.encoder in (PRECOMPUTED_PATCHES, efficientnet.NAME):
        return None
    return RegionExtractor(config.encoder, weights, config.image_size, config.grid_size)


def build_image_encoder(
    config: MmOrientImageConfig, network: ModelConfig
) -> EfficientNetLite0 | None:
    """The EfficientNet that the model trains; None with another encoder, or if no regions are read.

    Raises InputError if the package has other weights.
    """
    if config.encoder != efficientnet.NAME or not network.reads_regions:
        return None
    return EfficientNetLite0(config.num_tuned_blocks, config.grid_size)


def fit_image_normalization(classifier: MmOrientClassifier, items: MemeDataset) -> None:
    """Standardize the regions of an EfficientNet by those of the images in `items`."""
    if classifier.model.image_encoder is not None:
        classifier.model.image_encoder.fit_normalization(items.images.regions)


def lr_multipliers(run: MmOrientRun) -> dict[str, float]:
    """Learning rate factors by prefix of the weights' names; an EfficientNet is pretrained."""
    return {"image_encoder.": run.image.lr_multiplier}


def tokens_width(rows: list[dict], features: Features) -> int:
    """D_t of the aligned encoder; 1 for a corpus without texts."""
    check_texts_supported([row["text"] for row in rows if row["text"]], features)
    return features.token_width or 1


def region_shape(encoder: EfficientNetLite0 | ResNet | None, features: Features) -> list[int]:
    """[P, D_v] of an image encoder or else of the patches; [1, 1] for a corpus without images."""
    if encoder is not None:
        return [encoder.cells, encoder.width]
    return list(features.patches.shape[1:]) if features.image_index else [1, 1]


def pooled_width(features: Features) -> int:
    """D of the aligned encoder; 1 if there are neither image nor text features."""
    pooled = features.pooled if features.text_kind == "learned" else features.text_pooled
    return pooled.shape[1] or 1


def save(classifier: MmOrientClassifier, folder: Path, encoder: Path) -> None:
    """Write the model and its encoders to `folder`. encoder: folder of the aligned encoder."""
    save_classifier(folder, classifier, classifier.text_encoder, encoder)
    encoder_weights = classifier.text_encoder and state_dict_to_save(classifier.text_encoder)
    if encoder_weights:
        save_file(encoder_weights, folder / TEXT_ENCODER_DIR / WEIGHTS_FILE)
    if classifier.region_extractor is not None:
        save_file(untied_state_dict(classifier.region_extractor.net), folder / REGION_WEIGHTS_FILE)
    text_features.save_toxicity_model(classifier.task_feature_config, folder / TOXICITY_DIR)


def restore(folder: Path) -> MmOrientClassifier:
    """Load the classifier that `save` wrote, in evaluation mode.

    Raises InputError if `folder` holds no model or weights that do not fit its config.
    """
    config, source = read_model_config(folder), f"{folder}/config.json"
    network = build_config(ModelConfig, config["network"], source)
    image = build_config(MmOrientImageConfig, config["picture"], source)
    model = mm_orient_model.Model(
        network,
        build_config(InputDims, config["shapes"], source),
        build_image_encoder(image, network),
    )
    load_weights(model, folder)
    text_encoder = (
        restore_text_encoder(folder / TEXT_ENCODER_DIR)
        if config["text"]["encoder"] != PRECOMPUTED_TOKENS
        else None
    )
    region_extractor = build_region_extractor(image, "none")
    if region_extractor is not None:
        region_extractor.net.load_state_dict(load_file(folder / REGION_WEIGHTS_FILE))
    task_features = build_config(text_features.TaskFeatureConfig, config["task_features"], source)
    if (folder / TOXICITY_DIR).is_dir():
        task_features = replace(task_features, toxicity_model=str(folder / TOXICITY_DIR))
    return MmOrientClassifier(
        mm_orient_model,
        model.to(get_device()).eval(),
        text_encoder,
        region_extractor,
        task_features,
        config,
    )


def restore_text_encoder(folder: Path) -> TextEncoder:
    """Load a text encoder that `save` wrote, in evaluation mode."""
    encoder = bert.restore(folder)
    # Absent if all weights come from an installed package.
    if (weights := folder / WEIGHTS_FILE).exists():
        encoder.load_state_dict(load_file(weights), strict=False)
    return encoder.eval()
