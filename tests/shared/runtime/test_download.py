"""Weights that params name are downloaded, kept, resumed, verified and used offline.

A server on this machine stands in for the Hugging Face Hub and for release pages; clients, file
formats and caches are the real ones.
"""

import json
import os
import subprocess
import sys
from hashlib import md5, sha256
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before torchvision)

import pytest
import torch
import torchvision

from stages.inpaint import inpainters
from stages.shared.backbones.resnet import ResNet
from stages.shared.generation import decoders
from stages.shared.runtime import download
from stages.shared.runtime.stage import InputError
from tests.support import color_caption_corpus, model_hub, tiny_bert, tiny_clip, tiny_flexmuse
from tests.support.project_files import ROOT

READ_SIZE = 10 << 20  # bytes that huggingface_hub writes at once
MODELS = ["bert", "roberta", "t5", "clip", "openclip", "diffusion"]

# Loads a model of each kind as its stage does, and prints the outcome as a line of JSON. Arguments:
# the owner of the models, the folder of an architecture of open_clip, a corpus, an output folder.
LOAD_MODELS = """
import json, sys
from dataclasses import replace
from pathlib import Path
import stages.shared.torch_setup.torchvision_ops
import open_clip
from stages.align import __main__ as align
from stages.illustrate import base, diffusion
from stages.shared.backbones import bert
from stages.shared.core.config import load_config
from stages.shared.encoders.extract import EmbedConfig
from stages.shared.generation import decoders
from stages.shared.runtime.stage import InputError

owner, architecture, corpus, output = sys.argv[1:]
open_clip.add_model_config(architecture)
weights = {"random": {"hf_hub": f"{owner}/openclip/"}}
open_clip.pretrained._PRETRAINED[Path(architecture).stem] = weights

def run_align(name):
    config = replace(load_config(align.AlignConfig, "align"), encoder=name, languages=["en"])
    inputs = [Path(corpus, part) for part in ("ingest", "chunks", "pairs")]
    align.main(config, load_config(EmbedConfig, "embed"), *inputs, Path(output, owner, name[:4]))

decoder = load_config(decoders.DecoderConfig, "decoders")
illustrate = load_config(base.IllustrateConfig, "illustrate")
loaders = {
    "bert": lambda: bert.load(f"{owner}/bert", 1, 8),
    "roberta": lambda: bert.load(f"{owner}/roberta", 0, 8),
    "t5": lambda: decoders.create_decoder(f"{owner}/t5", decoder, 16, [], 0),
    "clip": lambda: run_align(f"hf:{owner}/clip"),
    "openclip": lambda: run_align(f"openclip:{Path(architecture).stem}/random"),
    "diffusion": lambda: diffusion.load(f"{owner}/diffusion", illustrate, None).pipeline,
}
for kind, load in loaders.items():
    try:
        load()
        print(json.dumps([kind, ""]))
    except InputError as error:
        print(json.dumps([kind, str(error)]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of tiny models in the formats of their libraries, by kind."""
    from tests.support import tiny_diffusion

    folder = tmp_path_factory.mktemp("models")
    tiny_bert.save_bert(folder / "bert")
    tiny_bert.save_roberta(folder / "roberta")
    tiny_flexmuse.build_t5(vocabulary=250_000).save_pretrained(folder / "t5")  # 16 MB
    decoders.train_tokenizer(tiny_flexmuse.TEXTS, 300).save_pretrained(folder / "t5")
    tiny_clip.save_clip(folder / "clip")
    tiny_clip.save_openclip(folder / "openclip")
    tiny_diffusion.save_pipeline(folder / "diffusion")
    (folder / "tiny-vit.json").write_text(json.dumps(tiny_clip.OPEN_CLIP_CONFIG))
    return folder


