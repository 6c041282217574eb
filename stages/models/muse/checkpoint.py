"""A MuSE classifier of one corpus of tweets or posts: create, save and restore it.

The files of a saved classifier are those in stages/shared/backbones/classifier.py. config.json also
has the caption vocabulary and the training data; the weights of the text encoder are those of the
model.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from stages.models.muse import model as muse_model
from stages.models.muse.dataset import (
    OUTSIDE_TAG,
    LabelCodec,
    Task,
    TextImageDataset,
    collect_labels,
    get_caption_words,
)
from stages.models.muse.model import InputDims, ModelConfig, MusePredictions
from stages.models.muse.patch_pooling import PatchPooling
from stages.models.muse.show_attend_tell import Vocabulary
from stages.shared.backbones import bert, efficientnet, resnet
from stages.shared.backbones.classifier import (
    PRECOMPUTED_PATCHES,
    TEXT_ENCODER_DIR,
    ClassifierPaper,
    check_language,
    count_parameters,
    load_weights,
    read_model_config,
    save_classifier,
)
from stages.shared.backbones.efficientnet import EfficientNetLite0
from stages.shared.backbones.resnet import ResNet
from stages.shared.core.config import Field, build_config, config_class
from stages.shared.data import image_store
from stages.shared.features.store import Features
from stages.shared.modeling.layers import iter_blocks
from stages.shared.pretrained import efficientnet_lite0
from stages.shared.torch_setup.devices import get_device
from stages.shared.training.schedule import Schedule

ImageEncoder = PatchPooling | EfficientNetLite0 | ResNet


@config_class
class MuseTextConfig:
    encoder: str = Field(description="minilm, or a BERT by its Hugging Face name")
    num_tuned_layers: int | Literal["all"] = Field(
        description="last encoder layers that are trained, or all"
    )
    max_subwords: int = Field(ge=1, description="maximum length of a text, subwords")
    lr_multiplier: float = Field(ge=0, description="its learning rate relative to other weights")
    use_case_embeddings: bool = Field(
        description="whether it learns vectors for lower, title and upper case"
    )
    shorten_urls: bool = Field(description="whether it reads a URL as its scheme, one subword")


@config_class
class MuseImageConfig:
    encoder: Literal["patches", "efficientnet-lite0", resnet.ResNetName] = Field(
        description="patches of the aligned encoder, efficientnet-lite0, or a ResNet on pixels"
    )
    weights: resnet.ResNetWeights = Field(
        description="initial weights of a ResNet, torchvision's tag"
    )
    num_tuned_blocks: int = Field(
        ge=1,
        le=efficientnet_lite0.NUM_BLOCKS,
        description="last blocks of efficientnet-lite0 that are trained",
    )
    image_size: int = Field(
        ge=resnet.MIN_IMAGE_SIZE, description="side of a ResNet's input images, pixels"
    )
    grid_size: int = Field(ge=1, description="cells a side; patches or pixels are averaged to them")
    lr_multiplier: float = Field(
        ge=0, description="learning rate of efficientnet-lite0 or a ResNet, relative"
    )


@config_class
class MuseRun:
    model: str = Field(description="folder of stages/models")
    corpus: str = Field(description="name in the section corpora")
    records: str = Field(description="stage folder of the records")
    images: str = Field(description="stage folder of the images")
    text: MuseTextConfig
    image: MuseImageConfig
    training: Schedule
    eval_batch_size: int = Field(ge=1, description="items of a batch when labeling")


@dataclass
class MuseClassifier:
    """A model with everything that is needed to use and to save it."""

    paper: ClassifierPaper[MusePredictions]
    model: muse_model.Model
    codec: LabelCodec
    config: dict  # the content of config.json

    def build_dataset(self, rows: list[dict], features: Features, ingest: Path) -> TextImageDataset:
        """The dataset of rows of CLEAN_RECORDS.

        features: what embed computed of their images; ingest: the folder whose images/ has them
        """
        files = image_store.load_image_bytes(
            ingest / "images", {row["image"] for row in rows} - {None}
        )
        return TextImageDataset(rows, self.codec, features, files).cache_hidden_states()

    def decode_labels(
        self, label_ids: list[list[int]], items: TextImageDataset, indices: list[int]
    ) -> list[list[str]]:
        """Names of predicted labels; words of a tweet beyond the encoder's limit are tagged O."""
        names = [[self.codec.labels[label_id] for label_id in row] for row in label_ids]
        if self.codec.task == "entities":
            for row, index in zip(names, indices, strict=True):
                row += [OUTSIDE_TAG] * items.num_truncated_words(index)
        return names


def fit_image_normalization(classifier: MuseClassifier, items: TextImageDataset) -> None:
    """Standardize the cells of an EfficientNet by those of the images in `items`."""
    if items.image_states is not None:
        encoder = classifier.model.image_encoder
        assert isinstance(encoder, EfficientNetLite0)
        encoder.fit_normalization(items.image_states)


