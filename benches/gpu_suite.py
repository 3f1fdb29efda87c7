"""The steps of benches/gpu.sh: builds or finds the programs, runs every part of every step within its time limit, writes JSON and a table.

A part that fails or cannot run is told and the next one follows; the exit code is 1 if any failed, 2 if nothing could begin. Parts
that miss a tool (compute-sanitizer, nsys, torch) are `skipped`, which is shown but is no failure.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gpu_table
from gpu_base import HERE, PRECISIONS, Skipped, Step, Suite, Unit, calls, choose, label, only_text, read_json, write_json
from gpu_correct import step_check, step_facts, step_sanitizer, step_tests
from gpu_machine import Runner, ask, git_state, gpu_state
from gpu_pack import PACK_FILE, TEST_PROGRAMS, Unusable, build, make_pack, restore_paths
from gpu_roofline import step_ceilings, step_plan, step_roofline
from gpu_speed import step_kernels, step_sampling, step_times, step_torch, step_torch_unet2d, step_unet2d
from gpu_train import step_train

CALL_S = 600  # of a call of the script, as --dry-run divides the whole,
SPARE_S = 30  # with so much to spare, since what a part takes is a guess

# Seconds that each part is thought to take on an H200 beside 16 cores: judgement, to be replaced by the first run. None: --quick leaves it out.
STEPS: dict[str, Step] = {
    "facts": Step(step_facts, {"": (5, 5)}),
    "ceilings": Step(step_ceilings, {"torch": (30, 30), "engine": (15, 15)}),
    "tests": Step(step_tests, {"gpu": (60, 60), "ops": (240, 240)}),
    "check": Step(step_check, {precision: (30, 30) for precision in PRECISIONS}),
    "sanitizer": Step(step_sanitizer, {"memcheck": (180, 180), "racecheck": (240, 240), "initcheck": (180, None), "synccheck": (180, None)}),
    "times": Step(step_times, {precision: (15, 10) for precision in PRECISIONS}),
    "kernels": Step(step_kernels, {"fp32": (45, None), "tf32": (45, None), "bf16": (45, 45), "unet2d-64": (60, 60)}),
    "plan": Step(step_plan, {"seed": (5, 5), "unet2d-64": (10, 10), "seed-sampling": (5, 5)}, needs_gpu=False),
    "roofline": Step(step_roofline, {"seed": (180, 90), "unet2d-64": (420, 240)}),
    "torch": Step(step_torch, {"outputs": (45, 45), "eager-tf32": (90, None), "eager-bf16": (90, 40), "compile-bf16": (300, 200),
                               "graph-tf32": (300, None), "graph-bf16": (300, 200)}),
    "unet2d": Step(step_unet2d, {**{precision: (20, 15) for precision in PRECISIONS}, "ops-bf16": (40, 40), "ops-tf32": (40, None)}),
    "torch-unet2d": Step(step_torch_unet2d, {"outputs": (150, 150), "eager-bf16": (120, 60), "compile-bf16": (560, None), "graph-bf16": (560, 450)}),
    "sampling": Step(step_sampling, {"batch-64": (180, 120), "batch-16": (180, None), "batch-1": (180, 120)}),
    "train": Step(step_train, {"run": (120, 30), "torch": (180, 60)}),
}


def run_unit(suite: Suite, unit: Unit) -> dict[str, Any]:
    """Runs one part of a step whatever happens in it."""
    name, part = unit
    step = STEPS[name]
    seconds = step.seconds(part, suite.quick)
    about = f"about {seconds:.0f} s" if seconds is not None else "left out by --quick"
    print(f"\n== {label(unit)} ({about}): {(step.run.__doc__ or '').splitlines()[0]}", flush=True)
    began = time.monotonic()
    row: dict[str, Any] = {"step": name, "part": part, "status": "failed", "text": "", "seconds": 0.0}
    try:
        left = suite.runner.left()
        if seconds is None:
            raise Skipped("left out by --quick")
        if left is not None and left < seconds:
            raise Skipped(f"left for another call: about {seconds:.0f} s, and {left:.0f} s of --budget are left")
        passed, row["text"], more = step.run(suite, part)
        row |= more | {"status": "passed" if passed else "failed"}
    except Skipped as why:
        row |= {"status": "skipped", "text": str(why)}
    except Exception as error:  # a fault of this script must not cost the steps that follow
        traceback.print_exc()
        row["text"] = f"{type(error).__name__}: {error}"
    row["seconds"] = round(time.monotonic() - began, 1)
    if not suite.dry:
        print(f"   {row['status']} after {row['seconds']:.0f} s: {row['text']}", flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The steps for people."""
    lines = [f"{'step':<24} {'status':<8} {'s':>6}  result"]
    lines += [f"{label((row['step'], row.get('part') or '')):<24} {row['status']:<8} {row['seconds']:6.0f}  {row['text']}" for row in rows]
    return "\n".join(lines)


