"""The steps of benches/gpu.sh: builds or finds the programs, runs every step within its time limit, writes JSON and a table.

A step that fails or cannot run is told and the next one follows; the exit code is 1 if any failed, 2 if nothing could begin. Steps
that miss a tool (compute-sanitizer, nsys, torch) are `skipped`, which is shown but is no failure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from gpu_machine import Done, Runner, ask, git_state, gpu_state, machine_facts
from gpu_pack import PACK_FILE, TEST_PROGRAMS, Unusable, build, make_pack, restore_paths
from gpu_parse import (check_rows, count_tests, kernel_launches, kernel_sums, kernels_of_ncu, last_losses, sanitizer_errors)

HERE = Path(__file__).resolve().parent
PRECISIONS = ("fp32", "tf32", "bf16")
# A step of a network whose channels fill whole vectors and tiles: the reference files are too small to reach those paths.
SMALL_STEP = ["--set", "image_size=16", "--set", "batch_size=2", "--set", "widths=32,64", "--set", "embedding_dim=16", "--set",
              "block_depth=1", "--repeat", "2"]
SANITIZER_FOUND = 99


@dataclass
class Suite:
    """What the steps share."""

    args: argparse.Namespace
    runner: Runner
    engine: Path
    tests: list[Path]
    fixtures: list[Path]

    def write(self, name: str, value: Any) -> str:
        """A JSON file of the output folder; its name is returned."""
        if not self.runner.dry:
            write_json(self.runner.out / name, value)
        return name

    def bench(self, precision: str, repeat: int) -> list[Any]:
        """The command that times training steps of the preset `seed`."""
        return [self.engine, "bench", "step", "--device", "cuda", "--precision", precision, "--preset", "seed", "--repeat", repeat]

    def tool(self, name: str) -> str | None:
        """A tool of the CUDA toolkit, on the path or where toolkits install it; the dry run takes its name."""
        places = [f"/usr/local/cuda/bin/{name}", f"/usr/local/cuda/compute-sanitizer/{name}"]
        return shutil.which(name) or next((place for place in places if Path(place).exists()), name if self.runner.dry else None)


class Skipped(Exception):
    """A step that cannot run here; the message says why."""


Outcome = tuple[bool, str, dict[str, Any]]  # passed, in a few words, for the summary


# ---- the steps -------------------------------------------------------------------------------------------------------------------


def step_facts(suite: Suite) -> Outcome:
    """The machine, its GPU, its state before any load."""
    facts = {} if suite.runner.dry else machine_facts(suite.engine)
    gpu = facts.get("gpu") or {}
    text = f"{gpu.get('name') or 'GPU unknown to nvidia-smi'}, driver {gpu.get('driver_version')}, CUDA {facts.get('driver_cuda_version')}"
    return True, text, {"file": suite.write("machine.json", facts)}


def step_tests(suite: Suite) -> Outcome:
    """The kernels' test programs, whose cases run on the GPU where there is one."""
    rows, wrong = [], []
    for program in suite.tests:
        name = re.sub(r"-[0-9a-f]{16}$", "", program.name)
        done = suite.runner.run([program, "--nocapture"], 900, f"test-{name}.log")
        counts = count_tests(done.output)
        without_gpu = "skipped on cuda" in done.output
        good = done.ok and not without_gpu
        if not good and not suite.runner.dry:
            wrong.append(name + (" (its GPU cases did not run)" if without_gpu else f" ({done.why})"))
        rows.append({"program": name, "passed": good, **counts, **done.record()})
    cases = [line for row in rows for line in row.pop("cases")]
    if not rows:
        raise Skipped("no test programs: build with cargo, or take a folder made by --pack")
    total, failed = sum(row["tests_passed"] for row in rows), sum(row["tests_failed"] for row in rows)
    text = f"{len(rows)} programs, {total} tests passed, {failed} failed" + "".join(f"; {line}" for line in cases)
    text += f"; wrong: {', '.join(wrong)}" if wrong else ""
    return not wrong, text, {"file": suite.write("tests.json", rows)}


