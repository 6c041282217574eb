"""Each paper preset at full size, with random weights: sizes as published, one training step.

Weights are written and loaded in the file formats of their sources, so that keys are checked too.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import numpy as np
import open_clip
import pytest
import torch
import torchvision
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertTokenizer, T5ForConditionalGeneration

from pipelines.cli import preset
from stages.models.mm_orient import model as mm_orient
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import model as muse
from stages.shared.backbones import bert
from stages.shared.backbones.resnet import ResNet
from stages.shared.core.config import load_config
from stages.shared.features.store import Features
from stages.shared.generation import generator as generators
from stages.shared.generation.decoders import untie_lm_head
from stages.shared.training.loop import LossTerms, sum_terms
from stages.train_classifier.mm_orient import RUN_CONFIG as MM_ORIENT_RUN
from stages.train_sft import load_sft_config
from tests.support import published_models as published
from tests.support import tiny_flexmuse
from tests.support.project_files import clone_project

pytestmark = pytest.mark.slow

WORDS = ["the", "fox", "sat", "under", "lamp"]


@pytest.fixture
def apply_preset(tmp_path, monkeypatch):
    """apply_preset(name): the parameter files of the current folder get its values."""
    monkeypatch.chdir(clone_project(tmp_path))
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return preset.apply_preset


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def from_config(config: dict) -> nn.Module:
    fields = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **fields))


def train_one_step(model: nn.Module, terms: LossTerms, learning_rate: float) -> None:
    """Update by AdamW: every weight has a finite gradient, and all but biases change."""
    trainable = {name: w for name, w in model.named_parameters() if w.requires_grad}
    assert all(torch.isfinite(term) for term in terms.values())
    sum_terms(terms).backward()
    assert [name for name, weight in trainable.items() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in trainable.values())
    before = {name: weight.detach().clone() for name, weight in trainable.items()}
    torch.optim.AdamW(trainable.values(), learning_rate, foreach=False).step()
    unchanged = [name for name, weight in trainable.items() if torch.equal(weight, before[name])]
    # A bias of zero that only shifts a softmax has no gradient and no decay.
    assert [name for name in unchanged if not name.endswith(".bias")] == []


def test_models_that_presets_name_have_the_published_sizes():
    with torch.device("meta"):
        t5 = T5ForConditionalGeneration(_t5_config())
        untie_lm_head(t5)
        assert count(t5) == published.MENGZI_T5_BASE_PARAMETERS
        assert count(from_config(published.BERT_BASE)) == published.BERT_BASE_PARAMETERS
        assert count(from_config(published.ROBERTA_BASE)) == published.ROBERTA_BASE_PARAMETERS
        clip = from_config(published.CHINESE_CLIP_BASE)
        millions = {
            name: round(count(clip.get_submodule(name)) / 1e6)
            for name in ("vision_model", "text_model")
        }
        assert round(count(clip) / 1e6) == 188 and millions == {
            "vision_model": 86,
            "text_model": 102,
        }
        vit = open_clip.CLIP(**_open_clip_config("ViT-B-32"))
        assert count(vit) == published.VIT_B_32_PARAMETERS


@pytest.mark.parametrize("name", ["resnet101", "resnet152"])
def test_resnets_without_their_last_layer_have_the_published_size(name):
    with torch.device("meta"):
        encoder = ResNet(name, "none", grid=8)
    meta = torchvision.models.get_model_weights(name)["DEFAULT"].meta
    assert count(encoder) == meta["num_params"] - published.RESNET_CLASSIFICATION_LAYER


def _t5_config():
    fields = {key: v for key, v in published.MENGZI_T5_BASE.items() if key != "model_type"}
    return AutoConfig.for_model("t5", **fields)


def _open_clip_config(name: str) -> dict:
    config = open_clip.get_model_config(name)
    assert config
    return config


@pytest.fixture(scope="module")
def mengzi(tmp_path_factory) -> Iterator[Path]:
    """A folder with the files of Langboat/mengzi-t5-base, its weights random; 1 GB."""
    folder = tmp_path_factory.mktemp("mengzi")
    tiny_flexmuse.save_published_t5(folder)
    (folder / "config.json").write_text(json.dumps(published.MENGZI_T5_BASE))
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(_t5_config())
    untie_lm_head(t5)
    nn.init.normal_(t5.lm_head.weight)  # transformers ties weights that are equal
    torch.save(t5.state_dict(), folder / "pytorch_model.bin")
    del t5
    yield folder
    (folder / "pytorch_model.bin").unlink()


def make_features(num_images: int, num_titles: int) -> Features:
    """What Chinese-CLIP ViT-B/16 computes: 14 x 14 patches and a class token, width 768 and 512."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype("f2")

    def unit(rows: int) -> np.ndarray:
        values = random.normal(size=(rows, 512))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("f2")

    return Features(
        image_index={str(number): number for number in range(num_images)},
        pooled=unit(num_images),
        patches=normal(num_images, 197, 768),
        text_kind="encoder",
        text_index={f"title {number}": number for number in range(num_titles)},
        text_pooled=unit(num_titles),
        tokens=normal(num_titles, 12, 768),
        token_mask=np.ones((num_titles, 12), bool),
        subwords=[["字"] * 12] * num_titles,
    )


