"""Times one training step of the `seed` preset in PyTorch, the peer that ddim-engine is measured against.

    python benches/torch_peer.py                                # eager, channels_last, allocator as installed
    python benches/torch_peer.py --tuned-allocator              # the same with a glibc that keeps freed memory
    python benches/torch_peer.py --tuned-allocator --compile    # plus torch.compile
    python benches/torch_peer.py --engine target/release/ddim-engine --rounds 5

A step is q_sample with fresh noise and times, forward, loss, backward and AdamW, on one resident batch. Every measurement runs
in its own child process, so that peaks of memory do not mix and allocator settings apply from the start; this process never
imports torch. With `--engine` the children alternate (PyTorch, engine, tuned PyTorch, engine, ...), and every PyTorch run is
compared with the engine's run just after it: on a shared machine neighbours in time see the same neighbours on the cores.

Needs torch; `--compile` needs a C++ compiler as well. The network is stated here on its own; `torch_curve.py` imports it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

# glibc returns large freed blocks to the kernel at once, and the next step pays for them in page faults. These settings make it
# keep them: no trimming, no separate mappings, and growth in large pieces.
TUNED_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(256 << 20),
}


# ---- the network -----------------------------------------------------------------------------------------------------------------


def build_network(channels: int = 3, embedding_dim: int = 32, widths: tuple[int, ...] = (32, 64, 96, 128),
                  depth: int = 2) -> nn.Module:
    """The seed's U-Net: (noisy pictures [B,C,H,W], variance [B]) -> prediction [B,C,H,W].

    Module names are those of the reference files. Built in a function, so that importing this file does not import torch.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class ResidualBlock(nn.Module):
        """A 1x1 convolution of x, plus norm, 3x3, SiLU, 3x3."""

        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.batch_norm1 = nn.BatchNorm2d(before, eps=1e-5, momentum=0.1)
            self.conv1 = nn.Conv2d(before, after, kernel_size=3, padding=1)
            self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1)
            self.conv_res = nn.Conv2d(before, after, kernel_size=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = F.silu(self.conv1(self.batch_norm1(x)))
            return self.conv2(hidden) + self.conv_res(x)

    def level(inputs: list[int], after: int) -> nn.Module:
        """One resolution: a residual block for each entry of `inputs`, all of width `after`."""
        holder = nn.Module()
        holder.resnet_blocks = nn.ModuleList(ResidualBlock(before, after) for before in inputs)
        return holder

    class Unet(nn.Module):
        """Residual blocks down and up the resolutions; each block on the way down feeds one on the way up."""

        def __init__(self) -> None:
            super().__init__()
            entering = [2 * embedding_dim, *widths[:-1]]
            leaving = [*reversed(widths[:-1]), embedding_dim]
            bottom = widths[-1]
            self.down_blocks = nn.ModuleList(
                level([first] + [width] * (depth - 1), width) for first, width in zip(entering, widths))
            self.mid_blocks = nn.ModuleList([ResidualBlock(bottom, 2 * bottom), ResidualBlock(2 * bottom, bottom)])
            self.up_blocks = nn.ModuleList(
                level([2 * width] + [out + width] * (depth - 1), out) for width, out in zip(reversed(widths), leaving))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for down in self.down_blocks:
                for block in down.resnet_blocks:
                    x = block(x)
                    skips.append(x)
                x = F.avg_pool2d(x, kernel_size=2)
            for block in self.mid_blocks:
                x = block(x)
            for up in self.up_blocks:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
                for block in up.resnet_blocks:
                    x = block(torch.cat((x, skips.pop()), dim=1))
            return x

    class SeedNetwork(nn.Module):
        """Stem, noise embedding, U-Net and a head that starts at zero."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, embedding_dim, kernel_size=1)
            self.unet = Unet()
            self.conv_out = nn.Conv2d(embedding_dim, channels, kernel_size=1)
            nn.init.zeros_(self.conv_out.weight)
            nn.init.zeros_(self.conv_out.bias)
            count = embedding_dim // 2
            octaves = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
            self.register_buffer("frequencies", (2 * math.pi * 1000.0**octaves).float(), persistent=False)

        def forward(self, noisy: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
            phase = torch.outer(variance, self.frequencies)
            embedding = torch.cat((phase.sin(), phase.cos()), dim=1)
            x = self.conv(noisy)
            # Written out in x's memory format: a broadcast view would turn the whole first level back to NCHW.
            planes = torch.empty_like(x).copy_(embedding[:, :, None, None])
            return self.conv_out(self.unet(torch.cat((x, planes), dim=1)))

    return SeedNetwork()


def cosine_rates(times: torch.Tensor, low: float = 0.02, high: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """Times [B] in [0, 1] -> (signal, noise) rates [B], whose squares add to one."""
    first, last = math.acos(high), math.acos(low)
    angle = first + (last - first) * times
    return angle.cos(), angle.sin()


# ---- one measurement, in a child process -----------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Trains for a few steps here and returns the seconds of each, with what is needed to judge them."""
    import contextlib
    import resource

    import torch
    import torch.nn.functional as F

    def usage() -> resource.struct_rusage:
        return resource.getrusage(resource.RUSAGE_SELF)

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    imported_kib = usage().ru_maxrss
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format

    network = build_network().train().to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4, fused=args.fused_adamw or None)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size).contiguous(memory_format=memory_format)
    call = torch.compile(network) if args.compile else network

    def autocast() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if args.bf16 else contextlib.nullcontext()

    def step() -> float:
        noise = torch.randn_like(images)
        signal, sigma = cosine_rates(torch.rand(args.batch))
        noisy = signal[:, None, None, None] * images + sigma[:, None, None, None] * noise
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = F.l1_loss(call(noisy, sigma.square()).float(), noise)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(args.warmup):
        step()
    before = usage()
    seconds, losses = [], []
    for _ in range(args.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    after = usage()
    if not all(math.isfinite(loss) for loss in losses):
        raise SystemExit(f"the loss is not finite: {losses}")
    return {
        "variant": variant_name(args),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "math": math_mode(args),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "batch": args.batch,
        "image_size": args.image_size,
        "seconds": seconds,
        "seconds_per_step_min": min(seconds),
        "seconds_per_step_median": statistics.median(seconds),
        "loss": losses[-1],
        "page_faults_per_step": (after.ru_minflt - before.ru_minflt) / args.steps,
        "cpu_seconds_per_step": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / args.steps,
        "peak_rss_mib": after.ru_maxrss / 1024,
        "rss_after_import_mib": imported_kib / 1024,
    }


def math_mode(args: argparse.Namespace) -> str:
    """Arithmetic of the network, in words."""
    return "bf16 autocast" if args.bf16 else "fp32"


def variant_name(args: argparse.Namespace) -> str:
    """One label for a combination of options."""
    parts = ["compiled" if args.compile else "eager", "channels_last" if args.channels_last else "nchw"]
    parts += ["bf16"] if args.bf16 else []
    parts += ["fused AdamW"] if args.fused_adamw else []
    parts += ["tuned allocator"] if args.tuned_allocator else []
    return ", ".join(parts)


# ---- children --------------------------------------------------------------------------------------------------------------------


class ChildFailed(RuntimeError):
    """A child did not give a result; the message says what it printed."""


def run_child(command: list[str], environment: dict[str, str]) -> tuple[dict[str, Any], float]:
    """Runs a command whose last line of output is a JSON object -> (that object, its peak resident MiB as the kernel saw it)."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            child = subprocess.Popen(command, stdout=out, stderr=err, env=environment, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise ChildFailed(f"cannot start {command[0]}: {error.strerror}") from error
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text, complaint = out.read(), err.read().strip()
    if child.returncode != 0:
        lines = complaint.splitlines()[-6:] or text.strip().splitlines()[-6:] or ["(no output)"]
        raise ChildFailed(f"`{' '.join(command)}` exited with {child.returncode}:\n    " + "\n    ".join(lines))
    result = parse_object(text)
    if result is None:
        raise ChildFailed(f"`{' '.join(command)}` printed no JSON object: {text[:200]!r}")
    return result, usage.ru_maxrss / 1024


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or that stands on its last line; None if neither."""
    lines = text.strip().splitlines()
    for candidate in [text, *lines[-1:]]:
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def run_torch(args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """Measures PyTorch with `args`, a few of them changed, in a fresh process."""
    wanted = argparse.Namespace(**{**vars(args), **changes})
    options = {name: getattr(wanted, name) for name in MEASURED_OPTIONS}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    for name in TUNED_ALLOCATOR:
        environment.pop(name, None)
    if wanted.tuned_allocator:
        environment |= TUNED_ALLOCATOR
    result, peak = run_child([sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(options)], environment)
    result["peak_rss_mib"] = peak
    return result


MEASURED_OPTIONS = ("batch", "image_size", "threads", "steps", "warmup", "tuned_allocator", "compile", "bf16", "channels_last",
                    "fused_adamw")


def run_engine(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the engine with its own `bench step`, which prints JSON."""
    command = [args.engine, "bench", "step", "--preset", "seed", "--steps", str(args.steps), "--json", "-"]
    if args.image_size != 64:
        command += ["--set", f"image_size={args.image_size}"]
    if args.batch != 64:
        command += ["--set", f"batch_size={args.batch}"]
    if args.threads != os.cpu_count():
        command += ["--set", f"workers={args.threads}"]
    result, peak = run_child(command + args.engine_args.split(), dict(os.environ))
    missing = [key for key in ("seconds_per_step_min", "seconds_per_step_median") if not isinstance(result.get(key), (int, float))]
    if missing:
        raise ChildFailed(f"the engine's JSON lacks {', '.join(missing)}; it has {', '.join(sorted(result))}")
    if result.get("threads", args.threads) != args.threads:
        raise ChildFailed(f"the engine used {result['threads']} threads, PyTorch {args.threads}: not comparable")
    result["variant"] = "ddim-engine"
    result["peak_rss_mib"] = peak  # the same ruler as for PyTorch
    return result


# ---- reports ---------------------------------------------------------------------------------------------------------------------


def processor() -> str:
    """The processor's name, as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe(result: dict[str, Any], batch: int) -> str:
    """One line for one measurement."""
    least, median = result["seconds_per_step_min"], result["seconds_per_step_median"]
    text = f"{result['variant']:<46} min {least:7.3f} s  median {median:7.3f} s  {batch / least:6.1f} images/s"
    text += f"  peak {result['peak_rss_mib']:6.0f} MiB"
    if "page_faults_per_step" in result:
        text += f"  {result['page_faults_per_step']:7.0f} page faults and {result['cpu_seconds_per_step']:.2f} CPU seconds a step"
    return text


def print_single(result: dict[str, Any], args: argparse.Namespace) -> None:
    """The report of a run without an engine."""
    print(f"torch {result['torch']} ({result['cpu_capability']}), {result['threads']} threads, {result['math']}, batch {args.batch} "
          f"at {args.image_size}x{args.image_size}, {args.steps} steps after {args.warmup}, {result['parameters']:,} parameters")
    print(f"{processor()}, load {os.getloadavg()[0]:.1f}")
    print(describe(result, args.batch))
    print(f"memory after `import torch` alone: {result['rss_after_import_mib']:.0f} MiB")


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Alternates PyTorch and the engine, prints every run as it comes and a table of ratios at the end."""
    variants: list[dict[str, bool]] = [{"tuned_allocator": False, "compile": False}, {"tuned_allocator": True, "compile": False}]
    if args.compile:
        variants.append({"tuned_allocator": True, "compile": True})
    pairs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    runs = []
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
        for changes in variants:
            peer = run_torch(args, **changes)
            print("  " + describe(peer, args.batch), flush=True)
            ours = run_engine(args)
            print("  " + describe(ours, args.batch), flush=True)
            pairs.setdefault(peer["variant"], []).append((peer, ours))
            runs += [peer, ours]

    first = runs[0]
    print(f"\n{processor()}, {args.threads} threads; torch {first['torch']}, {first['math']}; engine: {runs[1].get('device', '?')}; "
          f"batch {args.batch} at {args.image_size}x{args.image_size}, {args.rounds} rounds of {args.steps} steps")
    print("Ratios are PyTorch over engine (above 1: the engine is better), one for each pair of neighbouring runs.\n")
    print("| PyTorch | s/step min | engine | ratio of minima: worst, median, best | ratio of medians: median | peak MiB | engine |")
    print("|---|---|---|---|---|---|---|")
    for name, both in pairs.items():
        minima = sorted(peer["seconds_per_step_min"] / ours["seconds_per_step_min"] for peer, ours in both)
        medians = [peer["seconds_per_step_median"] / ours["seconds_per_step_median"] for peer, ours in both]
        print(f"| {name} | {min(peer['seconds_per_step_min'] for peer, _ in both):.3f} "
              f"| {min(ours['seconds_per_step_min'] for _, ours in both):.3f} "
              f"| {minima[0]:.2f}, **{statistics.median(minima):.2f}**, {minima[-1]:.2f} | {statistics.median(medians):.2f} "
              f"| {max(peer['peak_rss_mib'] for peer, _ in both):.0f} | {max(ours['peak_rss_mib'] for _, ours in both):.0f} |")
    if args.bf16:
        print("\nPyTorch computed in bf16 here: this does not compare like with like if the engine computed in fp32.")
    return runs


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64, help="height and width in pixels, a multiple of 16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=10, help="timed steps in each process")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those, not timed")
    parser.add_argument("--tuned-allocator", action="store_true", help="set glibc to keep freed memory")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--fused-adamw", action="store_true", help="torch's single-pass AdamW in place of its default")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--channels-last", dest="channels_last", action="store_true", default=True, help="NHWC in memory (default)")
    layout.add_argument("--nchw", dest="channels_last", action="store_false", help="PyTorch's default layout")
    parser.add_argument("--json", metavar="FILE", help="write all measurements there, - for the screen")
    parser.add_argument("--engine", metavar="PATH", help="a ddim-engine binary to alternate with")
    parser.add_argument("--engine-args", default="", metavar="ARGS", help="further arguments of its `bench step`, in one string")
    parser.add_argument("--rounds", type=int, default=3, help="with --engine: times that every pair of runs is repeated")
    parser.add_argument("--child", metavar="OPTIONS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.batch, args.threads, args.steps, args.rounds) < 1 or args.warmup < 0:
        parser.error("--batch, --threads, --steps and --rounds must be at least 1, --warmup at least 0")
    if args.image_size < 16 or args.image_size % 16:
        parser.error("--image-size must be a multiple of 16: the network halves it four times")
    if args.batch == 1 and args.image_size == 16:
        parser.error("batch norm needs more than one value for each channel: take a larger --batch or --image-size")
    return args


def main() -> int:
    """Measures as asked; 1 if a child failed."""
    args = parse()
    if args.child:
        print(json.dumps(measure(argparse.Namespace(**json.loads(args.child)))))
        return 0
    try:
        if args.engine:
            runs = compare(args)
        else:
            runs = [run_torch(args)]
            print_single(runs[0], args)
    except ChildFailed as failure:
        print(f"torch_peer: {failure}", file=sys.stderr)
        return 1
    if args.json:
        text = json.dumps({"processor": processor(), "runs": runs}, indent=1)
        print(text) if args.json == "-" else Path(args.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
