"""Write the texts of the validation and test split with the weights of each phase.

python -m stages.predict --run RUN --ingest INGEST --chunks CHUNKS --features FEATURES --sft SFT --preference PREFERENCE --output OUTPUT

reads   INGEST/foils.parquet (sample only), CHUNKS/chunks.parquet, FEATURES and CHUNKS/features,
        SFT, PREFERENCE
writes  TARGET/predictions.parquet, foils.parquet, gates.parquet, fusions.parquet,
        attentions.parquet, summary.json

Test items with a topic are written three times: from both inputs, from the topic alone, from the
picture alone. Of FlexMUSE, what the fusion did is kept of those from both inputs, where the
attention went of some of them, and what msaGate does of every chunk of every split.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.predict import attention_traces
from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.data.records import SPLITS
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.generation.decoding import compute_log_probs
from stages.shared.modeling.topics import pad_sequences
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.batching import Batch, to_device
from stages.shared.training.loop import seed_everything
from stages.shared.training.losses import IGNORE_INDEX

TABLE_SCHEMAS = {  # by phase
    "predictions": schemas.PREDICTIONS,
    "foils": schemas.FOIL_SCORES,
    "fusions": schemas.FUSIONS,
    "attentions": schemas.ATTENTIONS,
}


@config_class
class PredictConfig:
    """The section `predict`."""

    splits: list[str] = Field(description="splits whose texts are generated")
    max_attention_samples: int = Field(
        ge=0, description="test items per phase with stored attention"
    )


def mask_inputs(batch: Batch, inputs: str) -> Batch:
    """The batch with only the inputs that are named: both | topic | picture."""
    if inputs == "topic":
        return batch | {"has_picture": torch.zeros_like(batch["has_picture"])}
    if inputs == "picture":
        return batch | {"has_topic": torch.zeros_like(batch["has_topic"])}
    return batch


def generate_batches(
    writer: generators.TextGenerator, items, inputs: str, generation: generators.GenerationConfig
) -> Iterator[tuple[list[int], generators.Generation]]:
    """Batch by batch, which items and what was written for them."""
    for start in progress_bar(range(0, len(items), generation.batch_size), f"write from {inputs}"):
        indices = list(range(start, min(start + generation.batch_size, len(items))))
        yield indices, writer.generate(mask_inputs(items.batch(indices), inputs), generation)


def build_prediction_rows(
    writer: generators.TextGenerator,
    items,
    indices: list[int],
    written: generators.Generation,
    inputs: str,
) -> list[dict]:
    """Rows of PREDICTIONS, without phase."""
    found = []
    gated = (
        written.encoder_output.gate.tolist()
        if attention_traces.has_gate(writer)
        else [None] * len(indices)
    )
    for index, texts, share in zip(indices, written.texts, gated, strict=True):
        for row, text in zip(items.chunks_of(index), texts, strict=True):
            sigma = chunk_dataset.compute_similarity(items.features, row["image"], row["title"])
            key = {name: row[name] for name in schemas.CHUNKS.names if name != "text"}
            seen = share is not None and row["title"] and inputs != "picture"
            masked = 1 - share if seen else None
            found.append(key | {"inputs": inputs, "text": text, "sigma": sigma, "masked": masked})
    return found


def select_inputs(items, split: str) -> tuple[str, ...]:
    """What the items of a split are written from; each alone only where there are two, in test."""
    titled = any(row["title"] for index in range(len(items)) for row in items.chunks_of(index))
    return ("both", "topic", "picture") if split == "test" and titled else ("both",)


@dataclass(frozen=True)
class FoilComparison:
    """A chunk's reference, its slot "", and its foils as token ids up to the end of that chunk."""

    item_index: int  # of the item
    key: tuple[str, int]  # record, position
    candidates: list[tuple[str, list[int]]]  # slot, ids


def build_foil_comparisons(items, foils: list[dict]) -> list[FoilComparison]:
    """The chunks of these items that have foils. A foil that differs only behind the cut of a text
    that is too long is no foil."""
    of_chunk: dict[tuple[str, int], list[dict]] = {}
    for foil in foils:
        of_chunk.setdefault((foil["record"], foil["position"]), []).append(foil)
    found = []
    for index in range(len(items)):
        for place, row in enumerate(items.chunks_of(index)):
            key = row["record"], row["position"]
            reference = items.labels_until(index, place)
            texts = [
                (foil["slot"], items.labels_until(index, place, foil["text"]))
                for foil in of_chunk.get(key, [])
            ]
            if texts := [(slot, ids) for slot, ids in texts if ids != reference]:
                found.append(FoilComparison(index, key, [("", reference), *texts]))
    return found