def divided(args: argparse.Namespace) -> str:
    """How the parts divide into calls."""
    found = calls(STEPS, args.units, args.quick, CALL_S - SPARE_S)
    total = sum(seconds for _, seconds in found)
    lines = [f"thought to take about {total / 60:.0f} minutes on an H200 (judgement, nothing was measured yet); calls of at most {CALL_S} s:"]
    quick = " --quick" if args.quick else ""
    lines += [f"  about {seconds:4.0f} s  benches/gpu.sh{quick} --budget {CALL_S - 10} --only {only_text(STEPS, units)}" for units, seconds in found]
    return "\n".join(lines)


def default_out(root: Path, card: str | None) -> Path:
    """benches/results/<date>-<gpu>/ of the repository or pack."""
    slug = re.sub(r"[^a-z0-9]+", "-", (card or "no gpu").lower().replace("nvidia", "")).strip("-")
    return root / "benches" / "results" / f"{datetime.date.today().isoformat()}-{slug}"


def programs(args: argparse.Namespace, root: Path) -> tuple[Path, list[Path], Path]:
    """The engine, the kernels' test programs, and the folder of the reference files."""
    packed = args.bin or (root if (root / PACK_FILE).exists() else None)
    if packed is not None:
        engine, tests = packed / "ddim-engine", sorted((packed / TEST_PROGRAMS).glob("*"))
        if not args.dry_run and not engine.exists():
            raise Unusable(f"{packed} holds no ddim-engine; fill a folder with benches/gpu.sh --pack DIR where there is cargo")
        fixtures = next((path for path in (packed / "tests/fixtures/reference", root / "tests/fixtures/reference") if path.is_dir()), None)
    elif args.dry_run:
        engine, tests = root / "target/release/ddim-engine", [Path(f"target/release/deps/{name}") for name in ("gpu_*", "ops_*")]
        fixtures = root / "tests/fixtures/reference"
    else:
        engine, tests = build(root)
        fixtures = root / "tests/fixtures/reference"
    if fixtures is None or not any(fixtures.glob("*.safetensors")):
        raise Unusable("the reference files are missing (tests/fixtures/reference)")
    return engine.absolute(), tests, fixtures.absolute()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, metavar="DIR", help="take the programs from a folder made by --pack, build nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go [benches/results/<date>-<gpu>]")
    parser.add_argument("--data", metavar="SOURCE", help="pictures of the training run: flowers, a folder or a .tar [procedural]")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of Inception-v3, for KID and FID of the training run [without]")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, shorter training, fewer parts")
    parser.add_argument("--only", metavar="STEP[:PART],...", help=f"of {', '.join(STEPS)}; --dry-run tells their parts")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="parts that would take longer than what is left of this are skipped")
    parser.add_argument("--gpu", metavar="NAME", help="the GPU that `plan` predicts for: h200, h100, a100 or rtx4090 [by the card's name]")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python with torch [the one that runs this]")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and their limits, how long they may take, run nothing")
    parser.add_argument("--write-readme", nargs="?", const="", metavar="RESULTS", help="put the table of a results folder (without one: of none) "
                        "into README.md, between its markers, and stop")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="fill DIR for a machine without cargo, and stop")
    args = parser.parse_args()
    try:
        args.units = choose(STEPS, args.only)
    except ValueError as why:
        parser.error(str(why))
    if args.budget is not None and args.budget <= 0:
        parser.error("--budget must be above 0")
    for name in ("data", "inception"):
        value = getattr(args, name)
        if value and Path(value).exists():
            setattr(args, name, str(Path(value).absolute()))
    if args.inception and not Path(args.inception).is_file():
        parser.error(f"--inception {args.inception}: no such file")
    return args


