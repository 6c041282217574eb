"""CMRL of MM-ORIENT: graphs of the batch and of the bank, GraphSAGE, against loops."""

import pytest
import torch

from stages.models.mm_orient import model as mm_orient
from stages.models.mm_orient.model import GRAPHS, InputDims, Model
from tests.support import tiny_mm_orient
from tests.support.tiny_mm_orient import (
    NUM_ITEMS,
    TASKS,
    build_model,
    build_model_config,
    make_batch,
    make_full_batch,
    predict_probabilities,
    variant_id,
)

close = torch.testing.assert_close
TIGHT = {"rtol": 0, "atol": 1e-6}
double = torch.double


def spektral(layer, x: torch.Tensor, neighbours: list[torch.Tensor]) -> torch.Tensor:
    """GraphSAGE of the public code: [X || mean] W + b, then length 1; x is among its neighbours."""
    mean = sum([x, *neighbours]) / (1 + len(neighbours))
    weight = torch.cat([layer.lin_r.weight, layer.lin_l.weight], 1)  # W, transposed
    y = weight @ torch.cat([x, mean]) + layer.lin_l.bias
    return y / y.norm()


def related_by_loops(of: Model, given, nodes_of, has_of, itself: bool) -> torch.Tensor:
    """CMRL of each item whose possible neighbours are nodes_of; itself: items are among them."""
    own = {"t": given["text_clip"], "i": given["picture_clip"]}
    has = {"t": given["has_text"], "i": given["has_picture"]}
    rows = []
    for b in range(len(given["has_text"])):
        parts = []
        for place, (node, by) in enumerate(GRAPHS):
            threshold, near = of.relations.thresholds[place], []
            for other in range(len(nodes_of["t"])):
                if (itself and other == b) or not (has[by][b] and has_of[by][other]):
                    continue
                a, c = own[by][b], nodes_of[by][other]
                if a @ c / (a.norm() * c.norm()) > threshold:
                    near.append(nodes_of[node][other])
            x = spektral(of.relations.layers[node + by], own[node][b], near)
            parts.append(of.relations.config.output_dim**0.5 * x)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("density", [0.3, None])
def test_relations_in_training_are_those_of_the_batch(density):
    of, given = build_model(double, relations__density=density).train(), make_full_batch(double)
    own = {"t": given["text_clip"], "i": given["picture_clip"]}
    has = {"t": given["has_text"], "i": given["has_picture"]}
    found = of.compute_features(given).relations
    close(found.vector, related_by_loops(of, given, own, has, True), **TIGHT)
    assert 0 < found.neighbor_counts.sum() < NUM_ITEMS * (NUM_ITEMS - 1) * 4


def test_relations_in_evaluation_are_those_of_the_bank():
    of, given = build_model(double), make_full_batch(double)
    (text, picture), (has_text, has_picture) = of.relations.bank()
    bank, has = {"t": text, "i": picture}, {"t": has_text, "i": has_picture}
    close(
        of.compute_features(given).relations.vector,
        related_by_loops(of, given, bank, has, False),
        **TIGHT,
    )
    literal = build_model(double, relations__graph="batch")
    own = {"t": given["text_clip"], "i": given["picture_clip"]}
    held = {"t": given["has_text"], "i": given["has_picture"]}
    expected = related_by_loops(literal, given, own, held, True)
    close(literal.compute_features(given).relations.vector, expected, **TIGHT)


def test_each_graph_has_its_own_threshold():
    thresholds = {"tt": -0.2, "ii": 0.0, "ti": 0.2, "it": 0.4}
    of = build_model(double, relations__density=None, relations__thresholds=thresholds).train()
    assert of.relations.thresholds.tolist() == list(thresholds.values())
    given = make_full_batch(double)
    own = {"t": given["text_clip"], "i": given["picture_clip"]}
    has = {"t": given["has_text"], "i": given["has_picture"]}
    close(
        of.compute_features(given).relations.vector,
        related_by_loops(of, given, own, has, True),
        **TIGHT,
    )


