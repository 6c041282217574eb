"""Similarity graphs against explicit loops over pairs."""

import pytest
import torch
import torch.nn.functional as F

from stages.models.mm_orient import relation_graph
from stages.models.mm_orient.relation_graph import (
    NO_EDGES_THRESHOLD,
    build_adjacency,
    build_edges_between,
    build_edges_within,
    count_neighbors,
    find_threshold,
)


def make_features(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.double), dim=-1)


def make_available(count: int) -> torch.Tensor:
    return torch.arange(count) % 5 != 3


def edge_list(edges: torch.Tensor) -> list[tuple[int, int]]:
    return sorted(map(tuple, edges.T.tolist()))


@pytest.fixture(params=[(1024, 4096), (4, 8), (3, 6), (5, 5), (1, 1)], ids=str)
def block_size(request, monkeypatch):
    """Block sizes that hold all items, and others that do not divide their number."""
    monkeypatch.setattr(relation_graph, "BLOCK_ROWS", request.param[0])
    monkeypatch.setattr(relation_graph, "BLOCK_COLUMNS", request.param[1])


@pytest.mark.parametrize("count", [0, 1, 2, 23])
def test_edges_within_are_the_pairs_above_the_threshold(block_size, count):
    x, available = make_features(count), make_available(count)
    expected = [
        (i, j)
        for i in range(count)
        for j in range(count)
        if i != j and available[i] and available[j] and x[i] @ x[j] > 0.2
    ]
    assert edge_list(build_edges_within(x, available, 0.2)) == expected


@pytest.mark.parametrize(("num_x", "num_y"), [(0, 5), (5, 0), (1, 1), (9, 23)])
def test_edges_between_are_the_pairs_above_the_threshold(block_size, num_x, num_y):
    x, y = make_features(num_x), make_features(num_y, seed=1)
    expected = [
        (i, j)
        for i in range(num_x)
        for j in range(num_y)
        if make_available(num_x)[i] and make_available(num_y)[j] and x[i] @ y[j] > 0.2
    ]
    edges = build_edges_between(x, make_available(num_x), y, make_available(num_y), 0.2)
    assert edge_list(edges) == expected


def test_threshold_one_links_nothing_and_threshold_minus_one_links_all():
    x, available = make_features(7)[[0, 0, 1, 2, 3]], torch.ones(5, dtype=torch.bool)
    assert build_edges_within(x, available, 1.0).shape == (2, 0)
    assert build_edges_between(x, available, x, available, 1.0).shape == (2, 0)
    assert len(edge_list(build_edges_within(x, available, -1.0))) == 20
    assert edge_list(build_edges_within(x, available, 1 - 1e-9)) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.5, 0.99, 1.0])
def test_find_threshold_links_the_given_fraction_of_pairs(block_size, density):
    x, available = make_features(24), make_available(24)
    count = int(available.sum())
    edges = build_edges_within(x, available, find_threshold(x, available, density))
    linked = edges.shape[1] / (count * (count - 1))
    one_pair = 2 / (count * (count - 1))
    assert density - 1e-9 <= linked <= density + one_pair


def test_pairs_of_equal_cosine_are_all_linked():
    x, available = make_features(1).expand(6, -1), torch.ones(6, dtype=torch.bool)
    assert build_edges_within(x, available, find_threshold(x, available, 0.1)).shape[1] == 30


def test_find_threshold_links_nothing_without_density_or_pairs():
    x = make_features(6)
    everything = torch.ones(6, dtype=torch.bool)
    assert find_threshold(x, everything, 0.0) == NO_EDGES_THRESHOLD
    assert find_threshold(x, torch.arange(6) < 1, 0.5) == NO_EDGES_THRESHOLD
    assert find_threshold(x[:0], everything[:0], 0.5) == NO_EDGES_THRESHOLD


def test_neighbor_counts_and_adjacency_match_a_dense_matrix():
    x = make_features(12)
    edges = build_edges_between(
        x, make_available(12), make_features(9, seed=1), make_available(9), 0.1
    )
    dense = torch.zeros(12, 9)
    for i, j in edge_list(edges):
        dense[i, j] = 1
    assert torch.equal(build_adjacency(edges, (12, 9), torch.float).to_dense(), dense)
    assert count_neighbors(edges, 12).tolist() == dense.sum(1).tolist()
    assert not build_adjacency(edges[:, :0], (3, 2), torch.float).to_dense().any()


def test_an_edge_does_not_depend_on_the_other_rows():
    """The threshold is just below one of the cosines."""
    x, y = make_features(40, 64), make_features(300, 64, seed=1)
    all_y = torch.ones(len(y), dtype=torch.bool)
    threshold = (x[17] @ y[5]).item() - 1e-15 * 100
    all_x = torch.ones(len(x), dtype=torch.bool)
    edges = edge_list(build_edges_between(x, all_x, y, all_y, threshold))
    row_by_row = [
        (i, j)
        for i in range(len(x))
        for _, j in edge_list(build_edges_between(x[i : i + 1], all_x[:1], y, all_y, threshold))
    ]
    assert edges == row_by_row
    assert (17, 5) in edges