def make_rows(sizes: tuple[int, ...]) -> list[dict]:
    """CHUNKS rows of articles with these numbers of images."""
    places = [(record, position) for record, size in enumerate(sizes) for position in range(size)]
    return [
        {
            "record": f"r{record}",
            "position": position,
            "split": "train",
            "language": "zh",
            "title": f"title {record}",
            "image": str(image),
            "text": tiny_flexmuse.CHINESE_TEXTS[image % 5],
            "references": [tiny_flexmuse.CHINESE_TEXTS[image % 5]],
        }
        for image, (record, position) in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("paper_flexmuse", "flexmuse"),
        ("paper_tippo", "tippo"),
        ("paper_tippo", "tippo_captions"),
    ],
)
def test_a_generator_of_full_size_is_trained_one_step(mengzi, apply_preset, name, run):
    apply_preset(name)
    config = load_sft_config(run)
    assert config.run.decoder == "Langboat/mengzi-t5-base"
    assert load_config(str, "align", "encoder") == "hf:OFA-Sys/chinese-clip-vit-base-patch16"
    sizes = (1, 1) if run == "tippo_captions" else (3, 5)
    rows, features = make_rows(sizes), make_features(sum(sizes), len(sizes))
    run_config = replace(config.run, decoder=str(mengzi))
    torch.manual_seed(0)
    generator = generators.create_generator(
        run_config, config.network, config.decoders, rows, features
    )
    t5 = generator.model.t5
    assert t5.lm_head.weight is not t5.shared.weight  # as in the checkpoint
    # The papers replace the T5's encoder; TIPPo embeds each image's paragraph.
    paragraphs = 0 if config.run.model == "flexmuse" else config.network.max_images * 768
    decoder = published.MENGZI_T5_BASE_PARAMETERS - published.MENGZI_T5_BASE_ENCODER_PARAMETERS
    assert config.network.t5_input == "encoder_outputs" and count(t5) == decoder + paragraphs
    items = generator.build_dataset(rows, features)
    batch = items.batch([0, 1]) | {"progress": torch.tensor(0.5)}  # as the training loop adds it
    result = generator.paper.sft_loss(generator.model.train(), batch)
    train_one_step(generator.model, result.terms, config.run.sft.learning_rate)


