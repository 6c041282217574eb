"""What gate, fusion and the decoder's attention did, as rows of GATES, FUSIONS and ATTENTIONS."""

import numpy as np
import torch
from torch import Tensor

from stages.shared.features.store import Features
from stages.shared.generation import chunk_dataset
from stages.shared.generation.generator import Generation, TextGenerator
from stages.shared.metrics import attention
from stages.shared.torch_setup.devices import inference_context


def has_gate(writer: TextGenerator) -> bool:
    """Whether the paper has FlexMUSE's gate and fusion, which are all that is traced."""
    return hasattr(writer.paper, "gate")


def build_gate_rows(
    writer: TextGenerator, chunks: list[dict], features: Features, seed: int
) -> list[dict]:
    """Rows of GATES: the gate of training and the one of writing, on each chunk.

    Decided here, by `seed`, and not in training, where each step draws anew. None of a paper
    without a gate.
    """
    if not has_gate(writer):
        return []
    network, rows = writer.model.network, []
    sigma = [
        chunk_dataset.compute_similarity(features, row["image"], row["title"]) for row in chunks
    ]
    both = [bool(row["title"]) and row["image"] in features.image_index for row in chunks]
    known = torch.tensor([value or 0.0 for value in sigma])  # as in a batch
    for use, mode in (("train", network.gate_train), ("predict", network.gate_predict)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            passed = writer.paper.gate(known, mode, network).tolist()
        masked = writer.paper.mask_probability(known, mode, network).tolist()
        for place, row in enumerate(chunks):
            key = {name: row[name] for name in ("record", "position", "split")}
            rows.append(
                key
                | {"use": use, "mode": mode, "sigma": sigma[place]}
                | {"mask_probability": masked[place] if both[place] else None}
                | {"passed": passed[place] if both[place] else None}
            )
    return rows


def build_fusion_rows(rows: list[dict], written: Generation) -> list[dict]:
    """Rows of FUSIONS, without phase, for the chunks of a batch; none of a concatenation.

    Entropy and spread are null where the topic is masked, whose attention is uniform by design, and
    where it has one token.
    """
    memory, found = written.encoder_output, []
    if memory.correlation is None:
        return []
    correlation = _to_numpy(memory.correlation.mean(1)).astype(np.float16)
    for place, (row, looks) in enumerate(zip(rows, _fusion_attention(memory), strict=True)):
        measured = looks.shape[1] > 1 and memory.gate[place].item() > 0
        found.append(
            {
                "record": row["record"],
                "position": row["position"],
                "correlation": correlation[place],
                "entropy": float(attention.normalized_entropy(looks).mean()) if measured else None,
                "spread": attention.compute_spread(looks) if measured else None,
            }
        )
    return found


def build_attention_rows(
    writer: TextGenerator,
    chunks: chunk_dataset.ChunkDataset,
    indices: list[int],
    written: Generation,
):
    """Rows of ATTENTIONS, without phase, for these chunks and what was written for each.

    One pass of the decoder over the finished texts.
    """
    with inference_context():
        decoder = _to_numpy(
            writer.model.attention_maps(written.encoder_output, written.token_ids)
        )  # (B, Y, P)
    found = []
    for place, (index, looks) in enumerate(
        zip(indices, _fusion_attention(written.encoder_output), strict=True)
    ):
        row, tokens = chunks.rows[index], chunks.topic_subwords(chunks.rows[index]["title"])
        assert looks is None or len(tokens) == looks.shape[1]
        ids = _truncate_after(written.token_ids[place, 1:].tolist(), writer.tokenizer.eos_token_id)
        found.append(
            {
                "record": row["record"],
                "position": row["position"],
                "tokens": tokens,
                "fusion": [] if looks is None else looks.astype(np.float16).ravel(),
                "text": written.texts[place][0],
                "ends": attention.compute_token_ends(writer.tokenizer, ids),
                "decoder": decoder[place, : len(ids)].astype(np.float16).ravel(),
            }
        )
    return found


def select_items(written: Generation, places: list[int]) -> Generation:
    """Some items of a batch."""
    texts = [written.texts[place] for place in places]
    index = torch.tensor(places, device=written.token_ids.device)
    return Generation(texts, written.token_ids[index], written.encoder_output.select(index))


def _fusion_attention(memory) -> list[np.ndarray | None]:
    """The fusion's attention of each item without padding, [(P, T), ...]; None: no fusion."""
    if memory.attention is None:
        return [None] * len(memory.gate)
    pairs = zip(_to_numpy(memory.attention), memory.topic_mask.cpu().numpy(), strict=True)
    return [weights[:, mask] for weights, mask in pairs]


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _truncate_after(ids: list[int], end: int) -> list[int]:
    """The ids up to and including the first `end`, all of them if there is none."""
    return ids[: ids.index(end) + 1] if end in ids else ids