def test_the_bank_holds_evenly_spaced_items_and_thresholds_of_the_density():
    of, given = build_model(relations__bank=4, relations__density=0.5), make_full_batch()
    (text, picture), (has_text, _) = of.relations.bank()
    close(text, given["text_clip"][[0, 3, 6, 9]])
    close(picture, given["picture_clip"][[0, 3, 6, 9]])
    assert has_text.tolist() == given["has_text"][[0, 3, 6, 9]].tolist()
    cosines = sorted((text @ text.T)[*torch.triu_indices(4, 4, 1)].tolist())
    assert cosines[2] < of.relations.thresholds[0] < cosines[3]  # three of six pairs
    assert of.relations.thresholds[3] == of.relations.thresholds[0]  # both are told by texts


def test_of_fewer_items_than_it_holds_the_bank_leaves_rows_empty():
    of, alone = build_model(relations__bank=50), build_model(relations__bank=NUM_ITEMS)
    assert of.relations.bank_has_t.sum() == NUM_ITEMS - len(tiny_mm_orient.WITHOUT_TEXT)
    given = make_full_batch()
    close(predict_probabilities(of, given), predict_probabilities(alone, given), **TIGHT)


DEGENERATE = [
    {"relations__density": 0.0},
    {"relations__density": 1.0},
    {"relations__density": None, "relations__thresholds": dict.fromkeys(GRAPHS, 1.0)},
    {"relations__density": None, "relations__thresholds": dict.fromkeys(GRAPHS, -1.0)},
    {"relations__bank": 1},
]


@pytest.mark.parametrize("changes", DEGENERATE, ids=variant_id)
def test_graphs_with_no_edge_or_all_edges_are_graphs(changes):
    for mode in (True, False):
        of = build_model(**changes).train(mode)
        for given in (make_full_batch(), make_batch(0), make_batch(*tiny_mm_orient.WITHOUT_TEXT)):
            related = of.compute_features(given).relations
            assert related.vector.isfinite().all()
            assert sum(mm_orient.compute_loss(of, given).values()).isfinite()
    if (density := changes.get("relations__density")) is not None:
        found = mm_orient.diagnostics(
            build_model(relations__bank=NUM_ITEMS, **changes), make_full_batch()
        )
        for graph in GRAPHS:
            figures = found[f"density_{graph}"]
            assert set(figures[figures.isfinite()].tolist()) == {density}
            figures = found[f"isolated_{graph}"]
            assert set(figures[figures.isfinite()].tolist()) == {1 - density}


def test_without_a_bank_an_item_is_its_only_neighbour():
    torch.manual_seed(0)
    of = (
        Model(
            build_model_config(),
            InputDims(TASKS, tiny_mm_orient.D_T, tiny_mm_orient.D_V, tiny_mm_orient.D, 3),
        )
        .double()
        .eval()
    )
    given = make_full_batch(double)
    none = {m: torch.zeros(0, tiny_mm_orient.D, dtype=double) for m in "ti"}
    close(
        of.compute_features(given).relations.vector,
        related_by_loops(of, given, none, none, False),
        **TIGHT,
    )
    found = mm_orient.diagnostics(of, given)
    assert found["density_tt"].isnan().all()
    assert set(found["isolated_tt"][given["has_text"]].tolist()) == {1.0}


def test_behaviour_counts_the_bank_and_says_nothing_of_what_is_missing():
    of, given = build_model(double), make_full_batch(double)
    found = mm_orient.diagnostics(of, given)
    (bank, _), (held, _) = of.relations.bank()
    for b in range(NUM_ITEMS):
        if not given["has_text"][b]:
            assert found["density_tt"][b].isnan()
            continue
        near = (bank[held] @ given["text_clip"][b] > of.relations.thresholds[0]).sum().item()
        assert found["density_it"][b].item() == pytest.approx(near / held.sum().item())
        assert found["isolated_it"][b].item() == (near == 0)
    assert found["evenness_words"][0].isnan()  # of one piece
    assert torch.equal(found["evenness_regions"].isnan(), ~given["has_picture"])
    assert all(values.shape == (NUM_ITEMS,) for values in found.values())