@pytest.fixture(scope="module")
def bert_base(tmp_path_factory) -> Iterator[Path]:
    """A folder with the files of bert-base-uncased, its weights random."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    from_config(published.BERT_BASE).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    BertTokenizer(vocab={word: i for i, word in enumerate([*special, *WORDS])}).save_pretrained(
        folder
    )
    yield folder
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("run", ["muse_entities", "muse_sentiment"])
def test_muse_of_full_size_is_trained_one_step(bert_base, apply_preset, run, tmp_path, monkeypatch):
    apply_preset("paper_muse")
    if run == "muse_sentiment":
        apply_preset("paper_muse_posts")
    config = load_config(muse_checkpoint.MuseRun, "classifiers", run)
    network = load_config(muse.ModelConfig, "models", "muse", "network")
    assert (config.text.encoder, config.text.num_tuned_layers) == ("bert-base-uncased", "all")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.get_model_weights(config.image.encoder)[config.image.weights].url
    assert Path(url).name == "resnet152-394f9c45.pth"  # V1
    (tmp_path / "checkpoints").mkdir()
    weights = torchvision.models.get_model(config.image.encoder).state_dict()
    torch.save(weights, tmp_path / "checkpoints" / Path(url).name)

    torch.manual_seed(0)
    text = bert.load(str(bert_base), "all", config.text.max_subwords)
    image = ResNet(config.image.encoder, config.image.weights, config.image.grid_size)
    assert count(text) == published.BERT_BASE_PARAMETERS - 768 * 769  # no pooler
    dims = muse.InputDims(
        task="entities" if run == "muse_entities" else "sentiment",
        labels=9 if run == "muse_entities" else 3,  # BIO tags of four types
        text_width=768,
        cells=64,
        cell_width=2048,
        words=500,
    )
    model = muse.Model(network, dims, text, image).train()
    batch = make_muse_batch(2, config, network)
    train_one_step(model, muse.compute_loss(model, batch), config.training.learning_rate)
    # Of PixelCNN++ alone: the gradient of a ResNet-152 with random weights is in the thousands.
    gradients = [weight.grad for weight in model.drawer.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert nn.utils.get_total_norm(gradients) < 100


def make_muse_batch(size: int, config, network) -> dict[str, Tensor]:
    """Items with the maximum number of subwords, each a word."""
    length, side = config.text.max_subwords, config.image.image_size
    drawing = network.image_generation.decoder.image_size
    ids = torch.randint(5, 10, (size, length + 2))
    ids[:, 0], ids[:, -1] = 2, 3  # [CLS], [SEP]
    caption = torch.randint(4, 500, (size, network.captioning.max_length))
    return {
        "ids": ids,
        "pieces_mask": torch.ones(size, length, dtype=torch.bool),
        "first": torch.arange(length).repeat(size, 1),
        "word_mask": torch.ones(size, length, dtype=torch.bool),
        "tags": torch.randint(9, (size, length)),
        "label": torch.randint(3, (size,)),
        "caption": caption,
        "picture": torch.randn(size, 3, side, side),
        "drawing": torch.randint(256, (size, 3, drawing, drawing)) / 127.5 - 1,
        "has_picture": torch.ones(size, dtype=torch.bool),
        "has_text": torch.ones(size, dtype=torch.bool),
    }


def test_mm_orient_of_full_size_is_trained_one_step(apply_preset):
    apply_preset("paper_mm_orient")
    config = load_config(MM_ORIENT_RUN, "classifiers", "mm_orient")
    network = load_config(mm_orient.ModelConfig, "models", "mm_orient", "network")
    assert load_config(str, "align", "encoder") == "openclip:ViT-B-32/openai"
    assert (config.text.encoder, config.image.encoder) == ("bert-base-uncased", "resnet101")
    # Memotion (arXiv:2008.03781): sentiment, humour, sarcasm, offence, motivation.
    tasks = {"sentiment": 3, "humour": 4, "sarcasm": 4, "offensive": 4, "motivational": 2}
    num_features = 768 + 20
    dims = mm_orient.InputDims(
        tasks=tasks,
        text_width=768,
        region_width=2048,
        pooled_width=512,
        task_features=num_features,
    )
    torch.manual_seed(0)
    model = mm_orient.Model(network, dims)
    bank = make_memes(network.relations.memory_bank_size, dims, subwords=1, regions=1)
    mm_orient.fit_statistics(model, bank)
    batch = make_memes(8, dims, config.text.max_subwords, config.image.grid_size**2)
    terms = mm_orient.compute_loss(model.train(), batch)
    train_one_step(model, terms, config.training.learning_rate)


def make_memes(size: int, dims, subwords: int, regions: int) -> dict[str, Tensor]:
    def unit() -> Tensor:
        return nn.functional.normalize(torch.randn(size, dims.pooled_width), dim=-1)

    return {
        "tokens": torch.randn(size, subwords, dims.text_width),
        "token_mask": torch.ones(size, subwords, dtype=torch.bool),
        "regions": torch.randn(size, regions, dims.region_width),
        "text_clip": unit(),
        "picture_clip": unit(),
        "task_features": torch.randn(size, dims.task_features),
        "has_text": torch.ones(size, dtype=torch.bool),
        "has_picture": torch.ones(size, dtype=torch.bool),
        "labels": torch.stack([torch.randint(n, (size,)) for n in dims.tasks.values()], 1),
    }
