"""Generate the texts of the validation and test splits with the weights of each training phase.

python -m stages.predict --run RUN --ingest INGEST --chunks CHUNKS --features FEATURES --sft SFT
    --preference PREFERENCE --output OUTPUT

reads   INGEST/foils.parquet (synthetic corpora only), CHUNKS/chunks.parquet, FEATURES and
        CHUNKS/features, SFT, PREFERENCE
writes  OUTPUT/predictions.parquet, foils.parquet, gates.parquet, fusions.parquet,
        attentions.parquet, baselines.parquet, summary.json

Test items with a topic get three texts: from both inputs, from the topic alone, from the image
alone. The texts from one input are left out if training never lacked the other: the vector that
stands for it is then random. For FlexMUSE the stage also stores the fusion's values for texts from
both inputs, the attention of some of them, and the decisions of msaGate for every chunk of every
split. Test items also get the texts of baselines.py; those from shuffled images are of the last
phase.
"""

import filecmp
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.predict import attention_traces, baselines
from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.data.records import SPLITS
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.generation.article_dataset import ArticleDataset
from stages.shared.generation.chunk_dataset import ChunkDataset
from stages.shared.generation.decoding import compute_log_probs
from stages.shared.generation.paper import GatedEncoderOutput, has_gate
from stages.shared.modeling.topics import pad_sequences
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.batching import Batch, to_device
from stages.shared.training.loop import seed_everything
from stages.shared.training.losses import IGNORE_INDEX

TABLE_SCHEMAS = {  # of the tables that have rows of each phase
    "predictions": schemas.PREDICTIONS,
    "foils": schemas.FOIL_SCORES,
    "fusions": schemas.FUSIONS,
    "attentions": schemas.ATTENTIONS,
}


@config_class
class PredictConfig:
    """The section `predict`."""

    splits: list[str] = Field(description="splits whose texts are generated")
    max_attention_samples: int = Field(ge=0, description="test items per phase with attention")
    num_neighbors: int = Field(ge=1, description="train items that the consensus is chosen from")


def mask_inputs(batch: Batch, inputs: str) -> Batch:
    """The batch with only the named inputs: both | topic | picture."""
    if inputs == "topic":
        return batch | {"has_picture": torch.zeros_like(batch["has_picture"])}
    if inputs == "picture":
        return batch | {"has_topic": torch.zeros_like(batch["has_topic"])}
    return batch


def generate_batches(
    generator: generators.AnyGenerator,
    dataset: ChunkDataset | ArticleDataset,
    inputs: str,
    config: generators.GenerationConfig,
) -> Iterator[tuple[list[int], generators.Generation]]:
    """Yields the indices of each batch and what was generated for it."""
    starts = range(0, len(dataset), config.batch_size)
    for start in progress_bar(starts, f"generate from {inputs}"):
        indices = list(range(start, min(start + config.batch_size, len(dataset))))
        yield indices, generator.generate(mask_inputs(dataset.batch(indices), inputs), config)


def build_prediction_rows(
    generator: generators.AnyGenerator,
    dataset: ChunkDataset | ArticleDataset,
    indices: list[int],
    generation: generators.Generation,
    inputs: str,
) -> list[dict]:
    """Rows of PREDICTIONS for a batch, without the phase."""
    output, rows = generation.encoder_output, []
    gates = [None] * len(indices)
    if isinstance(output, GatedEncoderOutput):
        gates = output.gate.tolist()
    for index, texts, gate in zip(indices, generation.texts, gates, strict=True):
        chunks = zip(dataset.get_chunks(index), dataset.get_images(index), texts, strict=True)
        for chunk, images, text in chunks:
            key = {name: chunk[name] for name in schemas.CHUNKS.names if name != "text"}
            sigma = chunk_dataset.compute_similarity(dataset.features, images, chunk["title"])
            masked = None
            if gate is not None and chunk["title"] and inputs != "picture":
                masked = 1 - gate
            rows.append(key | {"inputs": inputs, "text": text, "sigma": sigma, "masked": masked})
    return rows


def trained_inputs(generator: generators.AnyGenerator, train_rows: list[dict]) -> list[str]:
    """`both`, and the single inputs that training had too.

    train_rows: the chunks that the generator learned from, all of which have an image
    """
    network, inputs = generator.model.network, ["both"]
    if network.image_drop_prob:
        inputs.append("topic")
    # For a gate, a missing topic is a masked one.
    if (
        network.topic_drop_prob
        or has_gate(generator.paper)
        or not all(row["title"] for row in train_rows)
    ):
        inputs.append("picture")
    return inputs


def select_inputs(
    dataset: ChunkDataset | ArticleDataset, split: str, inputs: list[str]
) -> list[str]:
    """Those of `inputs` that texts are generated from; single ones in test, if there are topics."""
    chunks = (chunk for index in range(len(dataset)) for chunk in dataset.get_chunks(index))
    has_topics = any(chunk["title"] for chunk in chunks)
    return inputs if split == "test" and has_topics else ["both"]


