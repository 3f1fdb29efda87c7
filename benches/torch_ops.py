#!/usr/bin/env python3
"""Group norm with SiLU, and attention, alone: PyTorch and the engine in turn, on a GPU or on the CPU.

    python benches/torch_ops.py --device cuda --precision bf16 --engine target/release/ddim-engine [--json FILE]

The engine's times are those of `ddim-engine bench ops`, which also says which operations there are, at which extents, and how many bytes
they move. PyTorch does the same: `group_norm` and `silu` on channels_last tensors, `scaled_dot_product_attention` with its choice of kernel,
and their backwards. On a GPU its calls are recorded in a CUDA graph, as the engine's are, so that launches cost neither of them.

The engine's group norm gets the statistics from the convolution in front of it, which leaves them in its epilogue; PyTorch's computes
them. So the ratio is what a network sees, not that of two equal kernels. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    import torch

CALLS = 10


def measure_engine(args: argparse.Namespace) -> dict[str, Any]:
    """Runs `bench ops`."""
    command = [args.engine, "bench", "ops", "--device", args.device, "--precision", args.precision, "--batch", str(args.batch),
               "--repeat", str(args.repeat)]
    if args.device == "cpu":
        command += ["--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def seconds(call: Callable[[], object], cuda: bool, repeat: int) -> float:
    """Median time of a call."""
    import torch

    for _ in range(3):
        call()
    graph = None
    if cuda:
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                call()
    times = []
    for _ in range(repeat):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        if graph is not None:
            graph.replay()
            torch.cuda.synchronize()
        else:
            for _ in range(CALLS):
                call()
        times.append((time.perf_counter() - began) / CALLS)
    return statistics.median(times)


def torch_call(row: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """PyTorch's form of an operation of the engine's list."""
    import torch
    from torch.nn import functional as F

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    backward = row["operation"].endswith("_backward")
    if row["operation"].startswith("group_norm_silu"):
        side = int(row["pixels"] ** 0.5)
        shape = (row["batch"], row["channels"], side, side)
        x = normal(*shape).contiguous(memory_format=torch.channels_last).requires_grad_(backward)
        g = normal(*shape).contiguous(memory_format=torch.channels_last)
        weight, bias = (normal(row["channels"]).requires_grad_(backward) for _ in range(2))
        inputs = [x, weight, bias]

        def forward() -> torch.Tensor:
            return F.silu(F.group_norm(x, row["groups"], weight, bias, 1e-5))
    else:
        shape = (row["batch"], row["tokens"], row["heads"], row["head_dim"])
        inputs = [normal(*shape).transpose(1, 2).requires_grad_(backward) for _ in range(3)]
        g = normal(*shape).transpose(1, 2)

        def forward() -> torch.Tensor:
            return F.scaled_dot_product_attention(*inputs)

    if not backward:
        return forward
    y = forward()
    return lambda: torch.autograd.grad(y, inputs, g, retain_graph=True)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both, operation by operation."""
    import torch

    engine = measure_engine(args)
    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    torch.set_num_threads(args.threads)
    for row in engine["operations"]:
        row["torch_seconds_median"] = seconds(torch_call(row, device, dtype), device.type == "cuda", args.repeat)
        row["torch_over_engine"] = row["torch_seconds_median"] / row["seconds_median"]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {args.threads} threads"
    return {**engine, "torch": torch.__version__, "torch_device": name}


def print_table(result: dict[str, Any]) -> None:
    """A line for each operation."""
    print(f"{result['device']}, {result['precision']}; torch {result['torch']} on {result['torch_device']}")
    print(f"{'operation':28} {'extents':34} {'engine':>10} {'torch':>10} {'torch/engine':>13}")
    for row in result["operations"]:
        extents = " ".join(f"{key} {row[key]}" for key in ("pixels", "channels", "tokens", "heads", "head_dim") if key in row)
        ours, theirs = (f"{1e6 * row[key]:.1f} us" for key in ("seconds_median", "torch_seconds_median"))
        print(f"{row['operation']:28} {extents:34} {ours:>10} {theirs:>10} {row['torch_over_engine']:13.2f}")


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--engine", default="target/release/ddim-engine", help="the program to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16", help="on the CPU: fp32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=30, help="measurements of each operation; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, for both")
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    if args.device == "cpu" and args.precision != "fp32":
        parser.error(f"--device cpu computes in fp32, not --precision {args.precision}")
    result = compare(args)
    print_table(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
