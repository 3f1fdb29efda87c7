#!/usr/bin/env python3
"""What a card can do, as PyTorch reaches it: copies, large matrix products, the cost of a graph's nodes.

    python benches/torch_ceilings.py --json CEILINGS.json

`copies`: bytes read and written a second by `copy_` between two blocks of so many bytes (32 MiB stay in the second-level cache of a large card,
4 GiB do not). `gemm`: two square matrices of 8192, by cuBLAS. `graph`: a graph of many kernels of one element each, one behind the other: what a
node costs at least, with its gap; and how long it takes from launching a graph of one node until the host knows that it ended. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable

NODES = (100, 2100)  # of two graphs, whose difference counts


def between_events(call: Callable[[], object], calls: int, repeat: int) -> list[float]:
    """Seconds of a call, from `repeat` groups of `calls`, between CUDA events."""
    import torch

    for _ in range(3):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeat + 1)]
    events[0].record()
    for event in events[1:]:
        for _ in range(calls):
            call()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 / calls for before, after in zip(events, events[1:])]


def copies(sizes: list[int]) -> list[dict[str, Any]]:
    """Of blocks of so many bytes."""
    import torch

    rows = []
    for size in sizes:
        try:
            source, target = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
            times = between_events(lambda: target.copy_(source), max(1, (1 << 30) // size), 20)
            del source, target
        except torch.cuda.OutOfMemoryError:
            continue
        rows.append({"bytes": size, "bytes_per_second": 2 * size / min(times), "median": 2 * size / statistics.median(times)})
        torch.cuda.empty_cache()
    return rows


def gemm(extent: int) -> dict[str, Any]:
    """A square product in bf16 and in tf32; random operands, since zeros take less power."""
    import torch

    found = {}
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        a, b = (torch.randn(extent, extent, dtype=dtype, device="cuda") for _ in range(2))
        out = torch.empty_like(a)
        times = between_events(lambda: torch.mm(a, b, out=out), 5, 20)
        found[name] = {"extent": extent, "flops_per_second": 2 * extent**3 / min(times), "median": 2 * extent**3 / statistics.median(times)}
    return found


def graph_nodes() -> dict[str, Any]:
    """Seconds of a node, and of a whole small graph."""
    import torch

    x = torch.zeros(1, device="cuda")

    def recorded(nodes: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(nodes):
                x.add_(1)
        return graph

    x.add_(1)
    torch.cuda.synchronize()
    few, many = (statistics.median(between_events(recorded(nodes).replay, 1, 50)) for nodes in NODES)
    one = recorded(1)
    waits = []
    for _ in range(200):
        began = time.perf_counter()
        one.replay()
        torch.cuda.synchronize()
        waits.append(time.perf_counter() - began)
    return {"seconds_per_node": (many - few) / (NODES[1] - NODES[0]), "nodes": NODES[1], "seconds_launch_to_known_end": statistics.median(waits)}


def main() -> int:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__} sees no GPU here")
    result = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name(), "by": "PyTorch",
              "copies": copies([32 << 20, 4 << 30]), "gemm": gemm(8192), "graph": graph_nodes()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
