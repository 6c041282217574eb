"""The similarity graph of 20,000 items of 512 numbers, cosine above 0.6, against faiss.

Features are drawn around centres, so that some pairs are alike as those of pictures are. faiss
(`pip install faiss-cpu`, none of the project's dependencies) searches an exact index of inner
products; both must find the same pairs, but for those whose cosine is the threshold to a millionth.
Memory is what the process grew by at its largest, edges included (Linux tells).
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import time_interleaved
from stages.models.mm_orient import relation_graph

ITEMS, WIDTH, NUM_CENTERS, THRESHOLD = 20_000, 512, 200, 0.6
SPREADS = (0.8, 0.6)  # of items around their centre, its length being 1
ROUNDS = 3
MAX_MEMORY_MIB = 512  # MiB; a table of all cosines has 1526


def sample_features(spread: float) -> Tensor:
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(NUM_CENTERS, WIDTH), dim=-1)
    noise = torch.randn(ITEMS, WIDTH) / WIDTH**0.5
    return F.normalize(centres[torch.randint(NUM_CENTERS, (ITEMS,))] + spread * noise, dim=-1)


def read_process_memory(name: str) -> float:
    """MiB of this process: VmRSS, what it holds, VmHWM, what it has held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure_memory(x: Tensor, held: Tensor) -> tuple[int, float]:
    """How many edges there are, and the MiB needed to find them."""
    Path("/proc/self/clear_refs").write_text("5")  # what it has held at most is now what it holds
    before = read_process_memory("VmRSS")
    edges = relation_graph.build_edges_within(x, held, THRESHOLD)
    return edges.shape[1], read_process_memory("VmHWM") - before


def measure_faiss_ratio(x: Tensor, held: Tensor, edges: int) -> float:
    """How many times as long faiss takes."""
    import faiss

    rows = x.numpy()

    def search() -> int:
        index = faiss.IndexFlatIP(WIDTH)
        index.add(rows)
        _, _, found = index.range_search(rows, THRESHOLD)
        return len(found) - ITEMS  # each finds itself

    if abs(search() - edges) > 1e-4 * edges + 2:
        raise AssertionError(f"faiss finds {search()} pairs, we {edges}")
    ways = {"ours": lambda: relation_graph.build_edges_within(x, held, THRESHOLD), "faiss": search}
    seconds = time_interleaved(ways, ROUNDS)
    return seconds["faiss"] / seconds["ours"]


def main() -> list[str]:
    lines = [
        f"pairs of {ITEMS} items of {WIDTH} numbers whose cosine is above {THRESHOLD}",
        "  share of pairs  faiss takes  memory, MiB, of which edges",
    ]
    held = torch.ones(ITEMS, dtype=torch.bool)
    peer = find_spec("faiss") is not None
    for spread in SPREADS:
        x = sample_features(spread)
        edges, grown = measure_memory(x, held)
        if grown > MAX_MEMORY_MIB:
            raise AssertionError(f"{grown:.0f} MiB for {edges} edges")
        times = f"{measure_faiss_ratio(x, held, edges):5.2f} x   " if peer else "not here   "
        share, kept = edges / ITEMS / (ITEMS - 1), 16 * edges / 2**20
        lines.append(f"  {share:12.4%}    {times}  {grown:11.0f}  {kept:8.0f}")
    if not peer:
        lines.append("  faiss is not installed: skipped")
    return lines
