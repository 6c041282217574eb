"""Similarity graph of 20,000 items with 512 features, cosine above 0.6, against faiss.

Features are sampled around centers, so that some pairs are similar, as for images. faiss
(`pip install faiss-cpu`, not a dependency of the project) searches an exact inner-product index.
Both must find the same number of pairs, up to rounding at the threshold. Memory is the peak growth
of the process including the edges, read from /proc (Linux only).
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import time_interleaved
from stages.models.mm_orient import relation_graph

ITEMS, WIDTH, NUM_CENTERS, THRESHOLD = 20_000, 512, 200, 0.6
SPREADS = (0.8, 0.6)  # of items around their center, which has length 1
ROUNDS = 3
MAX_MEMORY_MIB = 512  # the matrix of all cosines would take 1526


def sample_features(spread: float) -> Tensor:
    torch.manual_seed(0)
    centers = F.normalize(torch.randn(NUM_CENTERS, WIDTH), dim=-1)
    noise = torch.randn(ITEMS, WIDTH) / WIDTH**0.5
    return F.normalize(centers[torch.randint(NUM_CENTERS, (ITEMS,))] + spread * noise, dim=-1)


def read_process_memory(name: str) -> float:
    """Memory of this process in MiB. name: VmRSS (current) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure_memory(x: Tensor, available: Tensor) -> tuple[int, float]:
    """The number of edges and the peak memory in MiB that finding them takes."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the current value
    initial = read_process_memory("VmRSS")
    edges = relation_graph.build_edges_within(x, available, THRESHOLD)
    return edges.shape[1], read_process_memory("VmHWM") - initial


def measure_faiss_ratio(x: Tensor, available: Tensor, num_edges: int) -> float:
    """The time of faiss divided by ours."""
    import faiss

    rows = x.numpy()

    def search() -> int:
        index = faiss.IndexFlatIP(WIDTH)
        index.add(rows)
        _, _, indices = index.range_search(rows, THRESHOLD)
        return len(indices) - ITEMS  # each item finds itself

    if abs(search() - num_edges) > 1e-4 * num_edges + 2:
        raise AssertionError(f"faiss finds {search()} pairs, we find {num_edges}")

    def build() -> Tensor:
        return relation_graph.build_edges_within(x, available, THRESHOLD)

    seconds = time_interleaved({"ours": build, "faiss": search}, ROUNDS)
    return seconds["faiss"] / seconds["ours"]


def main() -> list[str]:
    lines = [
        f"pairs of {ITEMS} items with {WIDTH} features whose cosine is above {THRESHOLD}",
        "  share of pairs  faiss takes  memory, MiB, of which edges",
    ]
    available = torch.ones(ITEMS, dtype=torch.bool)
    has_faiss = find_spec("faiss") is not None
    for spread in SPREADS:
        x = sample_features(spread)
        num_edges, growth = measure_memory(x, available)
        if growth > MAX_MEMORY_MIB:
            raise AssertionError(f"{growth:.0f} MiB for {num_edges} edges")
        ratio = (
            f"{measure_faiss_ratio(x, available, num_edges):5.2f} x   "
            if has_faiss
            else "skipped    "
        )
        share, edge_mib = num_edges / ITEMS / (ITEMS - 1), 16 * num_edges / 2**20
        lines.append(f"  {share:12.4%}    {ratio}  {growth:11.0f}  {edge_mib:8.0f}")
    if not has_faiss:
        lines.append("  faiss is not installed: skipped")
    return lines
