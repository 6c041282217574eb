"""Write the texts of the validation and test split with the weights of each phase.

python -m stages.predict RUN INGEST CHUNKS FEATURES SFT PREFERENCE TARGET

reads   INGEST/foils.parquet (sample only), CHUNKS/chunks.parquet, FEATURES and CHUNKS/features,
        SFT, PREFERENCE
writes  TARGET/predictions.parquet, TARGET/foils.parquet, TARGET/summary.json

Test items are written three times: from both inputs, from the topic alone, from the picture alone.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.shared import batches, features, runs, tables
from stages.shared.devices import inference
from stages.shared.params import load
from stages.shared.progress import bar
from stages.shared.stage import output, stage
from stages.shared.training import Batch, seed_everything, to_device


@dataclass(frozen=True)
class Params:
    splits: list[str]


def show(batch: Batch, inputs: str) -> Batch:
    """The batch with only the inputs that are named: both | topic | picture."""
    nothing = torch.zeros_like(batch["has_picture"])
    if inputs == "topic":
        return batch | {"has_picture": nothing}
    if inputs == "picture":
        return batch | {"has_topic": nothing}
    return batch


def write_texts(
    writer: runs.Writer, chunks: batches.Chunks, inputs: str, generation: runs.Generation
) -> list[dict]:
    """Rows of PREDICTIONS, without phase."""
    written = []
    starts = range(0, len(chunks), generation.batch)
    for start in bar(starts, f"write from {inputs}"):
        rows = chunks.rows[start : start + generation.batch]
        batch = chunks.batch(list(range(start, start + len(rows))))
        found = writer.write(show(batch, inputs), generation)
        passed = found.memory.gate.tolist()
        for row, text, share in zip(rows, found.texts, passed, strict=True):
            sigma = batches.similarity(chunks.features, row["image"], row["title"])
            key = {name: row[name] for name in tables.CHUNKS.names if name != "text"}
            gated = 1 - share if row["title"] and inputs != "picture" else None
            written.append(key | {"inputs": inputs, "text": text, "sigma": sigma, "masked": gated})
    return written


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


def main(params: Params, run: runs.Run, folders: list[Path], target: Path) -> None:
    ingest, chunk_folder, feature_folder, *weights = folders
    cached = features.read(feature_folder, chunk_folder / "features")
    foils = []
    if (ingest / "foils.parquet").exists():
        foils = tables.read(ingest / "foils.parquet", tables.FOILS)
    texts, scores, counts = [], [], {}
    seed_everything(run.generation.seed)
    with output(target) as folder:
        for phase, path in zip(("sft", "preference"), weights, strict=True):
            writer = runs.restore(path)
            for split in params.splits:
                rows = batches.read_chunks(chunk_folder, split, with_picture=False)
                chunks = writer.chunks(rows, cached)
                counts[split] = len(chunks)
                written = write_texts(writer, chunks, "both", run.generation)
                if split == "test":
                    written += write_texts(writer, chunks, "topic", run.generation)
                    written += write_texts(writer, chunks, "picture", run.generation)
                texts += [row | {"phase": phase} for row in written]
                found = score_foils(writer, chunks, foils, run.generation.batch)
                scores += [row | {"phase": phase} for row in found]
        tables.write(folder / "predictions.parquet", texts, tables.PREDICTIONS)
        tables.write(folder / "foils.parquet", scores, tables.FOIL_SCORES)
        (folder / "summary.json").write_text(json.dumps({"chunks": counts}, indent=1))


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *sources, out = map(Path, paths)
        main(load(Params, "predict"), load(runs.Run, "runs", key), sources, out)
