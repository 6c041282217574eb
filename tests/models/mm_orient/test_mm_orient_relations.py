"""CMRL of MM-ORIENT against loops: graphs over the batch and the bank, GraphSAGE."""

import pytest
import torch

from stages.models.mm_orient import model as mm_orient
from stages.models.mm_orient.model import GRAPHS, Model
from tests.support import tiny_mm_orient
from tests.support.tiny_mm_orient import (
    INPUT_DIMS,
    NUM_ITEMS,
    build_model,
    build_model_config,
    make_batch,
    make_full_batch,
    predict_probabilities,
    variant_id,
)

assert_close = torch.testing.assert_close
TIGHT = {"rtol": 0, "atol": 1e-6}
double = torch.double


def graph_sage(layer, x: torch.Tensor, neighbors: list[torch.Tensor]) -> torch.Tensor:
    """GraphSAGE of the public code (Spektral): L2norm([x || mean] W + b); the mean includes x."""
    mean = sum([x, *neighbors]) / (1 + len(neighbors))
    weight = torch.cat([layer.lin_r.weight, layer.lin_l.weight], 1)  # W, transposed
    y = weight @ torch.cat([x, mean]) + layer.lin_l.bias
    return y / y.norm()


def relations_by_loops(
    model: Model, batch, candidates, has_candidate, within: bool
) -> torch.Tensor:
    """CMRL of each item of a batch.

    candidates: features of possible neighbors by modality. within: they are the batch itself.
    """
    own = {"t": batch["text_clip"], "i": batch["picture_clip"]}
    has = {"t": batch["has_text"], "i": batch["has_picture"]}
    rows = []
    for b in range(len(batch["has_text"])):
        parts = []
        for index, (node, by) in enumerate(GRAPHS):
            threshold, neighbors = model.relations.thresholds[index], []
            for other in range(len(candidates["t"])):
                if (within and other == b) or not (has[by][b] and has_candidate[by][other]):
                    continue
                a, c = own[by][b], candidates[by][other]
                if a @ c / (a.norm() * c.norm()) > threshold:
                    neighbors.append(candidates[node][other])
            x = graph_sage(model.relations.layers[node + by], own[node][b], neighbors)
            parts.append(model.relations.config.output_dim**0.5 * x)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("density", [0.3, None])
def test_training_relates_items_to_their_batch(density):
    model, batch = build_model(double, relations__density=density).train(), make_full_batch(double)
    own = {"t": batch["text_clip"], "i": batch["picture_clip"]}
    has = {"t": batch["has_text"], "i": batch["has_picture"]}
    relations = model.compute_features(batch).relations
    assert_close(relations.vector, relations_by_loops(model, batch, own, has, True), **TIGHT)
    assert 0 < relations.neighbor_counts.sum() < NUM_ITEMS * (NUM_ITEMS - 1) * 4


def test_evaluation_relates_items_to_the_bank():
    model, batch = build_model(double), make_full_batch(double)
    (text, image), (has_text, has_image) = model.relations.bank()
    bank, has = {"t": text, "i": image}, {"t": has_text, "i": has_image}
    assert_close(
        model.compute_features(batch).relations.vector,
        relations_by_loops(model, batch, bank, has, False),
        **TIGHT,
    )
    batch_graph = build_model(double, relations__eval_graph="batch")
    own = {"t": batch["text_clip"], "i": batch["picture_clip"]}
    has = {"t": batch["has_text"], "i": batch["has_picture"]}
    expected = relations_by_loops(batch_graph, batch, own, has, True)
    assert_close(batch_graph.compute_features(batch).relations.vector, expected, **TIGHT)


def test_each_graph_has_its_own_threshold():
    thresholds = {"tt": -0.2, "ii": 0.0, "ti": 0.2, "it": 0.4}
    model = build_model(double, relations__density=None, relations__thresholds=thresholds).train()
    assert model.relations.thresholds.tolist() == list(thresholds.values())
    batch = make_full_batch(double)
    own = {"t": batch["text_clip"], "i": batch["picture_clip"]}
    has = {"t": batch["has_text"], "i": batch["has_picture"]}
    assert_close(
        model.compute_features(batch).relations.vector,
        relations_by_loops(model, batch, own, has, True),
        **TIGHT,
    )