def score_foils(
    writer: generators.TextGenerator, items, foils: list[dict], batch: int
) -> list[dict]:
    """Rows of FOIL_SCORES, without phase: log p of each reference and of its foils, both inputs.

    Of a text of several chunks, up to and with the one that a foil changes. At most `batch` texts
    at once, or those of one chunk, together with others of their length: padding costs time.
    """
    device = next(writer.model.parameters()).device
    asked = build_foil_comparisons(items, foils)
    order = sorted(range(len(asked)), key=lambda number: len(asked[number].candidates[0][1]))
    size = max(1, batch // max((len(one.candidates) for one in asked), default=1))
    scores: dict[int, list[float]] = {}
    for start in progress_bar(range(0, len(order), size), "score foils"):
        some = order[start : start + size]
        chosen = [asked[number] for number in some]
        counts = torch.tensor([len(one.candidates) for one in chosen])
        labels = pad_sequences(
            [ids for one in chosen for _, ids in one.candidates], IGNORE_INDEX
        ).to(device)
        with inference_context():
            memory = writer.model.encode(
                to_device(items.batch([one.item_index for one in chosen]), device)
            ).select(torch.arange(len(chosen)).repeat_interleave(counts).to(device))
            found = (
                compute_log_probs(writer.model.t5, memory.hidden, memory.mask, labels).sum(-1).cpu()
            )
        split = found.split(counts.tolist())
        scores |= {number: values.tolist() for number, values in zip(some, split, strict=True)}
    return [
        {"record": one.key[0], "position": one.key[1], "slot": slot, "log_prob": score}
        for number, one in enumerate(asked)
        for (slot, _), score in zip(one.candidates, scores[number], strict=True)
    ]


def select_attention_items(items, at_most: int) -> set[int]:
    """Items with a picture, evenly spaced, whose attention is kept."""
    shown = [index for index in range(len(items)) if items.chunks_of(index)[0]["image"]]
    count = min(at_most, len(shown))
    return {shown[i * len(shown) // count] for i in range(count)}


def predict_phase(
    writer: generators.TextGenerator,
    splits: dict,
    foils: list[dict],
    params: PredictConfig,
    generation: generators.GenerationConfig,
) -> dict[str, list[dict]]:
    """The rows of one phase for each table of TABLES, without phase."""
    found: dict[str, list[dict]] = {name: [] for name in TABLE_SCHEMAS}
    for split, items in splits.items():
        kept = select_attention_items(items, params.max_attention_samples)
        for inputs in select_inputs(items, split):
            for indices, written in generate_batches(writer, items, inputs, generation):
                found["predictions"] += build_prediction_rows(
                    writer, items, indices, written, inputs
                )
                if (split, inputs) != ("test", "both") or not attention_traces.has_gate(writer):
                    continue
                found["fusions"] += attention_traces.build_fusion_rows(
                    [items.rows[i] for i in indices], written
                )
                if places := [place for place, index in enumerate(indices) if index in kept]:
                    some = attention_traces.select_items(written, places)
                    chosen = [indices[place] for place in places]
                    found["attentions"] += attention_traces.build_attention_rows(
                        writer, items, chosen, some
                    )
        found["foils"] += score_foils(writer, items, foils, generation.batch_size)
    return found


def main(
    params: PredictConfig, run: generators.GeneratorRun, folders: list[Path], target: Path
) -> None:
    ingest, chunk_folder, feature_folder, *weights = folders
    cached = feature_store.read_features(feature_folder, chunk_folder / "features")
    rows = {
        split: chunk_dataset.load_chunks(chunk_folder, split, with_picture=False)
        for split in SPLITS
    }
    foils = []
    if (ingest / "foils.parquet").exists():
        foils = schemas.read_parquet(ingest / "foils.parquet", schemas.FOILS)
    found: dict[str, list[dict]] = {name: [] for name in TABLE_SCHEMAS}
    seed_everything(run.generation.seed)
    with atomic_output_dir(target) as folder:
        for phase, path in zip(("sft", "preference"), weights, strict=True):
            writer = generators.load_generator(path)
            splits = {split: writer.build_dataset(rows[split], cached) for split in params.splits}
            of = predict_phase(writer, splits, foils, params, run.generation)
            for name in TABLE_SCHEMAS:
                found[name] += [row | {"phase": phase} for row in of[name]]
        for name, schema in TABLE_SCHEMAS.items():
            schemas.write_parquet(folder / f"{name}.parquet", found[name], schema)
        every = [row for split in SPLITS for row in rows[split]]
        gates = attention_traces.build_gate_rows(
            writer, every, cached, run.generation.seed
        )  # no weight in them
        schemas.write_parquet(folder / "gates.parquet", gates, schemas.GATES)
        counts = {split: len(rows[split]) for split in params.splits}
        (folder / "summary.json").write_text(json.dumps({"chunks": counts}, indent=1))


def cli(
    run: str, ingest: Path, chunks: Path, features: Path, sft: Path, preference: Path, output: Path
) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(generators.GeneratorRun, "generators", run)
    folders = [ingest, chunks, features, sft, preference]
    main(load_config(PredictConfig, "predict"), config, folders, output)


if __name__ == "__main__":
    run_stage(cli)