@dataclass(frozen=True)
class FoilComparison:
    """A chunk's reference and its foils as token ids through the end of that chunk."""

    item_index: int
    key: tuple[str, int]  # record, position
    candidates: list[tuple[str, list[int]]]  # slot ("" of the reference), ids


def build_foil_comparisons(
    dataset: ChunkDataset | ArticleDataset, foils: list[dict]
) -> list[FoilComparison]:
    """The chunks of the dataset that have foils.

    A foil that equals the reference after truncation is left out.
    """
    foils_by_chunk: dict[tuple[str, int], list[dict]] = {}
    for foil in foils:
        foils_by_chunk.setdefault((foil["record"], foil["position"]), []).append(foil)
    comparisons = []
    for index in range(len(dataset)):
        for place, chunk in enumerate(dataset.get_chunks(index)):
            key = chunk["record"], chunk["position"]
            reference = dataset.labels_until(index, place)
            candidates = [
                (foil["slot"], dataset.labels_until(index, place, foil["text"]))
                for foil in foils_by_chunk.get(key, [])
            ]
            if candidates := [(slot, ids) for slot, ids in candidates if ids != reference]:
                comparisons.append(FoilComparison(index, key, [("", reference), *candidates]))
    return comparisons


def score_foils(
    generator: generators.AnyGenerator,
    dataset: ChunkDataset | ArticleDataset,
    foils: list[dict],
    batch_size: int,
) -> list[dict]:
    """Rows of FOIL_SCORES without the phase: log p of each reference and its foils, both inputs.

    A text with several chunks is scored through the chunk that the foil changes. A batch has at
    most batch_size texts, or those of one chunk, all of similar length: padding costs time.
    """
    device = next(generator.model.parameters()).device
    comparisons = build_foil_comparisons(dataset, foils)
    order = sorted(range(len(comparisons)), key=lambda i: len(comparisons[i].candidates[0][1]))
    most_candidates = max((len(comparison.candidates) for comparison in comparisons), default=1)
    size = max(1, batch_size // most_candidates)
    scores: dict[int, list[float]] = {}
    for start in progress_bar(range(0, len(order), size), "score foils"):
        numbers = order[start : start + size]
        part = [comparisons[number] for number in numbers]
        counts = torch.tensor([len(comparison.candidates) for comparison in part])
        ids = [ids for comparison in part for _, ids in comparison.candidates]
        labels = pad_sequences(ids, IGNORE_INDEX).to(device)
        repeats = torch.arange(len(part)).repeat_interleave(counts).to(device)
        batch = to_device(dataset.batch([comparison.item_index for comparison in part]), device)
        with inference_context():
            output = generator.model.encode(batch).select(repeats)
            log_probs = compute_log_probs(generator.model.t5, output.hidden, output.mask, labels)
            totals = log_probs.sum(-1).cpu()
        split = totals.split(counts.tolist())
        scores |= {number: values.tolist() for number, values in zip(numbers, split, strict=True)}
    return [
        {"record": record, "position": position, "slot": slot, "log_prob": score}
        for number, comparison in enumerate(comparisons)
        for record, position in [comparison.key]
        for (slot, _), score in zip(comparison.candidates, scores[number], strict=True)
    ]


def select_attention_items(
    dataset: ChunkDataset | ArticleDataset, max_attention_samples: int
) -> set[int]:
    """Evenly spaced indices of items with an image, whose attention is stored."""
    candidates = [index for index in range(len(dataset)) if dataset.get_chunks(index)[0]["image"]]
    count = min(max_attention_samples, len(candidates))
    return {candidates[i * len(candidates) // count] for i in range(count)}


def predict_phase(
    generator: generators.AnyGenerator,
    splits: dict[str, ChunkDataset | ArticleDataset],
    trained: list[str],
    foils: list[dict],
    config: PredictConfig,
    generation_config: generators.GenerationConfig,
) -> dict[str, list[dict]]:
    """The rows of each table of TABLE_SCHEMAS for one phase, without the phase.

    trained: the inputs that texts may be generated from
    """
    tables: dict[str, list[dict]] = {name: [] for name in TABLE_SCHEMAS}
    for split, dataset in splits.items():
        attention_items = select_attention_items(dataset, config.max_attention_samples)
        for inputs in select_inputs(dataset, split, trained):
            has_traces = (split, inputs) == ("test", "both") and has_gate(generator.paper)
            for indices, generation in generate_batches(
                generator, dataset, inputs, generation_config
            ):
                tables["predictions"] += build_prediction_rows(
                    generator, dataset, indices, generation, inputs
                )
                if not has_traces:
                    continue
                tables["fusions"] += attention_traces.build_fusion_rows(
                    [dataset.get_chunks(i)[0] for i in indices],
                    generation,
                    generator.model.shapes.patches,
                )
                places = [place for place, i in enumerate(indices) if i in attention_items]
                if places:
                    tables["attentions"] += attention_traces.build_attention_rows(
                        generator,
                        dataset,
                        [indices[place] for place in places],
                        attention_traces.select_items(generation, places),
                    )
        tables["foils"] += score_foils(generator, dataset, foils, generation_config.batch_size)
    return tables


def build_baseline_rows(
    generator: generators.AnyGenerator,
    rows: list[dict],
    train_rows: list[dict],
    features: feature_store.Features,
    num_neighbors: int,
    generation_config: generators.GenerationConfig,
) -> tuple[list[dict], dict[str, str]]:
    """Rows of BASELINES for test chunks, and why a baseline was left out.

    train_rows: the chunks that the generator learned from
    """
    max_chunks = min(generator.limits.max_images, generator.model.network.max_paragraphs)
    retrieved, omitted = baselines.retrieve_texts(
        rows, train_rows, features, max_chunks, num_neighbors
    )
    shuffled = baselines.shuffle_images(rows, generation_config.seed)
    if not shuffled:
        return retrieved, omitted | {"shuffled_images": baselines.ONE_RECORD}
    dataset = generator.build_dataset(shuffled, features)
    generated = [
        row | {"baseline": "shuffled_images"}
        for indices, generation in generate_batches(generator, dataset, "both", generation_config)
        for row in build_prediction_rows(generator, dataset, indices, generation, "both")
    ]
    return retrieved + generated, omitted


def have_same_weights(first: Path, second: Path) -> bool:
    """Whether two model folders hold the same weights, bit by bit."""
    files = (folder / "model.safetensors" for folder in (first, second))
    return filecmp.cmp(*files, shallow=False)


def main(
    config: PredictConfig,
    run: generators.GeneratorRun,
    *,
    ingest: Path,
    chunks: Path,
    features: Path,
    sft: Path,
    preference: Path,
    output: Path,
) -> None:
    """sft, preference: the models of the two phases"""
    cached = feature_store.read_features(features, chunks / "features")
    rows = {
        split: chunk_dataset.load_chunks(chunks, split, require_image=False) for split in SPLITS
    }
    train_rows = [row for row in rows["train"] if row["image"]]
    foils = []
    if (ingest / "foils.parquet").exists():
        foils = schemas.read_parquet(ingest / "foils.parquet", schemas.FOILS)
    tables: dict[str, list[dict]] = {name: [] for name in TABLE_SCHEMAS}
    seed_everything(run.generation.seed)
    with atomic_output_dir(output) as folder:
        for phase, model in (("sft", sft), ("preference", preference)):
            generator = generators.load_generator(model)
            splits = {
                split: generator.build_dataset(rows[split], cached) for split in config.splits
            }
            phase_tables = predict_phase(
                generator,
                splits,
                trained_inputs(generator, train_rows),
                foils,
                config,
                run.generation,
            )
            for name in TABLE_SCHEMAS:
                tables[name] += [row | {"phase": phase} for row in phase_tables[name]]
        for name, schema in TABLE_SCHEMAS.items():
            schemas.write_parquet(folder / f"{name}.parquet", tables[name], schema)
        # The gate has no weights, so that its decisions are the same in both phases.
        gates = attention_traces.build_gate_rows(
            generator,
            [row for split in SPLITS for row in rows[split]],
            cached,
            run.generation.seed,
        )
        schemas.write_parquet(folder / "gates.parquet", gates, schemas.GATES)
        baseline_rows, omitted = [], {}
        if rows["test"]:
            baseline_rows, omitted = build_baseline_rows(
                generator,
                rows["test"],
                train_rows,
                cached,
                config.num_neighbors,
                run.generation,
            )
        schemas.write_parquet(folder / "baselines.parquet", baseline_rows, schemas.BASELINES)
        summary = {
            "model": generator.paper.MODEL_NAME,
            "chunks": {split: len(rows[split]) for split in config.splits},
            "omitted_baselines": omitted,
            "preference": {
                "name": generator.paper.PREFERENCE_NAME,
                "kept_sft_weights": have_same_weights(sft, preference),
                "without_gain": generator.paper.WITHOUT_GAIN,
            },
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=1))


def cli(
    run: str, ingest: Path, chunks: Path, features: Path, sft: Path, preference: Path, output: Path
) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(PredictConfig, "predict")
    generator_run = load_config(generators.GeneratorRun, "generators", run)
    main(
        config,
        generator_run,
        ingest=ingest,
        chunks=chunks,
        features=features,
        sft=sft,
        preference=preference,
        output=output,
    )


if __name__ == "__main__":
    run_stage(cli)
