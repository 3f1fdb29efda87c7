"""PyTorch on a GPU: the variants that `torch_peer.py --device cuda` measures, and their comparison with the engine.

A step is that of torch_peer.py: q_sample with fresh noise and times, forward, loss, backward and AdamW, on one resident batch. All
variants use channels_last, cuDNN's search for the fastest algorithm, and the fused AdamW that can be captured; none reads a number
back within the timed loop. Times are those between CUDA events recorded after every step, so that gaps in which the GPU waits for
Python count, as they do in training.

Nothing here imports torch before it is needed: the process that starts the measurements stays small.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from peer_models import build_network, cosine_rates
from peer_process import ChildFailed, run_child

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Variant:
    """A way to run PyTorch."""

    about: str
    precision: str  # the engine's arithmetic to compare with
    compile_mode: str | None = None
    whole_step_graph: bool = False  # the step, optimiser included, as one CUDA graph

    @property
    def bf16(self) -> bool:
        """Whether the network runs under autocast to bfloat16."""
        return self.precision == "bf16"


VARIANTS = {
    "eager-tf32": Variant("eager, fp32 with tf32 on", "tf32"),
    "eager-bf16": Variant("eager, bf16 autocast", "bf16"),
    "compile-bf16": Variant("torch.compile(max-autotune) with its CUDA graphs, bf16 autocast", "bf16", "max-autotune"),
    "graph-tf32": Variant("torch.compile(max-autotune), the step as one CUDA graph, fp32 with tf32 on", "tf32",
                          "max-autotune-no-cudagraphs", True),
    "graph-bf16": Variant("torch.compile(max-autotune), the step as one CUDA graph, bf16 autocast", "bf16",
                          "max-autotune-no-cudagraphs", True),
}


# ---- one measurement, in a child process -----------------------------------------------------------------------------------------


def training_step(variant: Variant, device: torch.device, batch: int, image_size: int) -> Callable[[], torch.Tensor]:
    """A function that trains for one step and returns the loss, on the device, not waited for."""
    import torch
    import torch.nn.functional as F

    on_gpu = device.type == "cuda"
    network = build_network().train().to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4, fused=True, capturable=on_gpu)
    images = torch.randn(batch, 3, image_size, image_size, device=device).contiguous(memory_format=torch.channels_last)
    call = torch.compile(network, mode=variant.compile_mode) if variant.compile_mode else network

    def step() -> torch.Tensor:
        if variant.compile_mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()
        noise = torch.randn_like(images)
        signal, sigma = cosine_rates(torch.rand(batch, device=device))
        noisy = signal[:, None, None, None] * images + sigma[:, None, None, None] * noise
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=variant.bf16):
            loss = F.l1_loss(call(noisy, sigma.square()).float(), noise)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def capture(step: Callable[[], torch.Tensor], warmup: int) -> Callable[[], torch.Tensor]:
    """The step as a CUDA graph: a function that replays it and returns the loss, always in the same place."""
    import torch

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(max(3, warmup)):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Trains for a few steps on the GPU and returns the seconds of each, with what is needed to judge them."""
    import torch

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise SystemExit(f"--device cuda: PyTorch {torch.__version__} ({built}) sees no GPU here")
    name, variant = options["variant"], VARIANTS[options["variant"]]
    steps, warmup = options["steps"], options["warmup"]
    # Told to whoever compiles, of no use here: which of many algorithms did not fit, and that tf32 could be switched on.
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda")

    began = time.perf_counter()
    step = training_step(variant, device, options["batch"], options["image_size"])
    if variant.whole_step_graph:
        step = capture(step, warmup)
    first = step()
    for _ in range(warmup):
        step()
    torch.cuda.synchronize()
    preparation = time.perf_counter() - began
    first_loss = first.item()

    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    began = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        loss = step()
        event.record()
    torch.cuda.synchronize()
    wall = time.perf_counter() - began
    seconds = [before.elapsed_time(after) / 1e3 for before, after in zip(events, events[1:])]
    last_loss = loss.item()
    if not (math.isfinite(first_loss) and math.isfinite(last_loss)):
        raise SystemExit(f"the loss is not finite: {first_loss}, {last_loss}")
    return {
        "variant": name,
        "about": variant.about,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": torch.cuda.get_device_name(),
        "batch": options["batch"],
        "image_size": options["image_size"],
        "seconds": seconds,
        "seconds_per_step_min": min(seconds),
        "seconds_per_step_median": statistics.median(seconds),
        "seconds_per_step_wall": wall / steps,
        "seconds_before": preparation,
        "loss": last_loss,
        "peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20,
    }