class Client:
    """Runs LOAD_MODELS in a process of its own, with empty caches at first."""

    def __init__(self, hub: model_hub.ModelHub, models: Path, folder: Path):
        self.models, self.folder = models, folder
        self.corpus = color_caption_corpus.write_caption_corpus(folder / "corpus")
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "POLYMUSE_MAY"))}
        self.environment = keep | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(folder / "huggingface"),
            "POLYMUSE_HOME": str(folder / "home"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }

    def load_models(self, owner: str, **environment: str) -> tuple[dict[str, str], str]:
        """The error of each kind ("": none), and what was printed on standard error."""
        arguments = [owner, self.models / "tiny-vit.json", self.corpus, self.folder]
        done = subprocess.run(
            [sys.executable, "-c", LOAD_MODELS, *map(str, arguments)],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return dict(map(json.loads, done.stdout.splitlines())), done.stderr


@pytest.fixture
def hub():
    with model_hub.serve_models() as server:
        yield server


@pytest.mark.slow
def test_named_models_are_downloaded_once_resumed_and_then_used_offline(hub, models, tmp_path):
    for kind in MODELS:
        hub.add(f"tiny/{kind}", models / kind)
    weights = "/cdn/tiny--t5/model.safetensors"
    hub.state.cuts[weights] = READ_SIZE + 1000
    client = Client(hub, models, tmp_path)
    errors, log = client.load_models("tiny")
    assert errors == dict.fromkeys(MODELS, "")

    ranges = [request.range for request in hub.state.downloads(weights)]
    assert ranges == [None, f"bytes={READ_SIZE}-"]
    assert len(hub.state.downloads("/cdn/tiny--bert/model.safetensors")) == 1
    cache = tmp_path / "huggingface" / "hub" / "models--tiny--t5" / "snapshots"
    (cached,) = cache.glob("*/model.safetensors")
    assert cached.read_bytes() == (models / "t5" / "model.safetensors").read_bytes()
    assert log.splitlines().count("download open_clip_model.safetensors") == 1
    asked = {request.path.partition("?")[0] for request in hub.state.requests}
    assert not [path for path in asked if "commits" in path or "discussions" in path]

    hub.shutdown()
    hub.server_close()
    errors, log = client.load_models("tiny", HF_HUB_OFFLINE="1")
    assert errors == dict.fromkeys(MODELS, "") and "download " not in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "reason"),
    [("gated", "its license must be accepted"), ("nobody", "the hub has no such model")],
)
def test_a_model_that_may_not_be_read_is_named_in_one_sentence(
    hub, models, tmp_path, owner, reason
):
    for kind in MODELS:
        hub.add(f"gated/{kind}", models / kind, gated=True)
    errors, _ = Client(hub, models, tmp_path).load_models(owner)
    names = {kind: f"{owner}/{kind}" for kind in MODELS} | {"openclip": "tiny-vit/random"}
    for kind, error in errors.items():
        assert names[kind] in error and reason in error and "\n" not in error
    assert errors.keys() == names.keys() and not hub.state.downloads(".safetensors")