def step_check(suite: Suite) -> Outcome:
    """All reference files against PyTorch's numbers in every arithmetic; two training runs that must give the same bytes."""
    report: dict[str, Any] = {}
    wrong = []
    for precision in PRECISIONS:
        done = suite.runner.run([suite.engine, "check", "--device", "cuda", "--precision", precision, *suite.fixtures], 600,
                                f"check-{precision}.log")
        rows = check_rows(done.output)
        report[precision] = {**done.record(), "rows": rows,
                             "largest_in_units_of_tolerance": max((row["used"] for row in rows), default=None)}
        if not done.ok:
            wrong.append(f"check in {precision} ({done.why})")
    models = []
    for precision in PRECISIONS:
        for number in (1, 2):
            run = suite.runner.out / "logs" / f"repeat-{precision}-{number}"
            shutil.rmtree(run, ignore_errors=True)
            done = suite.runner.run([suite.engine, "train", "--device", "cuda", "--precision", precision, "--steps", "20", "--quiet",
                                     "--seed", "5", "--run-dir", run], 300, f"repeat-{precision}-{number}.log")
            models.append(sorted(run.glob("checkpoints/step-*/model.safetensors")))
            if not done.ok:
                wrong.append(f"20 steps in {precision} ({done.why})")
        first, second = ([path.read_bytes() for path in files] for files in models[-2:])
        same = first == second and (bool(first) or suite.runner.dry)
        report[precision]["same_bytes_when_repeated"] = same
        if not same:
            wrong.append(f"two runs in {precision} differ")
        for number in (1, 2):
            shutil.rmtree(suite.runner.out / "logs" / f"repeat-{precision}-{number}", ignore_errors=True)
    text = f"{len(suite.fixtures)} files in {', '.join(PRECISIONS)}; runs repeated" + (f"; wrong: {', '.join(wrong)}" if wrong else "")
    return not wrong, text, {"file": suite.write("check.json", report)}


def step_sanitizer(suite: Suite) -> Outcome:
    """compute-sanitizer on the smallest reference file and on steps of a small network."""
    sanitizer = suite.tool("compute-sanitizer")
    if sanitizer is None:
        raise Skipped("compute-sanitizer was not found; it comes with the CUDA toolkit")
    tools = ["memcheck", "racecheck"] + ([] if suite.args.quick else ["initcheck", "synccheck"])
    smallest = min(suite.fixtures, key=lambda path: path.stat().st_size)
    rows, wrong = [], []
    for tool in tools:
        for precision in ("fp32", "bf16"):
            options = ["--device", "cuda", "--precision", precision]
            for what, command in [("check", ["check", *options, smallest]), ("step", ["bench", "step", *options, *SMALL_STEP])]:
                # Each buffer an allocation of its own: memcheck then sees an access one element too far.
                apart = ["env", "DDIM_SEPARATE_BUFFERS=1"] if tool in ("memcheck", "initcheck") else []
                done = suite.runner.run([*apart, sanitizer, "--tool", tool, "--error-exitcode", SANITIZER_FOUND, "--print-limit", 20,
                                         suite.engine, *command], 420, f"{tool}-{what}-{precision}.log")
                found = sanitizer_errors(done.output)
                if not suite.runner.dry and (not done.ok or found != 0):
                    wrong.append(f"{tool} of {what} in {precision} ({found} errors; {done.why or 'exit code 0'})")
                rows.append({"tool": tool, "what": what, "precision": precision, "errors": found, **done.record()})
    text = f"{', '.join(tools)}: {len(rows)} runs" + (f"; wrong: {', '.join(wrong)}" if wrong else ", no errors")
    return not wrong, text, {"file": suite.write("sanitizer.json", rows)}


def step_times(suite: Suite) -> Outcome:
    """Training steps of the preset `seed` in every arithmetic."""
    repeat = 50 if suite.args.quick else 300
    report: dict[str, Any] = {}
    for precision in PRECISIONS:
        file = suite.runner.out / "logs" / f"step-{precision}.json"
        file.unlink(missing_ok=True)
        before = None if suite.runner.dry else gpu_state()
        done = suite.runner.run([*suite.bench(precision, repeat), "--json", file], 300, f"step-{precision}.log", watch=True)
        result = read_json(file) or {}
        report[precision] = {**result, **done.record(), "gpu_before": before, "gpu_after": None if suite.runner.dry else gpu_state()}
    medians = {name: row.get("seconds_per_step_median") for name, row in report.items()}
    wrong = [name for name, median in medians.items() if median is None and not suite.runner.dry]
    text = ", ".join(f"{name} {1e3 * median:.3f} ms" for name, median in medians.items() if median)
    text += f"; no result: {', '.join(wrong)}" if wrong else ""
    return not wrong, text, {"file": suite.write("step.json", report), "seconds_per_step_median": medians}