def main() -> int:
    """Runs what was asked for."""
    began = time.monotonic()
    args, root = parse(), HERE.parent
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # ends like Ctrl-C: nothing is left running
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # device 0 is then the one that nvidia-smi calls 0
    card: str | None = None
    try:
        if args.write_readme is not None:
            gpu_table.main(Path(args.write_readme) if args.write_readme else None, root / "README.md")
            return 0
        if args.pack:
            return make_pack(root, args.pack)
        engine, tests, fixtures = programs(args, root)
        if not args.dry_run:
            card = card_of(engine, needed=any(STEPS[name].needs_gpu for name, _ in args.units))
    except (Unusable, ValueError, OSError) as why:
        print(f"gpu.sh: {why}", file=sys.stderr)
        return 2
    out = (args.out or default_out(root, card)).absolute()
    runner = Runner(out, root, args.dry_run, deadline=began + args.budget if args.budget and not args.dry_run else None)
    suite = Suite(args, runner, engine, tests, sorted(fixtures.glob("*.safetensors")), card)
    print(f"{'would write' if args.dry_run else 'writes'} {out}")
    if args.dry_run:
        failed = any([run_unit(suite, unit)["status"] == "failed" for unit in args.units])
        print(f"\n{divided(args)}")
        return int(failed)
    return run_all(suite, root, fixtures)


def card_of(engine: Path, needed: bool) -> str | None:
    """The GPU's name as the driver has it; None where there is no GPU and none is needed.

    Raises:
        Unusable: there is none.
    """
    doctor = ask([str(engine), "doctor"]) or ""
    if re.search(r"^gpu\s+cuda:\d", doctor, re.MULTILINE):
        return (gpu_state() or {}).get("name") or "a GPU that nvidia-smi does not know"
    if needed:
        said = [line for line in doctor.splitlines() if line.lower().startswith(("gpu", "cuda"))]
        raise Unusable("no usable GPU: " + ("; ".join(said) or f"{engine} doctor does not run"))
    return None


def run_all(suite: Suite, root: Path, fixtures: Path) -> int:
    """Runs the parts, writes the summary after each."""
    args, out = suite.args, suite.runner.out
    out.mkdir(parents=True, exist_ok=True)
    packed = read_json(suite.engine.parent / PACK_FILE) or {}
    git = packed.get("git") or git_state(root)
    # Parts that an earlier run of the same commit on the same card has left in this folder stay in the summary.
    earlier = read_json(out / "summary.json") or {}
    suite.join = bool(earlier) and earlier.get("git") == git and earlier.get("card") == suite.card
    kept = [row for row in earlier.get("steps", []) if suite.join and (row["step"], row.get("part") or "") not in args.units]
    command = shlex.join(["benches/gpu.sh", *sys.argv[1:]])
    state = gpu_state() if suite.card else None
    summary: dict[str, Any] = {"format": "ddim-engine-gpu/2", "command": command, "commands": [*(earlier.get("commands", []) if suite.join else []), command],
                               "began": now(), "git": git, "packed": bool(packed), "kernels": packed.get("kernels"), "card": suite.card,
                               "gpu_before": state, "quick": args.quick}
    rows: list[dict[str, Any]] = []
    interrupted = False
    with restore_paths(suite.engine.parent, fixtures):
        for unit in args.units:
            try:
                row = run_unit(suite, unit)
            except KeyboardInterrupt:
                interrupted = True
                row = {"step": unit[0], "part": unit[1], "status": "failed", "text": "interrupted", "seconds": 0.0}
            rows.append(row)
            # After every part, so that a run that is cut off leaves what it has found.
            everything = in_order(kept + rows)
            ended = {"ended": now(), "gpu_after": gpu_state() if suite.card else None, "steps": everything,
                     "passed": all(row["status"] != "failed" for row in everything)}
            write_json(out / "summary.json", summary | ended)
            if interrupted:
                break
    print(f"\n{table(in_order(kept + rows))}\n\n{out / 'summary.json'}")
    return 130 if interrupted else int(any(row["status"] == "failed" for row in rows))


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of the steps and parts."""
    order = [(name, part) for name, step in STEPS.items() for part in step.parts]
    return sorted(rows, key=lambda row: order.index(unit) if (unit := (row["step"], row.get("part") or "")) in order else len(order))


def now() -> str:
    """The time, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