@pytest.fixture
def online(monkeypatch):
    """Downloads are allowed."""
    monkeypatch.setenv("POLYMUSE_MAY_LIFT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


class Gray(torch.nn.Module):
    """LaMa's inputs and outputs; its buffer makes the file longer than one read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("values", torch.rand(READ_SIZE // 4 + 1000))

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return image * (1 - mask) + 0.5 * mask


@pytest.fixture
def lama(hub, online, tmp_path, monkeypatch) -> bytes:
    """The content of a TorchScript file at LAMA_URL, whose checksum is expected."""
    torch.jit.script(Gray()).save(tmp_path / "gray.pt")
    content = (tmp_path / "gray.pt").read_bytes()
    hub.state.files["/v0.1.0/big-lama.pt"] = content
    monkeypatch.setattr(inpainters, "LAMA_URL", f"{hub.address}/v0.1.0/big-lama.pt")
    digest = md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(inpainters, "LAMA_MD5", digest)
    monkeypatch.delenv("LAMA_MODEL", raising=False)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return content


def ranges_of(hub, suffix: str) -> list[str | None]:
    return [request.range for request in hub.state.downloads(suffix)]


def test_lama_is_downloaded_once_with_progress_and_then_used_offline(hub, lama, monkeypatch, capfd):
    path = inpainters.find_lama_weights()
    assert path.read_bytes() == lama and [p.name for p in path.parent.glob("*.inc*")] == []
    assert "download big-lama.pt: 100%" in capfd.readouterr().err
    monkeypatch.setenv("POLYMUSE_MAY_LIFT_OFFLINE", "0")
    assert inpainters.find_lama_weights() == path
    assert ranges_of(hub, "/big-lama.pt") == [None]


def test_lama_is_resumed_where_the_connection_broke(hub, lama):
    hub.state.cuts["/v0.1.0/big-lama.pt"] = READ_SIZE + 500
    assert inpainters.find_lama_weights().read_bytes() == lama
    assert ranges_of(hub, "/big-lama.pt") == [None, f"bytes={READ_SIZE}-"]


@pytest.mark.parametrize("received", [5000, None])
def test_what_a_killed_process_received_is_not_requested_again(hub, lama, tmp_path, received):
    """None: all was received, but not yet renamed."""
    partial = tmp_path / "home" / "weights" / "big-lama.pt.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(lama[:received])
    assert inpainters.find_lama_weights().read_bytes() == lama
    assert ranges_of(hub, "/big-lama.pt") == ([f"bytes={received}-"] if received else [])
    assert not partial.exists()


def test_a_file_with_another_checksum_is_refused_and_downloaded_anew_next_time(
    hub, lama, monkeypatch
):
    hub.state.files["/v0.1.0/big-lama.pt"] = lama[:-1] + b"?"
    with pytest.raises(InputError, match=f"md5 checksum is not {inpainters.LAMA_MD5}") as raised:
        inpainters.find_lama_weights()
    assert "\n" not in str(raised.value)
    hub.state.files["/v0.1.0/big-lama.pt"] = lama
    assert inpainters.find_lama_weights().read_bytes() == lama


def test_a_longer_file_than_was_left_behind_is_refused(hub, lama, tmp_path):
    """The server has fewer bytes than the partial file: it answers 416."""
    partial = tmp_path / "home" / "weights" / "big-lama.pt.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(lama + b"more")
    assert inpainters.find_lama_weights().read_bytes() == lama


def test_a_missing_address_is_one_sentence(hub, lama):
    hub.state.files.clear()
    with pytest.raises(InputError, match=r"backend lama could not be loaded \(.*404") as raised:
        inpainters.find_lama_weights()
    assert "\n" not in str(raised.value)


@pytest.fixture
def resnet18(hub, online, tmp_path, monkeypatch):
    """ResNet-18 with random weights, behind the address that torchvision has for it."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    name = f"/models/resnet18-{sha256(content).hexdigest()[:8]}.pth"
    hub.state.files[name] = content
    default = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(default.value, "url", f"{hub.address}{name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return model, name


def test_resnet_weights_are_resumed_checked_and_cached_where_torch_expects_them(
    hub, resnet18, tmp_path, monkeypatch
):
    model, name = resnet18
    hub.state.cuts[name] = READ_SIZE + 500
    encoder = ResNet("resnet18", "default", grid=2)
    assert torch.equal(encoder.stem[0].weight, model.conv1.weight)
    assert ranges_of(hub, name) == [None, f"bytes={READ_SIZE}-"]
    assert (tmp_path / "hub" / "checkpoints" / Path(name).name).is_file()
    monkeypatch.setenv("POLYMUSE_MAY_LIFT_OFFLINE", "0")
    ResNet("resnet18", "default", grid=2)
    assert len(ranges_of(hub, name)) == 2


def test_missing_resnet_weights_are_one_sentence(hub, resnet18):
    hub.state.files.clear()
    with pytest.raises(InputError, match=r"resnet18 .* could not be loaded \(.*404") as raised:
        ResNet("resnet18", "default", grid=2)
    assert "\n" not in str(raised.value)


def test_resnet_weights_with_another_checksum_are_refused(hub, resnet18, tmp_path):
    name = resnet18[1]
    hub.state.files[name] = hub.state.files[name][:-1] + b"?"
    with pytest.raises(InputError, match=r"resnet18 .* sha256 checksum is not"):
        ResNet("resnet18", "default", grid=2)
    assert not list((tmp_path / "hub" / "checkpoints").glob("*.pth"))


def test_a_file_that_exists_is_not_requested(hub, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    download.download_file(f"{hub.address}/file", tmp_path / "file", "md5", "0")
    assert not hub.state.requests