def lr_multipliers(run: MuseRun, network: ModelConfig) -> dict[str, float]:
    """Learning rate factors by prefix of the weights' names.

    Pretrained weights learn slower; the image decoder, which only regularizes, learns faster.
    """
    return {
        "text_encoder.": run.text.lr_multiplier,
        "text_encoder.case_embeddings.": 1.0,  # not pretrained
        "image_encoder.": run.image.lr_multiplier,
        "drawer.": network.image_generation.lr_multiplier,
    }


def create(
    run: MuseRun, network: ModelConfig, rows: list[dict], task: Task, features: Features
) -> MuseClassifier:
    """A new classifier, whose labels and caption vocabulary come from these train rows.

    Raises InputError if the text encoder does not support the language of most rows.
    """
    check_language(run, rows)
    text_encoder = bert.load(
        run.text.encoder,
        run.text.num_tuned_layers,
        run.text.max_subwords,
        run.text.use_case_embeddings,
    )
    labels = collect_labels(rows, task)
    vocabulary = Vocabulary(map(get_caption_words, rows), network.captioning.min_count)
    images = sorted({features.image_index[row["image"]] for row in rows if row["image"]})
    patches = patch_shape(features, run.image.grid_size)
    image_encoder = build_image_encoder(run.image, patches)
    if isinstance(image_encoder, PatchPooling):
        image_encoder.fit_normalization(iter_blocks(features.patches, images))
    shapes = InputDims(
        task=task,
        labels=len(labels),
        text_width=text_encoder.width,
        cells=image_encoder.cells,
        cell_width=image_encoder.width,
        words=len(vocabulary),
    )
    model = muse_model.Model(network, shapes, text_encoder, image_encoder)
    config = {
        "model": run.model,
        "text": asdict(run.text),
        "picture": asdict(run.image),
        "pictures": len(images),  # of the train split
        "patches": list(patches),
        "network": asdict(network),
        "shapes": asdict(shapes),
        "labels": labels,
        "vocabulary": vocabulary.to_json(),
        "parameters": count_parameters(model),
    }
    return _build_classifier(model.to(get_device()), config)


def patch_shape(features: Features, grid: int) -> tuple[int, int]:
    """The number P of patches of an image and their width D_v.

    A corpus without images has P = grid * grid, D_v = 1.
    """
    if not features.image_index:
        return grid * grid, 1
    _, num_patches, width = features.patches.shape
    return num_patches, width


def build_image_encoder(image: MuseImageConfig, patches: tuple[int, int]) -> ImageEncoder:
    """The module that computes cells from images; patches: their number and width."""
    if image.encoder == PRECOMPUTED_PATCHES:
        return PatchPooling(*patches, image.grid_size)
    if image.encoder == efficientnet.NAME:
        return EfficientNetLite0(image.num_tuned_blocks, image.grid_size)
    return ResNet(image.encoder, image.weights, image.grid_size)


def _build_classifier(model: muse_model.Model, config: dict) -> MuseClassifier:
    network = model.network
    image = build_config(MuseImageConfig, config["picture"], "config.json")
    generator = network.image_generation.decoder if network.use_image_generation else None
    encoder = None if network.fusion == "text" else model.image_encoder
    codec = LabelCodec(
        task=config["shapes"]["task"],
        text_encoder=model.text_encoder,
        shorten_urls=config["text"]["shorten_urls"],
        labels=config["labels"],
        vocabulary=Vocabulary.from_json(config["vocabulary"]),
        max_caption_ids=network.captioning.max_length,
        drawing_size=generator.image_size if generator else None,
        image_size=None if image.encoder == PRECOMPUTED_PATCHES else image.image_size,
        frozen_blocks=encoder.frozen if isinstance(encoder, EfficientNetLite0) else None,
    )
    return MuseClassifier(muse_model, model, codec, config)


def save(classifier: MuseClassifier, folder: Path, encoder: Path) -> None:
    """Write the classifier and, if it reads patches, a copy of the aligned encoder."""
    codec = classifier.codec
    save_classifier(
        folder, classifier, codec.text_encoder, encoder if codec.reads_patches else None
    )


def restore(folder: Path) -> MuseClassifier:
    """The classifier that `save` wrote, in evaluation mode.

    Raises InputError if the folder has no model, or weights of another one.
    """
    config, config_file = read_model_config(folder), f"{folder}/config.json"
    image = build_config(MuseImageConfig, config["picture"], config_file)
    model = muse_model.Model(
        build_config(ModelConfig, config["network"], config_file),
        build_config(InputDims, config["shapes"], config_file),
        bert.restore(folder / TEXT_ENCODER_DIR),
        build_image_encoder(replace(image, weights="none"), config["patches"]),
    )
    load_weights(model, folder)
    return _build_classifier(model.to(get_device()).eval(), config)
