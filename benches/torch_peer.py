"""Times one training step of the `seed` preset in PyTorch, the peer that ddim-engine is measured against.

    python benches/torch_peer.py                                # eager, channels_last, allocator as installed
    python benches/torch_peer.py --tuned-allocator              # the same with a glibc that keeps freed memory
    python benches/torch_peer.py --tuned-allocator --compile    # plus torch.compile
    python benches/torch_peer.py --engine target/release/ddim-engine --rounds 5
    python benches/torch_peer.py --device cuda --engine target/release/ddim-engine    # the variants of torch_cuda.py, on a GPU

A step is q_sample with fresh noise and times, forward, loss, backward and AdamW, on one resident batch. Every measurement runs
in its own child process, so that peaks of memory do not mix and allocator settings apply from the start; this process never
imports torch. With `--engine` the children alternate (PyTorch, engine, tuned PyTorch, engine, ...), and every PyTorch run is
compared with the engine's run just after it.

On a busy machine the figures are worth nothing: PyTorch's OpenMP threads spin at barriers, and one that loses its core holds up
the rest, up to a hundredfold. So every line says how much of the machine other processes used meanwhile, disturbed runs are marked
and left out of the table while there are others, and `--wait-idle` waits for a quiet moment before each run.

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


def busy_seconds() -> float | None:
    """Seconds of processor time that all processes have used since the start of the machine; None where unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_idle(limit: float) -> None:
    """Returns once the processors have been nearly idle for two seconds, or after `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before, start = busy_seconds(), time.monotonic()
        time.sleep(2.0)
        after = busy_seconds()
        if before is None or after is None or after - before < 0.05 * (os.cpu_count() or 1) * (time.monotonic() - start):
            return


def run_child(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Runs a command whose last line of output is a JSON object, and returns that object.

    Added to it: `peak_rss_mib`, as the kernel saw it, and `others`, the share of the processors that other processes used meanwhile.
    """
    busy, start = busy_seconds(), time.monotonic()
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
    busy_after, capacity = busy_seconds(), (time.monotonic() - start) * (os.cpu_count() or 1)
    result = parse_object(text)
    if result is None:
        raise ChildFailed(f"`{' '.join(command)}` printed no JSON object: {text[:200]!r}")
    result["peak_rss_mib"] = usage.ru_maxrss / 1024
    known = busy is not None and busy_after is not None
    result["others"] = max(0.0, busy_after - busy - usage.ru_utime - usage.ru_stime) / capacity if known else None
    return result


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
    wait_idle(args.wait_idle)
    return run_child([sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(options)], environment)


MEASURED_OPTIONS = ("batch", "image_size", "threads", "steps", "warmup", "tuned_allocator", "compile", "bf16", "channels_last",
                    "fused_adamw")