def step_kernels(suite: Suite) -> Outcome:
    """Time of every kernel, by nsys or else by ncu."""
    nsys, ncu = suite.tool("nsys"), suite.tool("ncu")
    if nsys is None and ncu is None:
        raise Skipped("neither nsys nor ncu was found; both come with the CUDA toolkit")
    report, wrong = {}, []
    for precision in PRECISIONS:
        record = of_nsys(suite, nsys, precision) if nsys else {"kernels": []}
        if not record["kernels"] and ncu:
            record = of_ncu(suite, ncu, precision) | {"nsys": record if nsys else None}
        if not record["kernels"]:
            wrong.append(precision)
        report[precision] = record
    sums = {name: record.get("kernel_milliseconds_per_step") for name, record in report.items()}
    text = ", ".join(f"{name} {value:.3f} ms of kernels a step" for name, value in sums.items() if value)
    if wrong and not suite.runner.dry:
        text += f"; no result: {', '.join(wrong)} (see logs/nsys-*, logs/ncu-*)"
    return not wrong or suite.runner.dry, text, {"file": suite.write("kernels.json", report), "kernel_milliseconds_per_step": sums}


def of_nsys(suite: Suite, nsys: str, precision: str) -> dict[str, Any]:
    """Kernel times of some steps, by name and by launch extents."""
    repeat = 20
    (suite.runner.out / "logs").mkdir(parents=True, exist_ok=True) if not suite.runner.dry else None
    base = suite.runner.out / "logs" / f"nsys-{precision}"
    profile = suite.runner.run([nsys, "profile", "--trace=cuda", "--cuda-graph-trace=node", "--sample=none", "--cpuctxsw=none",
                                "--force-overwrite=true", "-o", base, *suite.bench(precision, repeat)], 300, f"nsys-{precision}.log")
    record: dict[str, Any] = {"profiler": "nsys", "profile": profile.record(), "steps": repeat + 2, "kernels": []}
    file = Path(f"{base}.nsys-rep")
    if not suite.runner.dry and not file.exists():
        return record
    stats = [nsys, "stats", "--format", "csv", "--force-export=true"]
    sums = suite.runner.run([*stats, "--report", "cuda_gpu_kern_sum", file], 300, f"nsys-{precision}-sums.csv", stdout_only=True)
    launches = suite.runner.run([*stats, "--report", "cuda_gpu_trace", file], 300, f"nsys-{precision}-launches.csv", stdout_only=True)
    record |= {"stats": sums.record(), "kernels": kernel_sums(sums.output), "launches": kernel_launches(launches.output)}
    if record["kernels"]:
        total = sum(row["total_ns"] for row in record["kernels"])
        record["kernel_milliseconds_per_step"] = total / 1e6 / record["steps"]
    for large in (file, file.with_suffix(".sqlite")):  # what they say is in the JSON
        large.unlink(missing_ok=True)
    return record


def of_ncu(suite: Suite, ncu: str, precision: str) -> dict[str, Any]:
    """Kernel times of three steps; ncu runs kernels one at a time at its base clock, so the sum is larger than a step."""
    done = suite.runner.run([ncu, "--csv", "--page", "raw", "--metrics", "gpu__time_duration.sum", "--graph-profiling", "node",
                             *suite.bench(precision, 1)], 420, f"ncu-{precision}.csv", stdout_only=True)
    rows = kernels_of_ncu(done.output)
    record: dict[str, Any] = {"profiler": "ncu", "profile": done.record(), "steps": 3, "kernels": rows}
    if rows:
        record["kernel_milliseconds_per_step"] = sum(row["total_ns"] for row in rows) / 1e6 / 3
    return record


def torch_python(suite: Suite) -> Any:
    """A Python whose torch sees the GPU."""
    python = suite.args.python
    has_gpu = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 3)"
    if not suite.runner.dry:
        try:
            code = subprocess.run([python, "-c", has_gpu], capture_output=True, stdin=subprocess.DEVNULL, timeout=120).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Skipped(f"{python}: {error}") from error
        if code:
            raise Skipped(f"{python} has no torch" if code == 1 else f"the torch of {python} sees no GPU")
    return python


def step_torch(suite: Suite) -> Outcome:
    """PyTorch and the engine in turn."""
    python = torch_python(suite)
    rounds, steps, limit = (1, 50, 900) if suite.args.quick else (3, 200, 2400)
    file = suite.runner.out / "torch.json"
    file.unlink(missing_ok=True)
    done = suite.runner.run([python, HERE / "torch_peer.py", "--device", "cuda", "--engine", suite.engine, "--rounds", rounds, "--steps",
                             steps, "--json", file], limit, "torch.log", watch=True)
    result = read_json(file) or {}
    ratios = {row["variant"]: row["ratio_of_medians"] for row in result.get("comparisons", [])}
    if not suite.runner.dry:
        suite.write("torch.json", {**done.record(), **result})
    text = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    text = f"PyTorch's time over the engine's: {text or 'none'}" + (f"; {done.why}, see logs/torch.log" if done.why else "")
    return done.ok and (bool(ratios) or suite.runner.dry), text, {"file": "torch.json", "torch_over_engine": ratios}