# ---- children and reports --------------------------------------------------------------------------------------------------------


def run_variant(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measures a variant in a fresh process."""
    options = {key: getattr(args, key) for key in ("batch", "image_size", "steps", "warmup")} | {"what": "gpu", "variant": name}
    child = Path(__file__).resolve().with_name("peer_child.py")
    return run_child([sys.executable, str(child), json.dumps(options)], dict(os.environ))


def run_engine(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Measures the engine on the GPU with its own `bench step`."""
    command = [args.engine, "bench", "step", "--device", "cuda", "--precision", precision, "--preset", "seed"]
    command += ["--repeat", str(args.steps), "--json", "-"]
    command += ["--set", f"image_size={args.image_size}", "--set", f"batch_size={args.batch}"]
    result = run_child(command + args.engine_args.split(), dict(os.environ))
    missing = [key for key in ("seconds_per_step_min", "seconds_per_step_median") if not isinstance(result.get(key), (int, float))]
    if missing:
        raise ChildFailed(f"the engine's JSON lacks {', '.join(missing)}; it has {', '.join(sorted(result))}")
    return result | {"variant": f"ddim-engine {precision}"}


def describe(result: dict[str, Any], batch: int) -> str:
    """One line for one measurement."""
    median = result["seconds_per_step_median"]
    text = f"{result['variant']:<18} median {1e3 * median:8.3f} ms  min {1e3 * result['seconds_per_step_min']:8.3f} ms"
    text += f"  {batch / median:8.0f} images/s"
    if "peak_gpu_mib" in result:
        text += f"  peak {result['peak_gpu_mib']:6.0f} MiB  ready after {result['seconds_before']:.0f} s"
    return text


def compare(pairs: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Of each variant's medians in seconds, PyTorch's and the engine's, round by round."""
    rows = []
    for name, values in pairs.items():
        ratios = [peer / ours for peer, ours in values]
        peer, ours = (statistics.median(pair[side] for pair in values) for side in (0, 1))
        rows.append({"variant": name, "about": VARIANTS[name].about, "engine_precision": VARIANTS[name].precision,
                     "torch_seconds_median": peer, "engine_seconds_median": ours, "ratio_of_medians": statistics.median(ratios),
                     "ratios": ratios})
    return rows


def measure_all(args: argparse.Namespace, save: Callable[[list[dict[str, Any]], list[dict[str, Any]]], None]) -> bool:
    """Runs every variant asked for, with an engine as engine, PyTorch, engine, `rounds` times. False if one failed.

    `save` gets all runs and comparisons so far after every variant: compiling takes minutes, and who stops it keeps the rest. A
    variant that fails is told and left out from then on.
    """
    runs: list[dict[str, Any]] = []
    pairs: dict[str, list[tuple[float, float]]] = {}
    failures: set[str] = set()

    def run(what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        result = what()
        runs.append(result)
        print("  " + describe(result, args.batch), flush=True)
        return result

    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", flush=True)
        for name in args.variant:
            if name in failures:
                continue
            variant = VARIANTS[name]
            try:
                before = run(lambda: run_engine(args, variant.precision)) if args.engine else None
                peer = run(lambda: run_variant(args, name))
                after = run(lambda: run_engine(args, variant.precision)) if args.engine else None
            except ChildFailed as failure:
                print(f"torch_peer: {name}: {failure}", file=sys.stderr)
                failures.add(name)
                runs.append({"variant": name, "failed": str(failure)})
                save(runs, compare(pairs))
                continue
            if before and after:
                ours = statistics.mean(run["seconds_per_step_median"] for run in (before, after))
                pairs.setdefault(name, []).append((peer["seconds_per_step_median"], ours))
            save(runs, compare(pairs))
    if pairs:
        print(f"\nbatch {args.batch} at {args.image_size}x{args.image_size}, {args.rounds} rounds of {args.steps} steps; "
              "ratio: PyTorch's median over the mean of the engine's medians before and after (above 1: the engine is faster)\n")
        print("| PyTorch | ms/step | engine | ms/step | ratio: median | all |\n|---|---|---|---|---|---|")
        for row in compare(pairs):
            print(f"| {row['about']} | {1e3 * row['torch_seconds_median']:.3f} | {row['engine_precision']} "
                  f"| {1e3 * row['engine_seconds_median']:.3f} | **{row['ratio_of_medians']:.2f}** "
                  f"| {', '.join(f'{ratio:.2f}' for ratio in row['ratios'])} |")
    return not failures