def test_the_bank_holds_evenly_spaced_items_and_thresholds_of_the_density():
    model = build_model(relations__memory_bank_size=4, relations__density=0.5)
    batch = make_full_batch()
    (text, image), (has_text, _) = model.relations.bank()
    assert_close(text, batch["text_clip"][[0, 3, 6, 9]])
    assert_close(image, batch["picture_clip"][[0, 3, 6, 9]])
    assert has_text.tolist() == batch["has_text"][[0, 3, 6, 9]].tolist()
    cosines = sorted((text @ text.T)[*torch.triu_indices(4, 4, 1)].tolist())
    assert cosines[2] < model.relations.thresholds[0] < cosines[3]  # three of six pairs
    assert (
        model.relations.thresholds[3] == model.relations.thresholds[0]
    )  # texts define the edges of both


def test_a_bank_larger_than_the_training_split_has_unused_rows():
    model = build_model(relations__memory_bank_size=50)
    exact = build_model(relations__memory_bank_size=NUM_ITEMS)
    assert model.relations.bank_has_t.sum() == NUM_ITEMS - len(tiny_mm_orient.WITHOUT_TEXT)
    batch = make_full_batch()
    assert_close(predict_probabilities(model, batch), predict_probabilities(exact, batch), **TIGHT)


DEGENERATE = [
    {"relations__density": 0.0},
    {"relations__density": 1.0},
    {"relations__density": None, "relations__thresholds": dict.fromkeys(GRAPHS, 1.0)},
    {"relations__density": None, "relations__thresholds": dict.fromkeys(GRAPHS, -1.0)},
    {"relations__memory_bank_size": 1},
]


@pytest.mark.parametrize("changes", DEGENERATE, ids=variant_id)
def test_graphs_with_no_edges_or_all_edges_work(changes):
    for mode in (True, False):
        model = build_model(**changes).train(mode)
        for batch in (make_full_batch(), make_batch(0), make_batch(*tiny_mm_orient.WITHOUT_TEXT)):
            relations = model.compute_features(batch).relations
            assert relations.vector.isfinite().all()
            assert sum(mm_orient.compute_loss(model, batch).values()).isfinite()
    if (density := changes.get("relations__density")) is not None:
        model = build_model(relations__memory_bank_size=NUM_ITEMS, **changes)
        diagnostics = mm_orient.diagnostics(model, make_full_batch())
        for graph in GRAPHS:
            values = diagnostics[f"density_{graph}"]
            assert set(values[values.isfinite()].tolist()) == {density}
            values = diagnostics[f"isolated_{graph}"]
            assert set(values[values.isfinite()].tolist()) == {1 - density}


def test_with_an_empty_bank_items_have_no_neighbors():
    torch.manual_seed(0)
    model = (
        Model(
            build_model_config(),
            INPUT_DIMS,
        )
        .double()
        .eval()
    )
    batch = make_full_batch(double)
    none = {m: torch.zeros(0, tiny_mm_orient.D, dtype=double) for m in "ti"}
    assert_close(
        model.compute_features(batch).relations.vector,
        relations_by_loops(model, batch, none, none, False),
        **TIGHT,
    )
    diagnostics = mm_orient.diagnostics(model, batch)
    assert diagnostics["density_tt"].isnan().all()
    assert set(diagnostics["isolated_tt"][batch["has_text"]].tolist()) == {1.0}


def test_diagnostics_count_neighbors_in_the_bank_and_are_nan_for_missing_modalities():
    model, batch = build_model(double), make_full_batch(double)
    diagnostics = mm_orient.diagnostics(model, batch)
    (bank, _), (in_bank, _) = model.relations.bank()
    for b in range(NUM_ITEMS):
        if not batch["has_text"][b]:
            assert diagnostics["density_tt"][b].isnan()
            continue
        num_neighbors = (
            (bank[in_bank] @ batch["text_clip"][b] > model.relations.thresholds[0]).sum().item()
        )
        assert diagnostics["density_it"][b].item() == pytest.approx(
            num_neighbors / in_bank.sum().item()
        )
        assert diagnostics["isolated_it"][b].item() == (num_neighbors == 0)
    assert diagnostics["evenness_words"][0].isnan()  # one subword
    assert torch.equal(diagnostics["evenness_regions"].isnan(), ~batch["has_picture"])
    assert all(values.shape == (NUM_ITEMS,) for values in diagnostics.values())
