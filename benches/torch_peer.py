"""PyTorch and ddim-engine in turn: training steps and sampling on a CPU, the engine's peer on a GPU.

    python benches/torch_peer.py --engine target/release/ddim-engine --suite             # everything: results folder and a table
    python benches/torch_peer.py --engine target/release/ddim-engine --suite --write-readme
    python benches/torch_peer.py --engine target/release/ddim-engine --only seed-step --rounds 5 --wait-idle 60
    python benches/torch_peer.py --table benches/results/NAME/peer.json --write-readme   # the table of a run made before
    python benches/torch_peer.py [--tuned-allocator] [--compile] [--bf16] [--nchw]       # PyTorch alone, the training step of `seed`
    python benches/torch_peer.py --device cuda --engine target/release/ddim-engine       # the variants of torch_cuda.py, on a GPU
    python benches/torch_peer.py --device cuda --engine target/release/ddim-engine --preset unet2d-64 --variant graph-bf16
    python benches/torch_peer.py --device cuda --engine target/release/ddim-engine --sampling --images 16 --variant graph-bf16

Every measurement runs in its own child process, so that peaks of memory do not mix and allocator settings apply from the start; this
process never imports torch. With an engine the children alternate (engine, PyTorch, engine, the next way to run PyTorch, engine, ...),
and every run of PyTorch is compared with the engine's just before and after it. Before anything is timed, the outputs are compared.

On a busy machine the figures are worth nothing: PyTorch's OpenMP threads spin at barriers, and one that loses its core holds up
the rest, up to a hundredfold. So every line says how much of the machine was in use before, by others meanwhile, and after; disturbed
runs are marked and left out of the table while there are others, and `--wait-idle` waits for a quiet moment before each run.

Needs torch, for `unet2d-step` diffusers, for compiling a C++ compiler; Python 3.11 (on a GPU 3.9). benches/README.md has the method.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peer_process import ChildFailed, processor, run_child, wait_idle

HERE = Path(__file__).resolve().parent


def run_torch(args: argparse.Namespace) -> dict[str, Any]:
    """Measures PyTorch alone with `args`, in a fresh process: a training step of the preset `seed`."""
    from peer_suite import Variant

    variant = Variant(tuned_allocator=args.tuned_allocator, compile=args.compile, bf16=args.bf16, channels_last=args.channels_last,
                      fused_adamw=args.fused_adamw)
    config = {"family": "seed", "channels": 3, "image_size": args.image_size, "embedding_dim": 32, "widths": [32, 64, 96, 128],
              "block_depth": 2, "schedule": "cosine", "min_signal_rate": 0.02, "max_signal_rate": 0.95, "predict": "noise", "loss": "mae",
              "lr": 1e-3, "weight_decay": 1e-4, "grad_clip": 0.0, "batch_size": args.batch}
    options = {"what": "step", "config": config, "variant": asdict(variant), "threads": args.threads, "steps": args.steps,
               "warmup": args.warmup, "budget_s": args.budget}
    wait_idle(args.wait_idle)
    command = [sys.executable, str(HERE / "peer_child.py"), json.dumps(options)]
    return run_child(command, variant.environment(args.threads), beside=0.5) | {"variant": variant.name}


def print_single(result: dict[str, Any], args: argparse.Namespace) -> None:
    """The report of a run without an engine."""
    from peer_suite import describe

    print(f"torch {result['torch']} ({result['cpu_capability']}), {result['threads']} threads, batch {args.batch} at "
          f"{args.image_size}x{args.image_size}, {result['timed']} steps after {result['warmup']}, {result['parameters']:,} parameters")
    print(processor())
    print(describe(result, args.batch))
    print(f"memory after `import torch` alone: {result['rss_after_import_mib']:.0f} MiB")


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Prints the table of a suite, and puts it into the README where asked."""
    import peer_table

    table = peer_table.markdown(result)
    print("\n" + table)
    if args.write_readme:
        peer_table.write_readme(HERE.parent / "README.md", table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the variants of torch_cuda.py")
    parser.add_argument("--engine", metavar="PATH", help="a ddim-engine binary to alternate with")
    parser.add_argument("--engine-args", default="", metavar="ARGS", help="further arguments of its `bench`, in one string")
    parser.add_argument("--suite", action="store_true", help="with --engine: all jobs")
    parser.add_argument("--only", metavar="NAME,...", type=lambda text: text.split(","), help="with --engine: these sections of the suite")
    parser.add_argument("--join", action="store_true", help="keep the other sections of a result that is there")
    parser.add_argument("--rounds", type=int, default=3, help="with --engine: times that everything is repeated")
    parser.add_argument("--steps", type=int, help="timed steps in each process [5, on a GPU 100]")
    parser.add_argument("--warmup", type=int, help="steps before those, not timed [2, on a GPU 20]")
    parser.add_argument("--sample-runs", type=int, default=2, help="timed samplings in each process, after one that is not")
    parser.add_argument("--sample-steps", type=int, default=20, help="network calls of a sampling")
    parser.add_argument("--images", type=int, default=64, help="pictures of a sampling")
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="no further repetition in a process after so long")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--wait-idle", type=float, default=0.0, metavar="SECONDS", help="wait so long at most for a quiet machine before each run")
    parser.add_argument("--lock", metavar="FILE", help="hold this lock file during each measurement, where a machine is shared by agreement")
    parser.add_argument("--nice", type=int, default=0, help="priority of the measured processes, as nice has it")
    parser.add_argument("--no-bf16", action="store_true", help="leave PyTorch's bf16 out: it takes minutes without instructions for it")
    parser.add_argument("--small", action="store_true", help="16x16, batch 4: tries whether everything runs; the times say nothing")
    parser.add_argument("--json", metavar="FILE", help="write all measurements there [a suite: results/DATE-PROCESSOR/peer.json], - for the screen")
    parser.add_argument("--table", metavar="FILE", help="only print the table of this result")
    parser.add_argument("--write-readme", action="store_true", help="put the table into README.md, between its markers")
    parser.add_argument("--batch", type=int, default=64, help="without an engine, or on a GPU")
    parser.add_argument("--image-size", type=int, default=64, help="likewise: height and width in pixels, a multiple of 16")
    parser.add_argument("--tuned-allocator", action="store_true", help="without an engine: set glibc to keep freed memory")
    parser.add_argument("--compile", action="store_true", help="likewise: torch.compile the network")
    parser.add_argument("--bf16", action="store_true", help="likewise: autocast to bfloat16")
    parser.add_argument("--fused-adamw", action="store_true", help="likewise: torch's single-pass AdamW in place of its default")
    parser.add_argument("--nchw", dest="channels_last", action="store_false", help="likewise: PyTorch's default layout, not NHWC")
    parser.add_argument("--variant", action="append", metavar="NAME", help="with --device cuda: only this one; may be repeated")
    parser.add_argument("--preset", choices=("seed", "unet2d-64"), default="seed", help="likewise: whose network")
    parser.add_argument("--sampling", action="store_true", help="likewise: not training steps but --images pictures in --sample-steps steps")
    parser.add_argument("--outputs", action="store_true", help="likewise: no times, but whether both compute the same, by a reference file")
    parser.add_argument("--outputs-device", default="cuda", help="of the engine's check with --outputs; cpu or sim: only to try it")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.steps = args.steps if args.steps is not None else (100 if on_gpu else 5)
    args.warmup = args.warmup if args.warmup is not None else (20 if on_gpu else 2)
    args.small_settings = [("image_size", "16"), ("batch_size", "4")] if args.small else []
    if on_gpu:
        from torch_cuda import VARIANTS

        args.variant = args.variant or list(VARIANTS)
        unknown = [name for name in args.variant if name not in VARIANTS]
        if unknown:
            parser.error(f"--variant {unknown[0]}: expected one of {', '.join(VARIANTS)}")
        if args.compile or args.bf16 or args.fused_adamw or args.tuned_allocator or not args.channels_last:
            parser.error("with --device cuda a --variant says how PyTorch runs; leave the CPU's options out")
        if args.suite or args.only or args.write_readme:
            parser.error("the suite and its table are the CPU's; --device cuda measures training steps, or with --sampling pictures")
        if (args.outputs or args.preset != "seed") and not args.engine:
            parser.error("--outputs and --preset need --engine, which knows the preset's settings")
    elif args.variant or args.sampling or args.outputs or args.preset != "seed":
        parser.error("--variant, --preset, --sampling and --outputs are for --device cuda")
    if args.only:
        from peer_suite import SECTIONS

        if unknown := [name for name in args.only if name not in SECTIONS]:
            parser.error(f"--only {unknown[0]}: expected some of {', '.join(SECTIONS)}")
    if (args.suite or args.only) and not args.engine:
        parser.error("--suite and --only need --engine")
    if min(args.batch, args.threads, args.steps, args.rounds, args.images, args.sample_runs) < 1 or args.warmup < 0:
        parser.error("--batch, --threads, --steps, --rounds, --images and --sample-runs must be at least 1, --warmup at least 0")
    if args.sample_steps < 2:
        parser.error("--sample-steps must be at least 2")
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

    try:
        if args.outputs:
            rows = torch_cuda.outputs(args)
            text = json.dumps({"processor": processor(), "outputs": rows}, indent=1)
            if args.json and args.json != "-":
                Path(args.json).write_text(text + "\n")
            passed = all(row["passed"] for row in rows.values())
        else:
            passed = torch_cuda.measure_all(args, save)
    except ChildFailed as failure:
        print(f"torch_peer: {failure}", file=sys.stderr)
        return 1
    if args.json == "-":
        print(text)
    return int(not passed)


def main() -> int:
    """Measures as asked; 1 if a child failed."""
    args = parse()
    if args.device == "cuda":
        return main_on_gpu(args)
    if args.table:
        show(json.loads(Path(args.table).read_text()), args)
        return 0
    try:
        if args.engine:
            from peer_suite import Suite

            if not args.suite and not args.only:
                args.only = ["seed-step"]
            suite = Suite(args)
            passed = suite.run()
            show(suite.result, args)
            if args.json == "-":
                print(json.dumps(suite.result, indent=1))
            else:
                print(f"written: {suite.file}")
            return int(not passed)
        result = run_torch(args)
        print_single(result, args)
    except ChildFailed as failure:
        print(f"torch_peer: {failure}", file=sys.stderr)
        return 1
    if args.json:
        text = json.dumps({"processor": processor(), "runs": [result]}, indent=1)
        print(text) if args.json == "-" else Path(args.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
