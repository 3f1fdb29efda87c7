"""PyTorch on a GPU: the variants that `torch_peer.py --device cuda` measures, and their comparison with the engine.

A step is that of the CPU's suite: noise and times anew, forward, loss, backward, clipping where the preset has it, AdamW, on one resident batch.
Sampling is the seed's loop from noise to pictures on the host. All variants use channels_last, cuDNN's search for the fastest algorithm, and the
fused AdamW that can be captured; none reads a number back within the timed steps. Times of steps are those between CUDA events recorded after every
step, so that gaps in which the GPU waits for Python count, as they do in training; a sampling ends when its pictures are on the host.

Outputs first: every child compares its network's prediction, in its arithmetic and compiled as it is, with the same network's in fp32, eager. A
difference beyond the tolerance leaves the time and marks it. `outputs` compares that network with the engine's, by way of a reference file.

Nothing here imports torch before it is needed: the process that starts the measurements stays small.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from peer_child import loss_of, randomise, relative_error, sample
from peer_engine import check_errors
from peer_models import Diffusion, build_of
from peer_process import ChildFailed, run_child

if TYPE_CHECKING:
    import torch
    from torch import nn

CHILD = Path(__file__).resolve().with_name("peer_child.py")
# Relative errors that a variant may have against fp32: of a step's prediction (`check` has 5e-2 for bf16), and of pictures, to which every
# network call adds.
TOLERANCES = {"step": {"tf32": 1e-2, "bf16": 5e-2}, "sampling": {"tf32": 2e-2, "bf16": 1e-1}}
# Settings of the preset `seed`, for a run without an engine to ask.
SEED = {"family": "seed", "channels": 3, "image_size": 64, "embedding_dim": 32, "widths": [32, 64, 96, 128], "block_depth": 2, "schedule": "cosine",
        "min_signal_rate": 0.02, "max_signal_rate": 0.95, "predict": "noise", "loss": "mae", "lr": 1e-3, "weight_decay": 1e-4, "grad_clip": 0.0,
        "batch_size": 64}
# Of the reference file: pictures, of which batch norm wants some, and steps of its sampling.
OUTPUTS_BATCH = {"seed": 16, "unet2d-64": 2}
OUTPUTS_STEPS = 5


@dataclass(frozen=True)
class Variant:
    """A way to run PyTorch."""

    about: str
    precision: str  # the engine's arithmetic to compare with
    compile_mode: str | None = None
    whole_step_graph: bool = False  # the step, optimiser included, or the whole loop of sampling, as one CUDA graph

    @property
    def bf16(self) -> bool:
        """Whether the network runs under autocast to bfloat16."""
        return self.precision == "bf16"


VARIANTS = {
    "eager-tf32": Variant("eager, fp32 with tf32 on", "tf32"),
    "eager-bf16": Variant("eager, bf16 autocast", "bf16"),
    "compile-bf16": Variant("torch.compile(max-autotune) with its CUDA graphs, bf16 autocast", "bf16", "max-autotune"),
    "graph-tf32": Variant("torch.compile(max-autotune), all as one CUDA graph, fp32 with tf32 on", "tf32", "max-autotune-no-cudagraphs", True),
    "graph-bf16": Variant("torch.compile(max-autotune), all as one CUDA graph, bf16 autocast", "bf16", "max-autotune-no-cudagraphs", True),
}


# ---- one measurement, in a child process -----------------------------------------------------------------------------------------


class Peer:
    """A network of a preset, the way it is called, and what it was compared with."""

    def __init__(self, variant: Variant, device: torch.device, config: dict[str, Any], train: bool) -> None:
        import torch

        self.variant, self.device, self.config = variant, device, config
        self.diffusion = Diffusion(config, device)
        network = build_of(config)
        # As in reference files: layers that begin with zeros would have predictions of zeros.
        randomise(network, config, torch.Generator().manual_seed(1))
        self.network: nn.Module = network.train(train).to(device=device, memory_format=torch.channels_last)
        self.error = math.nan

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of pictures."""
        return batch, self.config["channels"], self.config["image_size"], self.config["image_size"]

    def compiled(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """As the variant has it."""
        import torch

        return torch.compile(call, mode=self.variant.compile_mode) if self.variant.compile_mode else call

    def autocast(self) -> torch.autocast:
        """The network's arithmetic."""
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.variant.bf16)

    def begin(self) -> None:
        """Tells PyTorch's own graphs that a step begins, whose results of the one before are no longer needed."""
        import torch

        if self.variant.compile_mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()

    def hold(self, got: torch.Tensor, in_fp32: Callable[[], torch.Tensor]) -> None:
        """Compares what the variant computes with the same in fp32, eager."""
        import torch

        got = got.detach().float().clone()
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        with torch.no_grad():
            want = in_fp32()
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        self.error = relative_error(got, want)


