"""Generators: a model trained on one corpus, from params.yaml to a self-contained folder.

The folder holds model.safetensors, config.json (model, network, shapes, max_tokens, and of the
training data the largest number of images per article, whether there were topics, and whether an
article had one text about several images), the T5's config, the tokenizer, and in encoder/ what
computes the features of raw images and topics. Loading it needs neither params.yaml nor a network
connection.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.shared.core.config import Field, build_config, config_class
from stages.shared.features.encoder_files import copy_encoder
from stages.shared.features.store import Features
from stages.shared.generation import chunk_dataset, decoders, decoding
from stages.shared.generation.article_dataset import ArticleDataset, split_paragraphs
from stages.shared.generation.chunk_dataset import ChunkDataset, LengthLimits
from stages.shared.generation.paper import (
    EncoderOutput,
    GeneratorInputDims,
    GeneratorModel,
    GeneratorModelConfig,
    GeneratorPaper,
    load_generator_paper,
)
from stages.shared.modeling.saved_config import upgrade_config
from stages.shared.modeling.state_dict import untied_state_dict
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device, inference_context
from stages.shared.training.batching import Batch, to_device
from stages.shared.training.schedule import Schedule

ModelT_co = TypeVar(
    "ModelT_co", bound=GeneratorModel[GeneratorModelConfig, GeneratorInputDims], covariant=True
)
DatasetT_co = TypeVar("DatasetT_co", bound=ChunkDataset | ArticleDataset, covariant=True)


@config_class
class QualityMonitorConfig:
    """How much generated validation texts may degrade in the preference phase."""

    max_eval_samples: int = Field(ge=1, description="validation items generated at each validation")
    max_score_drop: float = Field(description="drop of the mean score (0 to 1) that ends the phase")


@config_class
class GenerationConfig:
    """How texts are decoded."""

    num_beams: int = Field(ge=1, description="beams of beam search; 1: no search")
    temperature: float = Field(ge=0, description="sampling temperature; 0: greedy or beam search")
    top_p: float = Field(description="probability mass of nucleus sampling, 0 to 1")
    no_repeat_ngram_size: int = Field(
        ge=0, description="tokens of a sequence that no text repeats; 0: no limit"
    )
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
    """The texts generated for a batch of items, and what the decoder attended to."""

    texts: list[list[str]]  # per item, one text per chunk
    token_ids: Tensor  # (B, Y + 1), starting with the start token
    encoder_output: EncoderOutput


@dataclass
class TextGenerator(Generic[ModelT_co, DatasetT_co]):
    """A model with its tokenizer and config."""

    paper: GeneratorPaper  # stages/models/<model>/model.py
    model: ModelT_co
    tokenizer: decoders.DecoderTokenizer
    config: dict  # config.json

    @property
    def limits(self) -> LengthLimits:
        """Maximum sizes of inputs and texts; at most as many images as in training."""
        network = self.model.network
        max_images = min(network.max_images, self.config["pictures"])
        return LengthLimits(network.max_topic_tokens, self.config["max_tokens"], max_images)

    def build_dataset(self, rows: list[dict], features: Features) -> DatasetT_co:
        """Rows of CHUNKS as the items that the model generates one text for: chunks or articles."""
        return self.paper.Dataset(rows, features, self.tokenizer, self.limits)

    def generate(self, batch: Batch, generation: GenerationConfig) -> Generation:
        """Generate a text for each item of a batch.

        Not seeded here; call `seed_everything` first for reproducible samples.
        """
        batch = to_device(batch, next(self.model.parameters()).device)
        with inference_context():
            encoder_output = self.model.encode(batch)
            ids = decoding.generate(
                self.model.t5,
                encoder_output.hidden,
                encoder_output.mask,
                self.config["max_tokens"],
                generation.num_beams,
                generation.temperature,
                generation.top_p,
                generation.no_repeat_ngram_size,
            )
        return Generation(self.decode_texts(ids, batch), ids, encoder_output)

    def decode_texts(self, ids: Tensor, batch: Batch) -> list[list[str]]:
        """Generated ids (B, Y + 1) as one text per chunk of each item."""
        num_sentinels = min(self.limits.max_images, self.model.network.max_paragraphs) - 1
        sentinel_ids = decoders.get_sentinel_ids(self.tokenizer, num_sentinels)
        counts = batch["num_paragraphs"].tolist() if "num_paragraphs" in batch else [1] * len(ids)
        texts = [
            split_paragraphs(row, self.tokenizer, sentinel_ids, count)
            for row, count in zip(ids[:, 1:].tolist(), counts, strict=True)
        ]
        if decoders.maps_punctuation_to_ascii(self.tokenizer):
            texts = [[decoders.restore_full_width(text) for text in item] for item in texts]
        return texts


# The generator of any paper.
AnyGenerator = TextGenerator[
    GeneratorModel[GeneratorModelConfig, GeneratorInputDims], ChunkDataset | ArticleDataset
]


def create_generator(
    run: GeneratorRun,
    network: GeneratorModelConfig,
    decoder_config: decoders.DecoderConfig,
    rows: list[dict],
    features: Features,
) -> AnyGenerator:
    """A new generator for the shapes of `features`.

    network: the ModelConfig of the run's paper. rows: training chunks; a tiny decoder learns its
    vocabulary from their texts.
    """
    paper = load_generator_paper(run.model)
    texts = [row["text"] for row in rows if chunk_dataset.has_text(row)]
    t5, tokenizer = decoders.create_decoder(
        run.decoder, decoder_config, network.d_model, texts, network.max_paragraphs - 1
    )
    shapes = paper.infer_input_dims(features)
    chunks = {(row["record"], row["position"]) for row in rows}
    chunks_per_record = Counter(record for record, _ in chunks)
    config = {
        "model": run.model,
        "network": asdict(network),
        "shapes": asdict(shapes),
        "max_tokens": run.max_tokens,
        "pictures": max(chunks_per_record.values()),
        "topics": any(row["title"] for row in rows),
        "one_text": not all(map(chunk_dataset.has_text, rows)),
    }
    model = paper.Model(network, shapes, t5).to(get_device())
    return TextGenerator(paper, model, tokenizer, config)


def save_generator(generator: AnyGenerator, folder: Path, encoder: Path) -> None:
    """Write the generator and a copy of the encoder that computed its features."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(generator.config, indent=1))
    decoders.save_decoder(folder, generator.model.t5, generator.tokenizer)
    save_file(untied_state_dict(generator.model), folder / "model.safetensors")
    copy_encoder(encoder, folder)


def load_generator(folder: Path) -> AnyGenerator:
    """The generator that `save_generator` wrote, in evaluation mode.

    Raises InputError if the folder holds no generator or one of another version.
    """
    try:
        config = upgrade_config(json.loads((folder / "config.json").read_text()))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no trained model: run `dvc repro`") from None
    if missing := sorted({"pictures", "topics"} - config.keys()):
        raise InputError(
            f"{folder}/config.json: missing {', '.join(missing)}, written by an older version: run "
            "`dvc repro`"
        )
    paper = load_generator_paper(config["model"])
    t5, tokenizer = decoders.load_decoder(folder)
    network = build_config(paper.ModelConfig, config["network"], f"{folder}/config.json")
    weights = load_file(folder / "model.safetensors")
    if "t5.lm_head.weight" in weights:  # untied_state_dict leaves out a tied one
        decoders.untie_lm_head(t5)
    model = paper.Model(network, paper.InputDims(**config["shapes"]), t5)
    if weights.keys() != untied_state_dict(model).keys():
        raise InputError(f"{folder} holds weights of another model: run `dvc repro`")
    model.load_state_dict(weights, strict=False)  # strict would require tied weights twice
    return TextGenerator(paper, model.to(get_device()).eval(), tokenizer, config)