def step_unet2d(suite: Suite) -> Outcome:
    """The family unet2d: training steps of the preset `unet2d-64`; group norm and attention alone, beside PyTorch's."""
    repeat = 10 if suite.args.quick else 50
    report: dict[str, Any] = {"steps": {}, "operations": {}}
    for precision in PRECISIONS:
        file = suite.runner.out / "logs" / f"unet2d-{precision}.json"
        file.unlink(missing_ok=True)
        command = [suite.engine, "bench", "step", "--device", "cuda", "--precision", precision, "--preset", "unet2d-64", "--repeat", repeat]
        done = suite.runner.run([*command, "--json", file], 300, f"unet2d-{precision}.log", watch=True)
        report["steps"][precision] = {**(read_json(file) or {}), **done.record()}
    medians = {name: row.get("seconds_per_step_median") for name, row in report["steps"].items()}
    wrong = [name for name, median in medians.items() if median is None and not suite.runner.dry]
    text = ", ".join(f"{name} {1e3 * median:.2f} ms" for name, median in medians.items() if median)
    try:
        python = torch_python(suite)
        for precision in ("bf16", "tf32"):
            file = suite.runner.out / "logs" / f"ops-{precision}.json"
            file.unlink(missing_ok=True)
            done = suite.runner.run([python, HERE / "torch_ops.py", "--device", "cuda", "--precision", precision, "--engine", suite.engine,
                                     "--json", file], 300, f"ops-{precision}.log", watch=True)
            result = read_json(file) or {}
            report["operations"][precision] = {**result, **done.record()}
            ratios = [row["torch_over_engine"] for row in result.get("operations", [])]
            if ratios:
                text += f"; {precision} operations, PyTorch's time over the engine's {min(ratios):.2f} to {max(ratios):.2f}"
            elif not suite.runner.dry:
                wrong.append(f"operations in {precision}")
    except Skipped as why:
        text += f"; operations beside PyTorch's skipped: {why}"
    text += f"; no result: {', '.join(wrong)}" if wrong else ""
    return not wrong, text, {"file": suite.write("unet2d.json", report), "seconds_per_step_median": medians}


def step_train(suite: Suite) -> Outcome:
    """A training run in bf16, and pictures drawn by its model."""
    steps = 200 if suite.args.quick else 3000
    run = suite.runner.out / "train"
    shutil.rmtree(run, ignore_errors=True)
    source = suite.args.data or "procedural"
    done = suite.runner.run([suite.engine, "train", "--device", "cuda", "--precision", "bf16", "--preset", "seed", "--data", source,
                             "--steps", steps, "--seed", 1, "--run-dir", run], 900, "train.log", watch=True)
    samples = suite.runner.out / "samples.png"
    drawn = suite.runner.run([suite.engine, "sample", run, "--device", "cuda", "--count", 36, "--seed", 1, "--out", samples], 300,
                             "sample.log") if done.ok else None
    metrics = run / "metrics.jsonl"
    losses = last_losses(metrics.read_text()) if metrics.exists() else {}
    good = done.ok and drawn is not None and drawn.ok
    report = {"data": source, "steps": steps, "train": done.record(), "sample": drawn.record() if drawn else None, "last": losses,
              "summary": read_json(run / "summary.json")}
    text = f"{steps} steps on {source} in {done.seconds:.0f} s" + "".join(
        f", {name} noise_loss {row['noise_loss']:.4f}" for name, row in losses.items() if "noise_loss" in row)
    text += f"; {done.why or (drawn.why if drawn else '')}" if not good else ""
    return good, text, {"file": suite.write("train.json", report), "last": losses}


