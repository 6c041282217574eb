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

from stages.shared.core.config import Field, build_config, config_class, load_config
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.features.store import Features
from stages.shared.generation import decoders, decoding
from stages.shared.generation.article_dataset import ArticleDataset, split_paragraphs
from stages.shared.generation.chunk_dataset import ChunkDataset, LengthLimits
from stages.shared.modeling.registry import load_paper
from stages.shared.modeling.state_dict import untied_state_dict
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device, inference_context
from stages.shared.training.batching import Batch, to_device
from stages.shared.training.schedule import Schedule


@config_class
class QualityMonitorConfig:
    """Limits on how far generated validation texts may get worse in the preference phase."""

    max_eval_samples: int = Field(ge=1, description="validation items generated at each validation")
    max_score_drop: float = Field(description="drop of the mean score (0 to 1) that ends the phase")


@config_class
class GenerationConfig:
    """How texts are decoded."""

    num_beams: int = Field(ge=1, description="beams of beam search; 1: no search")
    temperature: float = Field(ge=0, description="sampling temperature; 0: greedy or beam search")
    top_p: float = Field(description="probability mass of nucleus sampling, 0 to 1")
    seed: int = Field(description="seed of sampling")
    batch_size: int = Field(ge=1, description="items per batch")

    def __post_init__(self) -> None:
        if self.temperature and self.num_beams > 1:
            raise ValueError("set temperature (sampling) or num_beams (beam search), not both")


@config_class
class GeneratorRun:
    """One row of `generators`: a model, its corpus, its decoder and both training phases."""

    model: str = Field(description="a folder of stages/models")
    corpus: str = Field(description="a key of `corpora`")
    decoder: str = Field(description="tiny, or a T5 by its Hugging Face name")
    max_tokens: int = Field(ge=1, description="tokens per text; longer texts are truncated")
    sft: Schedule = Field(description="supervised fine-tuning")
    preference: Schedule = Field(description="preference optimization")
    quality_monitor: QualityMonitorConfig = Field(description="stops a degrading preference phase")
    generation: GenerationConfig = Field(description="decoding of texts")


@dataclass(frozen=True)
class Generation:
    """What a model wrote for the items of a batch, and what it attended to."""

    texts: list[list[str]]  # of each item, one for each of its chunks
    token_ids: Tensor  # (B, Y + 1), the first one that of the start
    encoder_output: object  # of the paper's model


@dataclass
class TextGenerator:
    """A model with what is needed to use and to save it."""

    paper: ModuleType
    model: torch.nn.Module
    tokenizer: object
    config: dict

    @property
    def limits(self) -> LengthLimits:
        """The most that is read and written at once; no more pictures than it was trained on."""
        numbers = self.config["network"]
        pictures = min(numbers.get("max_images", 1), self.config["pictures"])
        return LengthLimits(numbers["max_topic_tokens"], self.config["max_tokens"], pictures)

    def build_dataset(self, rows: list[dict], features: Features) -> ChunkDataset | ArticleDataset:
        """Rows of CHUNKS as what the model writes one text about: chunks or articles."""
        return self.paper.Dataset(rows, features, self.tokenizer, self.limits)

    def generate(self, batch: Batch, generation: GenerationConfig) -> Generation:
        """A text for each item of a batch. Whoever wants it drawn alike again seeds before."""
        batch = to_device(batch, next(self.model.parameters()).device)
        with inference_context():
            memory = self.model.encode(batch)
            ids = decoding.generate(
                self.model.t5,
                memory.hidden,
                memory.mask,
                self.config["max_tokens"],
                generation.num_beams,
                generation.temperature,
                generation.top_p,
            )
        return Generation(self.decode_texts(ids, batch), ids, memory)

    def decode_texts(self, ids: Tensor, batch: Batch) -> list[list[str]]:
        """Written ids (B, Y + 1) as the texts of each item's chunks."""
        marks = decoders.get_sentinel_ids(self.tokenizer, self.limits.max_images - 1)
        counts = batch["present"].sum(1).tolist() if "present" in batch else [1] * len(ids)
        found = [
            split_paragraphs(row, self.tokenizer, marks, count)
            for row, count in zip(ids[:, 1:].tolist(), counts, strict=True)
        ]
        if decoders.maps_punctuation_to_ascii(self.tokenizer):
            found = [[decoders.restore_full_width(text) for text in texts] for texts in found]
        return found


def load_model_config(run: GeneratorRun):
    """The numbers of a run's model that its weights depend on."""
    return load_config(load_paper(run.model).ModelConfig, "models", run.model, "network")


def load_preference_config(run: GeneratorRun):
    """The numbers of its preference objective."""
    return load_config(load_paper(run.model).PreferenceConfig, "models", run.model, "preference")


def load_decoder_config() -> decoders.DecoderConfig:
    return load_config(decoders.DecoderConfig, "decoders")


def create_generator(run: GeneratorRun, rows: list[dict], features: Features) -> TextGenerator:
    """A new writer for the features' shapes; the texts of its training chunks teach a tiny decoder
    its vocabulary."""
    module, sizes = load_paper(run.model), load_model_config(run)
    marks = getattr(sizes, "max_images", 1) - 1
    texts = [row["text"] for row in rows]
    t5, tokenizer = decoders.create_decoder(
        run.decoder, load_decoder_config(), sizes.d_model, texts, marks
    )
    shapes = module.infer_input_dims(features)
    of_record = Counter(record for record, _ in {(row["record"], row["position"]) for row in rows})
    config = {
        "model": run.model,
        "network": asdict(sizes),
        "shapes": asdict(shapes),
        "max_tokens": run.max_tokens,
        "pictures": max(of_record.values()),
        "topics": any(row["title"] for row in rows),
    }
    return TextGenerator(
        module, module.Model(sizes, shapes, t5).to(get_device()), tokenizer, config
    )


def save_generator(writer: TextGenerator, folder: Path, encoder: Path) -> None:
    """Write the model and a copy of the encoder whose features it was trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(writer.config, indent=1))
    decoders.save_decoder(folder, writer.model.t5, writer.tokenizer)
    save_file(untied_state_dict(writer.model), folder / "model.safetensors")
    copy_encoder(encoder, folder)


def load_generator(folder: Path) -> TextGenerator:
    """The writer that `save` wrote, in evaluation mode. Raises WrongInput if it is not there."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no trained model: run `dvc repro`") from None
    if lacking := sorted({"pictures", "topics"} - config.keys()):
        raise InputError(
            f"{folder}/config.json: missing {', '.join(lacking)}, older versions wrote none: run "
            "`dvc repro`"
        )
    module = load_paper(config["model"])
    t5, tokenizer = decoders.load_decoder(folder)
    sizes = build_config(module.ModelConfig, config["network"], f"{folder}/config.json")
    weights = load_file(folder / "model.safetensors")
    if "t5.lm_head.weight" in weights:  # `unique` leaves out a tied one
        decoders.untie_lm_head(t5)
    model = module.Model(sizes, module.InputDims(**config["shapes"]), t5)
    if weights.keys() != untied_state_dict(model).keys():
        raise InputError(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights, strict=False)  # strict would ask for tied weights again
    return TextGenerator(module, model.to(get_device()).eval(), tokenizer, config)