def run_engine(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the engine with its own `bench step`, which prints JSON."""
    command = [args.engine, "bench", "step", "--preset", "seed", "--repeat", str(args.steps), "--json", "-"]
    if args.image_size != 64:
        command += ["--set", f"image_size={args.image_size}"]
    if args.batch != 64:
        command += ["--set", f"batch_size={args.batch}"]
    if args.threads != os.cpu_count():
        command += ["--set", f"workers={args.threads}"]
    wait_idle(args.wait_idle)
    result = run_child(command + args.engine_args.split(), dict(os.environ))
    missing = [key for key in ("seconds_per_step_min", "seconds_per_step_median") if not isinstance(result.get(key), (int, float))]
    if missing:
        raise ChildFailed(f"the engine's JSON lacks {', '.join(missing)}; it has {', '.join(sorted(result))}")
    if result.get("threads", args.threads) != args.threads:
        raise ChildFailed(f"the engine used {result['threads']} threads, PyTorch {args.threads}: not comparable")
    result["variant"] = "ddim-engine"
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
    if result["others"] is not None:
        text += f"  others {result['others']:4.0%}" + (" (disturbed)" if disturbed(result) else "")
    return text


def disturbed(result: dict[str, Any]) -> bool:
    """Whether other processes had so much of the machine that the figures say little."""
    return (result["others"] or 0.0) > 0.05


def print_single(result: dict[str, Any], args: argparse.Namespace) -> None:
    """The report of a run without an engine."""
    print(f"torch {result['torch']} ({result['cpu_capability']}), {result['threads']} threads, {result['math']}, batch {args.batch} "
          f"at {args.image_size}x{args.image_size}, {args.steps} steps after {args.warmup}, {result['parameters']:,} parameters")
    print(processor())
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
        print(f"round {number + 1} of {args.rounds}", flush=True)
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
    print("Ratios are PyTorch over engine (above 1: the engine is better): of the best steps of all runs, and of neighbouring runs.\n")
    print("| PyTorch | pairs | best s/step | engine | ratio | of neighbours' minima: worst, median, best | of their medians: median "
          "| peak MiB | engine |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, all_pairs in pairs.items():
        both = [pair for pair in all_pairs if not any(map(disturbed, pair))] or all_pairs
        note = " (all disturbed)" if any(map(disturbed, both[0])) else ""
        peer_best, our_best = (min(pair[side]["seconds_per_step_min"] for pair in both) for side in (0, 1))
        minima = sorted(peer["seconds_per_step_min"] / ours["seconds_per_step_min"] for peer, ours in both)
        medians = [peer["seconds_per_step_median"] / ours["seconds_per_step_median"] for peer, ours in both]
        peaks = [max(pair[side]["peak_rss_mib"] for pair in both) for side in (0, 1)]
        print(f"| {name} | {len(both)} of {len(all_pairs)}{note} | {peer_best:.3f} | {our_best:.3f} | **{peer_best / our_best:.2f}** "
              f"| {minima[0]:.2f}, {statistics.median(minima):.2f}, {minima[-1]:.2f} | {statistics.median(medians):.2f} "
              f"| {peaks[0]:.0f} | {peaks[1]:.0f} |")
    if args.bf16:
        print("\nPyTorch computed in bf16 here: this does not compare like with like if the engine computed in fp32.")
    return runs


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the variants of torch_cuda.py")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64, help="height and width in pixels, a multiple of 16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, help="timed steps in each process [10, on a GPU 100]")
    parser.add_argument("--warmup", type=int, help="steps before those, not timed [2, on a GPU 20]")
    parser.add_argument("--tuned-allocator", action="store_true", help="set glibc to keep freed memory")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--fused-adamw", action="store_true", help="torch's single-pass AdamW in place of its default")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--channels-last", dest="channels_last", action="store_true", default=True, help="NHWC in memory (default)")
    layout.add_argument("--nchw", dest="channels_last", action="store_false", help="PyTorch's default layout")
    parser.add_argument("--variant", action="append", metavar="NAME", help="with --device cuda: only this one; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write all measurements there, - for the screen")
    parser.add_argument("--engine", metavar="PATH", help="a ddim-engine binary to alternate with")
    parser.add_argument("--engine-args", default="", metavar="ARGS", help="further arguments of its `bench step`, in one string")
    parser.add_argument("--rounds", type=int, default=3, help="with --engine: times that every pair of runs is repeated")
    parser.add_argument("--wait-idle", type=float, default=0.0, metavar="SECONDS", help="wait so long at most for a quiet machine before each run")
    parser.add_argument("--child", metavar="OPTIONS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.steps = args.steps if args.steps is not None else (100 if on_gpu else 10)
    args.warmup = args.warmup if args.warmup is not None else (20 if on_gpu else 2)
    if on_gpu:
        from torch_cuda import VARIANTS

        args.variant = args.variant or list(VARIANTS)
        unknown = [name for name in args.variant if name not in VARIANTS]
        if unknown:
            parser.error(f"--variant {unknown[0]}: expected one of {', '.join(VARIANTS)}")
        if args.compile or args.bf16 or args.fused_adamw or args.tuned_allocator or not args.channels_last:
            parser.error("with --device cuda a --variant says how PyTorch runs; leave the CPU's options out")
    elif args.variant:
        parser.error("--variant is for --device cuda")
    if min(args.batch, args.threads, args.steps, args.rounds) < 1 or args.warmup < 0:
        parser.error("--batch, --threads, --steps and --rounds must be at least 1, --warmup at least 0")
    if args.image_size < 16 or args.image_size % 16:
        parser.error("--image-size must be a multiple of 16: the network halves it four times")
    if args.batch == 1 and args.image_size == 16:
        parser.error("batch norm needs more than one value for each channel: take a larger --batch or --image-size")
    return args


def main_on_gpu(args: argparse.Namespace) -> int:
    """Measures the variants of torch_cuda.py; 1 if one failed."""
    import torch_cuda

    text = ""

    def save(runs: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
        nonlocal text
        text = json.dumps({"processor": processor(), "comparisons": comparisons, "runs": runs}, indent=1)
        if args.json and args.json != "-":
            Path(args.json).write_text(text + "\n")

    passed = torch_cuda.measure_all(args, save)
    if args.json == "-":
        print(text)
    return int(not passed)


def main() -> int:
    """Measures as asked; 1 if a child failed."""
    args = parse()
    if args.child:
        options = json.loads(args.child)
        if options.get("device") == "cuda":
            import torch_cuda

            result = torch_cuda.measure(options)
        else:
            result = measure(argparse.Namespace(**options))
        print(json.dumps(result))
        return 0
    if args.device == "cuda":
        return main_on_gpu(args)
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
