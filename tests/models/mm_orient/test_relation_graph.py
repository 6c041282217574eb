import pytest
import torch
import torch.nn.functional as F

from stages.models.mm_orient import relation_graph
from stages.models.mm_orient.relation_graph import (
    build_adjacency,
    build_edges_between,
    build_edges_within,
    count_neighbors,
    find_threshold,
)


def rows(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    given = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=given, dtype=torch.double), dim=-1)


def held(count: int) -> torch.Tensor:
    return torch.arange(count) % 5 != 3


def pairs(edges: torch.Tensor) -> list[tuple[int, int]]:
    return sorted(map(tuple, edges.T.tolist()))


@pytest.fixture(params=[(1024, 4096), (4, 8), (3, 6), (5, 5), (1, 1)], ids=str)
def blocks(request, monkeypatch):
    """Blocks that hold all, and others that do not divide the number of items."""
    monkeypatch.setattr(relation_graph, "ROWS", request.param[0])
    monkeypatch.setattr(relation_graph, "COLUMNS", request.param[1])


@pytest.mark.parametrize("count", [0, 1, 2, 23])
def test_edges_within_are_the_pairs_above_the_threshold(blocks, count):
    x, there = rows(count), held(count)
    expected = [
        (i, j)
        for i in range(count)
        for j in range(count)
        if i != j and there[i] and there[j] and x[i] @ x[j] > 0.2
    ]
    assert pairs(build_edges_within(x, there, 0.2)) == expected


@pytest.mark.parametrize(("count", "others"), [(0, 5), (5, 0), (1, 1), (9, 23)])
def test_edges_between_are_the_pairs_above_the_threshold(blocks, count, others):
    x, y = rows(count), rows(others, seed=1)
    expected = [
        (i, j)
        for i in range(count)
        for j in range(others)
        if held(count)[i] and held(others)[j] and x[i] @ y[j] > 0.2
    ]
    assert pairs(build_edges_between(x, held(count), y, held(others), 0.2)) == expected


def test_a_threshold_of_one_links_nothing_and_one_of_less_than_all_links_all():
    x, there = rows(7)[[0, 0, 1, 2, 3]], torch.ones(5, dtype=torch.bool)
    assert build_edges_within(x, there, 1.0).shape == (2, 0)
    assert build_edges_between(x, there, x, there, 1.0).shape == (2, 0)
    assert len(pairs(build_edges_within(x, there, -1.0))) == 20
    assert pairs(build_edges_within(x, there, 1 - 1e-9)) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.5, 0.99, 1.0])
def test_a_threshold_links_the_share_that_was_asked_for(blocks, density):
    x, there = rows(24), held(24)
    count = int(there.sum())
    found = build_edges_within(x, there, find_threshold(x, there, density)).shape[1] / (
        count * (count - 1)
    )
    pair = 2 / (count * (count - 1))
    assert density - 1e-9 <= found <= density + pair


def test_of_items_that_are_alike_all_or_more_than_asked_are_linked():
    x, there = rows(1).expand(6, -1), torch.ones(6, dtype=torch.bool)
    assert build_edges_within(x, there, find_threshold(x, there, 0.1)).shape[1] == 30


def test_no_density_and_no_pair_have_the_threshold_that_links_nothing():
    x = rows(6)
    assert (
        find_threshold(x, torch.ones(6, dtype=torch.bool), 0.0) == relation_graph.NO_EDGES_THRESHOLD
    )
    assert find_threshold(x, torch.arange(6) < 1, 0.5) == relation_graph.NO_EDGES_THRESHOLD
    assert (
        find_threshold(x[:0], torch.ones(0, dtype=torch.bool), 0.5)
        == relation_graph.NO_EDGES_THRESHOLD
    )


def test_degrees_and_adjacency_are_those_of_a_table():
    x = rows(12)
    edges = build_edges_between(x, held(12), rows(9, seed=1), held(9), 0.1)
    table = torch.zeros(12, 9)
    for i, j in pairs(edges):
        table[i, j] = 1
    assert torch.equal(build_adjacency(edges, (12, 9), torch.float).to_dense(), table)
    assert count_neighbors(edges, 12).tolist() == table.sum(1).tolist()
    assert not build_adjacency(edges[:, :0], (3, 2), torch.float).to_dense().any()


def test_an_edge_does_not_depend_on_the_rows_beside_it():
    """The threshold is one of the cosines, to the last bit of a double but one."""
    x, y = rows(40, 64), rows(300, 64, seed=1)
    near = torch.ones(len(y), dtype=torch.bool)
    threshold = (x[17] @ y[5]).item() - 1e-15 * 100
    every = torch.ones(len(x), dtype=torch.bool)
    together = pairs(build_edges_between(x, every, y, near, threshold))
    alone = [
        (i, j)
        for i in range(len(x))
        for _, j in pairs(build_edges_between(x[i : i + 1], every[:1], y, near, threshold))
    ]
    assert together == alone
    assert (17, 5) in together