def write_json(path: Path, value: Any) -> None:
    """As JSON, which has no NaN and no infinity: null stands for them."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(part) for key, part in value.items()}
        if isinstance(value, list):
            return [finite(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file; None where there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


STEPS: dict[str, Callable[[Suite], Outcome]] = {
    "facts": step_facts, "tests": step_tests, "check": step_check, "sanitizer": step_sanitizer, "times": step_times,
    "kernels": step_kernels, "torch": step_torch, "unet2d": step_unet2d, "train": step_train,
}


# ---- the whole -------------------------------------------------------------------------------------------------------------------


def run_step(suite: Suite, name: str) -> dict[str, Any]:
    """Runs one step whatever happens in it."""
    print(f"\n== {name}: {(STEPS[name].__doc__ or '').splitlines()[0]}", flush=True)
    began = time.monotonic()
    row: dict[str, Any] = {"step": name, "status": "failed", "text": "", "seconds": 0.0}
    try:
        passed, row["text"], more = STEPS[name](suite)
        row |= more | {"status": "passed" if passed else "failed"}
    except Skipped as why:
        row |= {"status": "skipped", "text": str(why)}
    except Exception as error:  # a fault of this script must not cost the steps that follow
        traceback.print_exc()
        row["text"] = f"{type(error).__name__}: {error}"
    row["seconds"] = round(time.monotonic() - began, 1)
    if not suite.runner.dry:
        print(f"   {row['status']} after {row['seconds']:.0f} s: {row['text']}", flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The steps for people."""
    lines = [f"{'step':<10} {'status':<8} {'s':>6}  result"]
    lines += [f"{row['step']:<10} {row['status']:<8} {row['seconds']:6.0f}  {row['text']}" for row in rows]
    return "\n".join(lines)


def default_out(root: Path) -> Path:
    """benches/results/<date>-<gpu>/ of the repository or pack."""
    name = (gpu_state() or {}).get("name") or "gpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "")).strip("-")
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
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, shorter training, only memcheck and racecheck")
    parser.add_argument("--only", metavar="STEP,...", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python with torch [the one that runs this]")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and their limits, run nothing")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="fill DIR for a machine without cargo, and stop")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else list(STEPS)
    unknown = [name for name in wanted if name not in STEPS]
    if unknown:
        parser.error(f"--only {unknown[0]!r}: expected some of {', '.join(STEPS)}")
    args.steps = [name for name in STEPS if name in wanted]
    if args.data and Path(args.data).exists():
        args.data = str(Path(args.data).absolute())
    return args


def main() -> int:
    """Runs what was asked for."""
    args, root = parse(), HERE.parent
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # ends like Ctrl-C: nothing is left running
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # device 0 is then the one that nvidia-smi calls 0
    try:
        if args.pack:
            return make_pack(root, args.pack)
        engine, tests, fixtures = programs(args, root)
        if not args.dry_run:
            doctor = ask([str(engine), "doctor"]) or ""
            if not re.search(r"^gpu\s+cuda:\d", doctor, re.MULTILINE):
                said = [line for line in doctor.splitlines() if line.lower().startswith(("gpu", "cuda"))]
                raise Unusable("no usable GPU: " + ("; ".join(said) or f"{engine} doctor does not run"))
    except Unusable as why:
        print(f"gpu.sh: {why}", file=sys.stderr)
        return 2
    out = (args.out or default_out(root)).absolute()
    runner = Runner(out, root, args.dry_run)
    suite = Suite(args, runner, engine, tests, sorted(fixtures.glob("*.safetensors")))
    print(f"{'would write' if args.dry_run else 'writes'} {out}")
    if args.dry_run:
        return int(any([run_step(suite, name)["status"] == "failed" for name in args.steps]))
    out.mkdir(parents=True, exist_ok=True)
    packed = read_json(engine.parent / PACK_FILE) or {}
    git = packed.get("git") or git_state(root)
    # Steps that an earlier run of the same commit has left in this folder stay in the summary.
    earlier = read_json(out / "summary.json") or {}
    rows: list[dict[str, Any]] = [row for row in earlier.get("steps", []) if earlier.get("git") == git and row["step"] not in args.steps]
    summary: dict[str, Any] = {"format": "ddim-engine-gpu/1", "command": shlex.join(["benches/gpu.sh", *sys.argv[1:]]),
                               "began": now(), "git": git, "packed": bool(packed), "kernels": packed.get("kernels"),
                               "gpu_before": gpu_state(), "quick": args.quick, "steps": rows}
    interrupted = False
    with restore_paths(engine.parent, fixtures):
        for name in args.steps:
            try:
                rows.append(run_step(suite, name))
            except KeyboardInterrupt:
                interrupted = True
                rows.append({"step": name, "status": "failed", "text": "interrupted", "seconds": 0.0})
            # After every step, so that a run that is cut off leaves what it has found.
            ended = {"ended": now(), "gpu_after": gpu_state(), "passed": all(row["status"] != "failed" for row in rows)}
            write_json(out / "summary.json", summary | ended)
            if interrupted:
                break
    print(f"\n{table(rows)}\n\n{out / 'summary.json'}")
    return 130 if interrupted else int(any(row["status"] == "failed" for row in rows))


def now() -> str:
    """The time, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
