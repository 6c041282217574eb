"""Write the texts of the validation and test split with the weights of each phase.

python -m stages.predict RUN INGEST CHUNKS FEATURES SFT PREFERENCE TARGET

reads   INGEST/foils.parquet (sample only), CHUNKS/chunks.parquet, FEATURES and CHUNKS/features,
        SFT, PREFERENCE
writes  TARGET/predictions.parquet, foils.parquet, gates.parquet, fusions.parquet,
        attentions.parquet, summary.json

Test items are written three times: from both inputs, from the topic alone, from the picture alone.
What the fusion did is kept of those from both inputs, where the attention went of some of them, and
what msaGate does of every chunk of every split.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.shared import batches, features, runs, tables, traces
from stages.shared.devices import inference
from stages.shared.params import load
from stages.shared.progress import bar
from stages.shared.records import SPLITS
from stages.shared.stage import output, stage
from stages.shared.training import Batch, seed_everything, to_device

TABLES = {  # by phase
    "predictions": tables.PREDICTIONS,
    "foils": tables.FOIL_SCORES,
    "fusions": tables.FUSIONS,
    "attentions": tables.ATTENTIONS,
}


@dataclass(frozen=True)
class Params:
    splits: list[str]
    attention_items: int


def show(batch: Batch, inputs: str) -> Batch:
    """The batch with only the inputs that are named: both | topic | picture."""
    nothing = torch.zeros_like(batch["has_picture"])
    if inputs == "topic":
        return batch | {"has_picture": nothing}
    if inputs == "picture":
        return batch | {"has_topic": nothing}
    return batch


def write(
    writer: runs.Writer, chunks: batches.Chunks, inputs: str, generation: runs.Generation
) -> Iterator[tuple[list[int], runs.Written]]:
    """Batch by batch, which chunks and what was written for them."""
    for start in bar(range(0, len(chunks), generation.batch), f"write from {inputs}"):
        indices = list(range(start, min(start + generation.batch, len(chunks))))
        yield indices, writer.write(show(chunks.batch(indices), inputs), generation)


def text_rows(
    chunks: batches.Chunks, indices: list[int], written: runs.Written, inputs: str
) -> list[dict]:
    """Rows of PREDICTIONS, without phase."""
    found = []
    passed = written.memory.gate.tolist()
    for index, text, share in zip(indices, written.texts, passed, strict=True):
        row = chunks.rows[index]
        sigma = batches.similarity(chunks.features, row["image"], row["title"])
        key = {name: row[name] for name in tables.CHUNKS.names if name != "text"}
        gated = 1 - share if row["title"] and inputs != "picture" else None
        found.append(key | {"inputs": inputs, "text": text, "sigma": sigma, "masked": gated})
    return found


def score_foils(
    writer: runs.Writer, chunks: batches.Chunks, foils: list[dict], batch: int
) -> list[dict]:
    """Rows of FOIL_SCORES, without phase: log p of each reference and of its foils, both inputs."""
    of_chunk: dict[tuple[str, int], list[dict]] = {}
    for foil in foils:
        of_chunk.setdefault((foil["record"], foil["position"]), []).append(foil)
    keys = [(row["record"], row["position"]) for row in chunks.rows]
    concerned = [index for index, key in enumerate(keys) if key in of_chunk]
    device = next(writer.model.parameters()).device
    scored = []
    for start in bar(range(0, len(concerned), batch), "score foils"):
        indices = concerned[start : start + batch]
        texts = []  # (item of the batch, slot, token ids)
        for item, index in enumerate(indices):
            texts.append((item, "", chunks.labels[index]))
            for foil in of_chunk[keys[index]]:
                texts.append((item, foil["slot"], chunks.encode(foil["text"])))
        labels = batches.pad([ids for _, _, ids in texts], batches.IGNORED).to(device)
        with inference():
            items = to_device(chunks.batch(indices), device)
            memory = writer.model.remember(items, writer.model.network.gate_predict)
            rows = torch.tensor([item for item, _, _ in texts], device=device)
            scores = writer.model.log_probs(memory.rows(rows), labels).tolist()
        for (item, slot, _), score in zip(texts, scores, strict=True):
            record, position = keys[indices[item]]
            scored.append({"record": record, "position": position, "slot": slot, "log_prob": score})
    return scored


def looked_at(chunks: batches.Chunks, at_most: int) -> set[int]:
    """Chunks with a picture, evenly spaced, whose attention is kept."""
    shown = [index for index, row in enumerate(chunks.rows) if row["image"]]
    count = min(at_most, len(shown))
    return {shown[i * len(shown) // count] for i in range(count)}


def of_phase(
    writer: runs.Writer,
    splits: dict[str, batches.Chunks],
    foils: list[dict],
    params: Params,
    generation: runs.Generation,
) -> dict[str, list[dict]]:
    """The rows of one phase for each table of TABLES, without phase."""
    found: dict[str, list[dict]] = {name: [] for name in TABLES}
    for split, chunks in splits.items():
        kept = looked_at(chunks, params.attention_items)
        for inputs in ("both", "topic", "picture") if split == "test" else ("both",):
            for indices, written in write(writer, chunks, inputs, generation):
                found["predictions"] += text_rows(chunks, indices, written, inputs)
                if (split, inputs) != ("test", "both"):
                    continue
                found["fusions"] += traces.fusions([chunks.rows[i] for i in indices], written)
                if places := [place for place, index in enumerate(indices) if index in kept]:
                    some = traces.choose(written, places)
                    chosen = [indices[place] for place in places]
                    found["attentions"] += traces.attentions(writer, chunks, chosen, some)
        found["foils"] += score_foils(writer, chunks, foils, generation.batch)
    return found


def main(params: Params, run: runs.Run, folders: list[Path], target: Path) -> None:
    ingest, chunk_folder, feature_folder, *weights = folders
    cached = features.read(feature_folder, chunk_folder / "features")
    rows = {split: batches.read_chunks(chunk_folder, split, with_picture=False) for split in SPLITS}
    foils = []
    if (ingest / "foils.parquet").exists():
        foils = tables.read(ingest / "foils.parquet", tables.FOILS)
    found: dict[str, list[dict]] = {name: [] for name in TABLES}
    seed_everything(run.generation.seed)
    with output(target) as folder:
        for phase, path in zip(("sft", "preference"), weights, strict=True):
            writer = runs.restore(path)
            splits = {split: writer.chunks(rows[split], cached) for split in params.splits}
            of = of_phase(writer, splits, foils, params, run.generation)
            for name in TABLES:
                found[name] += [row | {"phase": phase} for row in of[name]]
        for name, schema in TABLES.items():
            tables.write(folder / f"{name}.parquet", found[name], schema)
        every = [row for split in SPLITS for row in rows[split]]
        gates = traces.gates(writer, every, cached, run.generation.seed)  # no weight in them
        tables.write(folder / "gates.parquet", gates, tables.GATES)
        counts = {split: len(rows[split]) for split in params.splits}
        (folder / "summary.json").write_text(json.dumps({"chunks": counts}, indent=1))


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *sources, out = map(Path, paths)
        main(load(Params, "predict"), load(runs.Run, "runs", key), sources, out)
