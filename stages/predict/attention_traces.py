"""Gate, fusion and decoder attention of FlexMUSE as rows of GATES, FUSIONS and ATTENTIONS."""

import numpy as np
import torch
from torch import Tensor

from stages.shared.features.store import Features
from stages.shared.generation import chunk_dataset
from stages.shared.generation.article_dataset import ArticleDataset
from stages.shared.generation.generator import AnyGenerator, Generation
from stages.shared.generation.paper import GatedEncoderOutput, GatedModel, has_gate
from stages.shared.metrics import attention
from stages.shared.torch_setup.devices import inference_context


def build_gate_rows(
    generator: AnyGenerator, chunks: list[dict], features: Features, seed: int
) -> list[dict]:
    """Rows of GATES: the gate of training and that of generation for each chunk.

    chunks: rows of CHUNKS
    The decisions are sampled here with `seed`; those of training are sampled anew at each step. A
    paper without a gate has no rows.
    """
    paper, model, rows = generator.paper, generator.model, []
    if not has_gate(paper) or not isinstance(model, GatedModel):
        return []
    network = model.network
    grouped = chunk_dataset.group_into_chunks(chunks)
    chunks = [rows[0] for rows in grouped]
    similarities = [
        chunk_dataset.compute_similarity(
            features, [row["image"] for row in part[: network.max_images]], part[0]["title"]
        )
        for part in grouped
    ]
    has_both = [bool(chunk["title"]) and chunk["image"] in features.image_index for chunk in chunks]
    sigma = torch.tensor([value or 0.0 for value in similarities])  # as in a batch
    for use, mode in (("train", network.gate_train), ("predict", network.gate_predict)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            passed = paper.gate(sigma, mode, network).tolist()
        probabilities = paper.mask_probability(sigma, mode, network).tolist()
        for place, chunk in enumerate(chunks):
            key = {name: chunk[name] for name in ("record", "position", "split")}
            rows.append(
                key
                | {"use": use, "mode": mode, "sigma": similarities[place]}
                | {"mask_probability": probabilities[place] if has_both[place] else None}
                | {"passed": passed[place] if has_both[place] else None}
            )
    return rows


def build_fusion_rows(chunks: list[dict], generation: Generation, num_patches: int) -> list[dict]:
    """Rows of FUSIONS for the chunks of a batch, without the phase.

    A paper without a gate and a concatenation have no rows. Of several images, the patches of the
    first one are measured.
    Entropy and spread are null if the topic is masked, because its attention is then uniform by
    design, and if it has a single token.
    """
    output, rows = generation.encoder_output, []
    if not isinstance(output, GatedEncoderOutput):
        return []
    if output.correlation is None or output.attention is None:
        return []
    correlation = _to_numpy(output.correlation[:, :num_patches].mean(1)).astype(np.float16)
    attention_maps = _remove_padding(output.attention[:, :num_patches], output.topic_mask)
    for place, (chunk, weights) in enumerate(zip(chunks, attention_maps, strict=True)):
        is_measured = weights.shape[1] > 1 and output.gate[place].item() > 0
        entropy = float(attention.normalized_entropy(weights).mean()) if is_measured else None
        rows.append(
            {
                "record": chunk["record"],
                "position": chunk["position"],
                "correlation": correlation[place],
                "entropy": entropy,
                "spread": attention.compute_spread(weights) if is_measured else None,
            }
        )
    return rows


def build_attention_rows(
    generator: AnyGenerator,
    dataset: chunk_dataset.ChunkDataset | ArticleDataset,
    indices: list[int],
    generation: Generation,
) -> list[dict]:
    """Rows of ATTENTIONS for the chunks at `indices`, without the phase; of their first image.

    Takes one pass of the decoder over the generated texts. A paper without a gate has no rows.
    """
    model, output, rows = generator.model, generation.encoder_output, []
    if not isinstance(model, GatedModel) or not isinstance(output, GatedEncoderOutput):
        return []
    with inference_context():
        decoder_weights = _to_numpy(model.attention_maps(output, generation.token_ids))  # (B, Y, P)
    fusion_weights = [None] * len(indices)  # of a concatenation
    if output.attention is not None:
        first_image = output.attention[:, : model.shapes.patches]
        fusion_weights = _remove_padding(first_image, output.topic_mask)
    end = generator.tokenizer.eos_token_id
    for place, (index, weights) in enumerate(zip(indices, fusion_weights, strict=True)):
        (chunk,) = dataset.get_chunks(index)
        tokens = dataset.topics.subwords(chunk["title"])
        assert weights is None or len(tokens) == weights.shape[1]
        ids = _truncate_after(generation.token_ids[place, 1:].tolist(), end)
        rows.append(
            {
                "record": chunk["record"],
                "position": chunk["position"],
                "tokens": tokens,
                "fusion": [] if weights is None else weights.astype(np.float16).ravel(),
                "text": generation.texts[place][0],
                "ends": attention.compute_token_ends(generator.tokenizer, ids),
                "decoder": decoder_weights[place, : len(ids)].astype(np.float16).ravel(),
            }
        )
    return rows


def select_items(generation: Generation, places: list[int]) -> Generation:
    """The items at `places` of a batch."""
    texts = [generation.texts[place] for place in places]
    index = torch.tensor(places, device=generation.token_ids.device)
    return Generation(texts, generation.token_ids[index], generation.encoder_output.select(index))


def _remove_padding(weights: Tensor, topic_mask: Tensor) -> list[np.ndarray]:
    """The fusion's attention of each item without padding.  (B, P, T), (B, T) -> (P, tokens)"""
    pairs = zip(_to_numpy(weights), topic_mask.cpu().numpy(), strict=True)
    return [item_weights[:, mask] for item_weights, mask in pairs]


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _truncate_after(ids: list[int], end: int) -> list[int]:
    """The ids through the first `end`; all of them if there is none."""
    return ids[: ids.index(end) + 1] if end in ids else ids