def training_step(peer: Peer, batch: int) -> Callable[[], torch.Tensor]:
    """A function that trains for one step and returns the loss, on the device, not waited for."""
    import torch

    config, diffusion, network = peer.config, peer.diffusion, peer.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["lr"], weight_decay=config["weight_decay"], fused=True,
                                  capturable=peer.device.type == "cuda")
    images = torch.randn(*peer.shape(batch), device=peer.device).contiguous(memory_format=torch.channels_last)
    call, loss_function = peer.compiled(network), loss_of(config)

    def noised() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        noise, times = torch.randn_like(images), diffusion.draw(batch)
        signal, sigma = diffusion.rates(times)
        told = diffusion.told(times, sigma)
        signal, sigma = signal[:, None, None, None], sigma[:, None, None, None]
        return signal * images + sigma * noise, told, diffusion.target(images, noise, signal, sigma)

    def step() -> torch.Tensor:
        peer.begin()
        noisy, told, target = noised()
        optimizer.zero_grad(set_to_none=True)
        with peer.autocast():
            loss = loss_function(call(noisy, told).float(), target)
        loss.backward()
        if config["grad_clip"] > 0:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config["grad_clip"])
        optimizer.step()
        return loss.detach()

    noisy, told, _ = noised()
    peer.begin()
    with peer.autocast():
        predicted = call(noisy, told)
    peer.hold(predicted, lambda: network(noisy, told))
    del predicted
    return step


def sampling(peer: Peer, count: int, steps: int) -> Callable[[], torch.Tensor]:
    """A function that draws pictures of the family seed and returns them, on the device, not waited for.

    Network and update are compiled together, so that nothing but the noise is left between them.
    """
    import torch

    if peer.config["family"] != "seed":
        raise SystemExit("sampling is timed on a GPU for the family seed alone")
    diffusion = peer.diffusion
    times = torch.linspace(1, 0, steps, device=peer.device)
    rates = [tuple(rate[:, None, None, None].contiguous() for rate in diffusion.rates(time.expand(count))) for time in times]

    def advance(x: torch.Tensor, now: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        with peer.autocast():
            predicted = peer.network(x, now[1].flatten().square()).float()
        noise, picture = diffusion.split(predicted, x, *now)
        return after[0] * picture + after[1] * noise, picture

    call = peer.compiled(advance)

    def draw(initial: torch.Tensor | None = None) -> torch.Tensor:
        x = torch.randn(*peer.shape(count), device=peer.device) if initial is None else initial
        x = picture = x.contiguous(memory_format=torch.channels_last)
        for now, after in zip(rates, rates[1:]):
            peer.begin()
            x, picture = call(x, now, after)
            if peer.variant.compile_mode == "max-autotune":  # its graphs write the next call's results over these
                x = x.clone()
        return picture

    with torch.no_grad():
        initial = torch.randn(*peer.shape(count), device=peer.device)
        peer.hold(draw(initial), lambda: sample(peer.config, peer.network, initial, steps))

    def drawn() -> torch.Tensor:
        with torch.no_grad():
            return draw()

    return drawn


def capture(step: Callable[[], torch.Tensor], warmup: int) -> Callable[[], torch.Tensor]:
    """The step as a CUDA graph: a function that replays it and returns its result, always in the same place."""
    import torch

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(max(3, warmup)):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def timed_steps(step: Callable[[], torch.Tensor], steps: int, on_gpu: bool) -> tuple[list[float], float]:
    """Seconds of each step, between events; the last loss."""
    import torch

    if not on_gpu:
        return timed_calls(lambda: step().item(), steps)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        loss = step()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in zip(events, events[1:])], loss.item()


