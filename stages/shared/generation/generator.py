"""A run: one model on one corpus, from params.yaml to a folder of weights that loads by path.

The folder holds model.safetensors, config.json (model, network, shapes, max_tokens, and of what it
was trained on the most pictures of an article and whether there were topics), the T5's
configuration, the tokenizer, and in encoder/ what turns raw pictures and topics into the features
that the model reads. It needs neither params.yaml nor a network.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.shared.core.config import fill, load
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.features.store import Features
from stages.shared.generation import decoders, decoding
from stages.shared.generation.article_dataset import Articles, paragraphs
from stages.shared.generation.chunk_dataset import Chunks, Limits
from stages.shared.modeling.registry import paper
from stages.shared.modeling.state_dict import unique
from stages.shared.runtime.stage import WrongInput
from stages.shared.torch_setup.devices import device, inference
from stages.shared.training.loop import Batch, Schedule, to_device


@dataclass(frozen=True)
class Watch:
    items: int
    max_drop: float


@dataclass(frozen=True)
class Generation:
    beams: int
    temperature: float
    top_p: float
    seed: int
    batch: int

    def __post_init__(self) -> None:
        if self.temperature and self.beams > 1:
            raise WrongInput("generation: draw (temperature) or search (beams), not both")


@dataclass(frozen=True)
class Run:
    model: str
    corpus: str
    decoder: str
    max_tokens: int
    sft: Schedule
    preference: Schedule
    watch: Watch
    generation: Generation


@dataclass(frozen=True)
class Written:
    """What a model wrote for the items of a batch, and what it attended to."""

    texts: list[list[str]]  # of each item, one for each of its chunks
    ids: Tensor  # (B, Y + 1), the first one that of the start
    memory: object  # of the paper's model


@dataclass
class Writer:
    """A model with what is needed to use and to save it."""

    paper: ModuleType
    model: torch.nn.Module
    tokenizer: object
    config: dict

    @property
    def limits(self) -> Limits:
        """The most that is read and written at once; no more pictures than it was trained on."""
        numbers = self.config["network"]
        pictures = min(numbers.get("pictures", 1), self.config["pictures"])
        return Limits(numbers["text_tokens"], self.config["max_tokens"], pictures)

    def items(self, rows: list[dict], features: Features) -> Chunks | Articles:
        """Rows of CHUNKS as what the model writes one text about: chunks or articles."""
        return self.paper.Items(rows, features, self.tokenizer, self.limits)

    def write(self, batch: Batch, generation: Generation) -> Written:
        """A text for each item of a batch. Whoever wants it drawn alike again seeds before."""
        batch = to_device(batch, next(self.model.parameters()).device)
        with inference():
            memory = self.model.remember(batch)
            ids = decoding.generate(
                self.model.t5,
                memory.hidden,
                memory.mask,
                self.config["max_tokens"],
                generation.beams,
                generation.temperature,
                generation.top_p,
            )
        return Written(self.texts(ids, batch), ids, memory)

    def texts(self, ids: Tensor, batch: Batch) -> list[list[str]]:
        """Written ids (B, Y + 1) as the texts of each item's chunks."""
        marks = decoders.sentinels(self.tokenizer, self.limits.pictures - 1)
        counts = batch["present"].sum(1).tolist() if "present" in batch else [1] * len(ids)
        found = [
            paragraphs(row, self.tokenizer, marks, count)
            for row, count in zip(ids[:, 1:].tolist(), counts, strict=True)
        ]
        if decoders.narrows(self.tokenizer):
            found = [[decoders.widen(text) for text in texts] for texts in found]
        return found


def network(run: Run):
    """The numbers of a run's model that its weights depend on."""
    return load(paper(run.model).Network, "models", run.model, "network")


def preference(run: Run):
    """The numbers of its preference objective."""
    return load(paper(run.model).Preference, "models", run.model, "preference")


def tiny() -> decoders.Params:
    return load(decoders.Params, "decoders")


def create(run: Run, rows: list[dict], features: Features) -> Writer:
    """A new writer for the features' shapes; the texts of its training chunks teach a tiny decoder
    its vocabulary."""
    module, sizes = paper(run.model), network(run)
    marks = getattr(sizes, "pictures", 1) - 1
    texts = [row["text"] for row in rows]
    t5, tokenizer = decoders.create(run.decoder, tiny(), sizes.d_model, texts, marks)
    shapes = module.shapes(features)
    of_record = Counter(record for record, _ in {(row["record"], row["position"]) for row in rows})
    config = {
        "model": run.model,
        "network": asdict(sizes),
        "shapes": asdict(shapes),
        "max_tokens": run.max_tokens,
        "pictures": max(of_record.values()),
        "topics": any(row["title"] for row in rows),
    }
    return Writer(module, module.Model(sizes, shapes, t5).to(device()), tokenizer, config)


def save(writer: Writer, folder: Path, encoder: Path) -> None:
    """Write the model and a copy of the encoder whose features it was trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(writer.config, indent=1))
    decoders.save(folder, writer.model.t5, writer.tokenizer)
    save_file(unique(writer.model), folder / "model.safetensors")
    copy_encoder(encoder, folder)


def restore(folder: Path) -> Writer:
    """The writer that `save` wrote, in evaluation mode. Raises WrongInput if it is not there."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise WrongInput(f"{folder} holds no trained model: run `dvc repro`") from None
    if lacking := sorted({"pictures", "topics"} - config.keys()):
        raise WrongInput(
            f"{folder}/config.json: missing {', '.join(lacking)}, older versions wrote none: run "
            "`dvc repro`"
        )
    module = paper(config["model"])
    t5, tokenizer = decoders.restore(folder)
    sizes = fill(module.Network, config["network"], f"{folder}/config.json")
    weights = load_file(folder / "model.safetensors")
    if "t5.lm_head.weight" in weights:  # `unique` leaves out a tied one
        decoders.untie(t5)
    model = module.Model(sizes, module.Shapes(**config["shapes"]), t5)
    if weights.keys() != unique(model).keys():
        raise WrongInput(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights, strict=False)  # strict would ask for tied weights again
    return Writer(module, model.to(device()).eval(), tokenizer, config)
