#!/usr/bin/env python3
"""Every convolution that `ddim-engine bench kernels` measured, by cuDNN through PyTorch.

    python benches/torch_conv.py ROWS.json --json CUDNN.json            # ROWS.json: of `bench kernels --json`, bf16 on a GPU

Forward, gradient of the input and gradient of the weights, channels_last, with `cudnn.benchmark`; a call's time is that of twenty in one CUDA
graph between two events, the median of many replays, always on the same operands, as the engine's hot time is. What the engine's kernel does in
the same launch and cuDNN's call does not is named beside the time (`leaves_out`): norm and SiLU of the input, sums for the next norm, and so on.
A residual 1x1 convolution, which the engine adds up in the same kernel, is a call of its own here, and both count. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    import torch

CALLS = 20
METHOD = f"{CALLS} calls in one CUDA graph between events, the same operands, median of the replays"
SHAPE = re.compile(r"^(\d+)x(\d+)x(\d+) (\d+)(?:\+(\d+))?>(\d+) (\d+)x(\d+)(?:/(\d+))?(?: res (\d+)(?:\+(\d+))?)?$")
# Options of a row of `bench kernels`, and what they mean where cuDNN's call does not do it.
FUSED = {"affine": "norm of the input", "silu": "SiLU of the input", "constant": "channels that are constant over a picture",
         "silu'": "gradient of SiLU", "norm'": "gradient of the norm", "add": "another gradient added", "stats": "sums for the next norm",
         "border": "sums along the borders", "double": "doubling of the picture"}


@dataclass(frozen=True)
class Product:
    """A convolution: pictures [n, c, h, w], filter [k, c, side, side]."""

    n: int
    h: int
    w: int
    c: int
    k: int
    side: int
    stride: int = 1


@dataclass(frozen=True)
class Work:
    """What a row asks of cuDNN."""

    directions: tuple[str, ...]  # of fprop, dgrad, wgrad
    products: tuple[Product, ...]  # of the forward convolution, whichever the direction
    leaves_out: tuple[str, ...]

    def calls(self) -> list[str]:
        """Every call for people."""
        return [f"{direction} {p.n}x{p.h}x{p.w} {p.c}>{p.k} {p.side}x{p.side}" + (f"/{p.stride}" if p.stride > 1 else "")
                for p in self.products for direction in self.directions]


def work_of(row: dict[str, Any]) -> Work | None:
    """A row of `bench kernels` -> cuDNN's calls; None where it is no convolution, or its shape is not known here."""
    directions = {("conv", "conv forward"): ("fprop",), ("conv", "conv dgrad"): ("dgrad",), ("conv_wgrad", "conv wgrad"): ("wgrad",),
                  ("conv2d", "conv forward"): ("fprop",), ("resample_conv", "conv forward"): ("fprop",),
                  ("resample_conv_backward", "conv dgrad"): ("dgrad", "wgrad")}.get((row["operation"], row["kind"]))
    found = SHAPE.match(row["shape"])
    if directions is None or found is None:
        return None
    n, h, w, c0, c1, k, side, side_w, stride, r0, r1 = (int(word) if word else 0 for word in found.groups())
    if side != side_w:
        return None
    options = row["options"].split("+") if row["options"] else []
    stride = 2 if "keep" in options or "keep 1" in options else stride or 1
    # A row of a dgrad has the channels as the kernel sees them: those of dy first. A product is that of the forward convolution.
    turned = row["kind"] == "conv dgrad" and row["operation"] == "conv"

    def product(inputs: int, side: int) -> Product:
        return Product(n, h, w, k if turned else inputs, inputs if turned else k, side, stride)

    products = [product(c0 + c1, side)] + ([product(r0 + r1, 1)] if r0 else [])
    left = [FUSED[option] for option in options if option in FUSED]
    left += ["inputs side by side, not in one tensor"] if c1 or r1 else []
    left += ["1x1 residual in the same sum"] if r0 else []
    return Work(directions, tuple(products), tuple(left))


def call_of(product: Product, direction: str, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """One call of cuDNN, its operands made."""
    import torch

    p = product
    pad = p.side // 2

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, weight = tensor(p.n, p.c, p.h, p.w), tensor(p.k, p.c, p.side, p.side) * (p.c * p.side**2) ** -0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    if direction == "fprop":
        bias = torch.randn(p.k, device=device, dtype=dtype)
        return lambda: torch.nn.functional.conv2d(x, weight, bias, stride=p.stride, padding=pad)
    dy = tensor(p.n, p.k, (p.h - 1) // p.stride + 1, (p.w - 1) // p.stride + 1)
    mask = [direction == "dgrad", direction == "wgrad", False]
    return lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, [p.stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, mask)


def seconds(call: Callable[[], object], cuda: bool, repeat: int) -> float:
    """Median time of a call."""
    import torch

    for _ in range(3):  # cuDNN looks for its fastest way here
        call()
    if not cuda:
        times = []
        for _ in range(repeat):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeat + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) / 1e3 / CALLS for before, after in zip(events, events[1:]))


def measure(rows: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """cuDNN's time of every row that is a convolution; the same calls are timed once."""
    import torch

    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    known: dict[tuple[Product, str], float] = {}
    found = []
    for row in rows:
        work = work_of(row)
        if work is None:
            continue
        record: dict[str, Any] = {name: row[name] for name in ("operation", "kind", "shape", "options")}
        record |= {"calls": work.calls(), "leaves_out": list(work.leaves_out)}
        try:
            for product in work.products:
                for direction in work.directions:
                    if (product, direction) not in known:
                        call = call_of(product, direction, device, dtype)
                        known[product, direction] = seconds(call, device.type == "cuda", args.repeat)
                        del call
            record["cudnn_seconds"] = sum(known[product, direction] for product in work.products for direction in work.directions)
        except RuntimeError as error:  # one shape that does not run leaves the others
            record["why"] = " ".join(str(error).split())[:200]
        found.append(record)
    return found


def main() -> int:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("rows", type=Path, help="of `ddim-engine bench kernels --json`")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu: only to try this script")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16")
    parser.add_argument("--repeat", type=int, default=50, help="replays of each; the median counts")
    parser.add_argument("--json", type=Path, help="also write the result there")
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__} sees no GPU here")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = args.precision != "fp32"
    rows = measure(json.loads(args.rows.read_text())["rows"], args)
    result = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "precision": args.precision, "method": METHOD,
              "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "none: cpu", "rows": rows}
    for row in rows:
        took = f"{1e6 * row['cudnn_seconds']:10.1f} us" if "cudnn_seconds" in row else row["why"]
        print(f"{row['kind']:13} {row['shape']:40} {took}  {'; '.join(row['calls'])}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