def timed_calls(call: Callable[[], float], times: int) -> tuple[list[float], float]:
    """Seconds of each call on the host, and what the last one gave."""
    seconds, value = [], math.nan
    for _ in range(times):
        began = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - began)
    return seconds, value


def timed_drawings(draw: Callable[[], torch.Tensor], times: int, on_gpu: bool) -> tuple[list[float], float]:
    """Seconds from the first noise to pictures in the host's memory; the mean of the last pictures."""
    import torch

    host = torch.empty_like(draw(), device="cpu", pin_memory=on_gpu)

    def whole() -> float:
        host.copy_(draw(), non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        return 0.0

    seconds, _ = timed_calls(whole, times)
    return seconds, host.mean().item()


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Trains or samples on the GPU and returns the seconds of each repetition, with what is needed to judge them.

    `options`: variant, work (step or sampling), config, steps, warmup, sample_steps; device: cpu only to try this file.
    """
    import torch

    device = torch.device(options.get("device", "cuda"))
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise SystemExit(f"--device cuda: PyTorch {torch.__version__} ({built}) sees no GPU here")
    name, variant = options["variant"], VARIANTS[options["variant"]]
    steps, warmup, config = options["steps"], options["warmup"], options["config"]
    # Told to whoever compiles, of no use here: which of many algorithms did not fit, and that tf32 could be switched on.
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")

    began = time.perf_counter()
    train = options["work"] == "step"
    peer = Peer(variant, device, config, train)
    step = training_step(peer, config["batch_size"]) if train else sampling(peer, config["batch_size"], options["sample_steps"])
    if variant.whole_step_graph and on_gpu:
        step = capture(step, warmup)
    for _ in range(warmup + 1):
        first = step()
    first_value = first.mean().item()
    preparation = time.perf_counter() - began
    if on_gpu:  # without what compiling, comparing and looking for algorithms took
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step()
    seconds, value = (timed_steps if train else timed_drawings)(step, steps, on_gpu)
    if not (math.isfinite(first_value) and math.isfinite(value)):
        raise SystemExit(f"the result is not finite: {first_value}, {value}")
    return {
        "variant": name,
        "about": variant.about,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": torch.cuda.get_device_name() if on_gpu else "none: cpu",
        "batch": config["batch_size"],
        "image_size": config["image_size"],
        "seconds": seconds,
        "seconds_min": min(seconds),
        "seconds_median": statistics.median(seconds),
        "seconds_before": preparation,
        "value": value,
        "relative_error": peer.error,
        "outputs_differ": not peer.error <= TOLERANCES[options["work"]][variant.precision],
        # What its allocator holds from the driver, a graph's own memory included.
        "peak_gpu_mib": torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None,
        "peak_allocated_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
    }


# ---- children and reports --------------------------------------------------------------------------------------------------------


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The preset's settings, as the engine has them; without an engine those of `seed`, as stated here."""
    if not args.engine:
        return SEED | {"image_size": args.image_size, "batch_size": args.batch}
    command = [args.engine, "train", "--preset", args.preset, *sets_of(args), "--print-config"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ChildFailed(f"cannot start {args.engine}: {error.strerror}") from error
    if done.returncode:
        raise ChildFailed(f"`{' '.join(command)}` exited with {done.returncode}: {done.stderr.strip()[-400:]}")
    return read_settings(done.stdout)


def sets_of(args: argparse.Namespace) -> list[str]:
    """What is set beside the preset."""
    batch = args.images if args.sampling else args.batch
    return ["--set", f"image_size={args.image_size}", "--set", f"batch_size={batch}"]


def read_settings(text: str) -> dict[str, Any]:
    """What `train --print-config` prints: TOML whose values are JSON as well, and one table. (tomllib is there from Python 3.11 on.)"""
    whole: dict[str, Any] = {}
    part = whole
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            part = whole.setdefault(line[1: line.index("]")], {})
        elif "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            part[name.strip()] = json.JSONDecoder().raw_decode(value.strip())[0]
    return whole


def run_variant(args: argparse.Namespace, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Measures a variant in a fresh process."""
    options = {"what": "gpu", "variant": name, "work": "sampling" if args.sampling else "step", "config": config, "steps": args.steps,
               "warmup": args.warmup, "sample_steps": args.sample_steps}
    return run_child([sys.executable, str(CHILD), json.dumps(options)], dict(os.environ))


def run_engine(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Measures the engine on the GPU with its own `bench step` or `bench sample`."""
    what = "sample" if args.sampling else "step"
    command = [args.engine, "bench", what, "--device", "cuda", "--precision", precision, "--preset", args.preset, "--repeat", str(args.steps)]
    if args.sampling:
        images = str(args.images)
        command += ["--set", f"image_size={args.image_size}", "--images", images, "--batch", images, "--sample-steps", str(args.sample_steps)]
    else:
        command += sets_of(args)
    result = run_child([*command, "--json", "-", *args.engine_args.split()], dict(os.environ))
    names = {"seconds_min": "seconds_per_step_min", "seconds_median": "seconds_per_step_median"}
    found = {key: result.get(key, result.get(of_step)) for key, of_step in names.items()}
    missing = [key for key, value in found.items() if not isinstance(value, (int, float))]
    if missing:
        raise ChildFailed(f"the engine's JSON lacks {', '.join(missing)}; it has {', '.join(sorted(result))}")
    return result | found | {"variant": f"ddim-engine {precision}"}


def outputs(args: argparse.Namespace) -> dict[str, Any]:
    """A reference file of the preset's network at its extents, a few pictures, as PyTorch computes it on the CPU in fp32; the engine's `check` of it."""
    args.batch, args.sampling = OUTPUTS_BATCH[args.preset], False
    config = settings_of(args)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        file = Path(folder) / "reference.safetensors"
        options = {"what": "reference", "config": config, "reference": str(file), "threads": os.cpu_count() or 1, "sample_steps": OUTPUTS_STEPS}
        run_child([sys.executable, str(CHILD), json.dumps(options)], dict(os.environ))
        for precision in ("fp32", "tf32", "bf16"):
            command = [args.engine, "check", "--device", args.outputs_device, "--precision", precision, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            rows[precision] = judged(done.stdout, done.stderr, done.returncode)
            print(f"  {precision}: {'the same' if rows[precision]['passed'] else 'DIFFERENT'}\n{done.stdout}{done.stderr}", flush=True)
    return rows


def judged(text: str, complaint: str, code: int) -> dict[str, Any]:
    """What a `check` of one reference file says; the bounds of the worst single parameter are those of the CPU's suite (peer_engine.py)."""
    errors, failed = check_errors(text)
    largest = max((error for error in errors.values() if not math.isnan(error)), default=None)
    why = "" if errors else f"exit code {code}: {complaint.strip()[-200:]}"
    return {"passed": bool(errors) and not failed, "failed": failed, "why": why, "largest_relative_error": largest, "relative_errors": errors}


def describe(result: dict[str, Any], batch: int) -> str:
    """One line for one measurement."""
    median = result["seconds_median"]
    text = f"{result['variant']:<18} median {1e3 * median:8.3f} ms  min {1e3 * result['seconds_min']:8.3f} ms"
    text += f"  {batch / median:8.0f} images/s"
    if "peak_gpu_mib" in result:
        text += f"  peak {result['peak_gpu_mib'] or 0:6.0f} MiB  ready after {result['seconds_before']:.0f} s"
        text += f"  off fp32 by {result['relative_error']:.1e}" + (" DIFFERENT" if result["outputs_differ"] else "")
    return text


Round = tuple["dict[str, Any]", "dict[str, Any]", "dict[str, Any]"]  # PyTorch's run, the engine's before and after it


def compare(rounds: dict[str, list[Round]]) -> list[dict[str, Any]]:
    """Of each variant's medians in seconds, PyTorch's and the engine's, round by round."""
    rows = []
    for name, found in rounds.items():
        pairs = [(peer["seconds_median"], statistics.mean(run["seconds_median"] for run in ours)) for peer, *ours in found]
        ratios = [peer / ours for peer, ours in pairs]
        peer, ours = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))

        def peak(runs: list[dict[str, Any]], key: str) -> float | None:
            return max((run[key] for run in runs if isinstance(run.get(key), (int, float))), default=None)

        rows.append({"variant": name, "about": VARIANTS[name].about, "engine_precision": VARIANTS[name].precision,
                     "torch_seconds_median": peer, "engine_seconds_median": ours, "ratio_of_medians": statistics.median(ratios),
                     "ratios": ratios, "outputs_differ": any(run[0].get("outputs_differ") for run in found),
                     "torch_peak_mib": peak([run[0] for run in found], "peak_gpu_mib"),
                     "engine_peak_mib": peak([run for _, *ours in found for run in ours], "arena_peak_mib")})
    return rows


def measure_all(args: argparse.Namespace, save: Callable[[list[dict[str, Any]], list[dict[str, Any]]], None]) -> bool:
    """Runs every variant asked for, with an engine as engine, PyTorch, engine, `rounds` times. False if one failed.

    `save` gets all runs and comparisons so far after every variant: compiling takes minutes, and who stops it keeps the rest. A
    variant that fails is told and left out from then on.
    """
    runs: list[dict[str, Any]] = []
    rounds: dict[str, list[Round]] = {}
    failures: set[str] = set()
    config = settings_of(args)
    batch = config["batch_size"]

    def run(what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        result = what()
        runs.append(result)
        print("  " + describe(result, batch), flush=True)
        return result

    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", flush=True)
        for name in args.variant:
            if name in failures:
                continue
            variant = VARIANTS[name]
            try:
                before = run(lambda: run_engine(args, variant.precision)) if args.engine else None
                peer = run(lambda: run_variant(args, name, config))
                after = run(lambda: run_engine(args, variant.precision)) if args.engine else None
            except ChildFailed as failure:
                print(f"torch_peer: {name}: {failure}", file=sys.stderr)
                failures.add(name)
                runs.append({"variant": name, "failed": str(failure)})
                save(runs, compare(rounds))
                continue
            if before and after:
                rounds.setdefault(name, []).append((peer, before, after))
            save(runs, compare(rounds))
    if rounds:
        what = f"{args.images} pictures in {args.sample_steps} steps" if args.sampling else f"batch {batch}"
        print(f"\n`{args.preset}`, {what} at {config['image_size']}x{config['image_size']}, {args.rounds} rounds of {args.steps}; "
              "ratio: PyTorch's median over the mean of the engine's medians before and after (above 1: the engine is faster)\n")
        print("| PyTorch | ms | engine | ms | ratio: median | all |\n|---|---|---|---|---|---|")
        for row in compare(rounds):
            print(f"| {row['about']}{' (outputs differ)' if row['outputs_differ'] else ''} | {1e3 * row['torch_seconds_median']:.3f} "
                  f"| {row['engine_precision']} | {1e3 * row['engine_seconds_median']:.3f} | **{row['ratio_of_medians']:.2f}** "
                  f"| {', '.join(f'{ratio:.2f}' for ratio in row['ratios'])} |")
    return not failures
