"""Steps of the GPU script that ask whether it is right: the machine, the tests, reference files, compute-sanitizer."""

from __future__ import annotations

import re
import shutil
from typing import Any

from gpu_base import Outcome, Skipped, Suite
from gpu_machine import machine_facts
from gpu_parse import check_rows, count_tests, sanitizer_errors

# A step of a network whose channels fill whole vectors and tiles: the reference files are too small to reach those paths.
SMALL_STEP = ["--set", "image_size=16", "--set", "batch_size=2", "--set", "widths=32,64", "--set", "embedding_dim=16", "--set",
              "block_depth=1", "--repeat", "2"]
SANITIZER_FOUND = 99


def step_facts(suite: Suite, _part: str) -> Outcome:
    """The machine, its GPU, its state before any load."""
    facts = {} if suite.dry else machine_facts(suite.engine)
    gpu = facts.get("gpu") or {}
    text = f"{gpu.get('name') or 'GPU unknown to nvidia-smi'}, driver {gpu.get('driver_version')}, CUDA {facts.get('driver_cuda_version')}"
    return True, text, {"file": suite.keep("machine.json", "", facts)}


def step_tests(suite: Suite, part: str) -> Outcome:
    """The kernels' test programs, whose cases run on the GPU where there is one."""
    rows, wrong = [], []
    for program in suite.tests:
        if program.name.startswith("gpu_") != (part == "gpu"):
            continue
        name = re.sub(r"-[0-9a-f]{16}$", "", program.name)
        done = suite.runner.run([program, "--nocapture"], 900, f"test-{name}.log")
        counts = count_tests(done.output)
        without_gpu = "skipped on cuda" in done.output
        good = done.ok and not without_gpu
        if not good and not suite.dry:
            wrong.append(name + (" (its GPU cases did not run)" if without_gpu else f" ({done.why})"))
        rows.append({"program": name, "passed": good, **counts, **done.record()})
    cases = [line for row in rows for line in row.pop("cases")]
    if not rows:
        raise Skipped("no test programs: build with cargo, or take a folder made by --pack")
    total, failed = sum(row["tests_passed"] for row in rows), sum(row["tests_failed"] for row in rows)
    text = f"{len(rows)} programs, {total} tests passed, {failed} failed" + "".join(f"; {line}" for line in cases)
    text += f"; wrong: {', '.join(wrong)}" if wrong else ""
    return not wrong, text, {"file": suite.keep("tests.json", part, rows)}


def step_check(suite: Suite, precision: str) -> Outcome:
    """All reference files against PyTorch's numbers; two training runs that must give the same bytes."""
    wrong = []
    done = suite.runner.run([suite.engine, "check", "--device", "cuda", "--precision", precision, *suite.fixtures], 400,
                            f"check-{precision}.log")
    rows = check_rows(done.output)
    report: dict[str, Any] = {**done.record(), "rows": rows, "largest_in_units_of_tolerance": max((row["used"] for row in rows), default=None)}
    if not done.ok:
        wrong.append(f"check ({done.why})")
    models, commands = [], []
    for number in (1, 2):
        run = suite.runner.out / "logs" / f"repeat-{precision}-{number}"
        shutil.rmtree(run, ignore_errors=True)
        done = suite.runner.run([suite.engine, "train", "--device", "cuda", "--precision", precision, "--steps", "20", "--quiet",
                                 "--seed", "5", "--run-dir", run], 200, f"repeat-{precision}-{number}.log")
        commands.append(done.record())
        models.append([path.read_bytes() for path in sorted(run.glob("checkpoints/step-*/model.safetensors"))])
        shutil.rmtree(run, ignore_errors=True)
        if not done.ok:
            wrong.append(f"20 steps ({done.why})")
    same = models[0] == models[1] and (bool(models[0]) or suite.dry)
    report |= {"same_bytes_when_repeated": same, "two_runs": commands}
    if not same:
        wrong.append("two runs differ")
    text = f"{len(suite.fixtures)} files; two runs with the same bytes: {'yes' if same else 'no'}"
    text += f"; wrong: {', '.join(wrong)}" if wrong else ""
    return not wrong, text, {"file": suite.keep("check.json", precision, report)}


def step_sanitizer(suite: Suite, tool: str) -> Outcome:
    """compute-sanitizer on the smallest reference file and on steps of a small network."""
    sanitizer = suite.tool("compute-sanitizer")
    if sanitizer is None:
        raise Skipped("compute-sanitizer was not found; it comes with the CUDA toolkit")
    smallest = min(suite.fixtures, key=lambda path: path.stat().st_size)
    rows, wrong = [], []
    for precision in ("fp32", "bf16"):
        options = ["--device", "cuda", "--precision", precision]
        for what, command in [("check", ["check", *options, smallest]), ("step", ["bench", "step", *options, *SMALL_STEP])]:
            # Each buffer an allocation of its own: memcheck then sees an access one element too far.
            apart = ["env", "DDIM_SEPARATE_BUFFERS=1"] if tool in ("memcheck", "initcheck") else []
            done = suite.runner.run([*apart, sanitizer, "--tool", tool, "--error-exitcode", SANITIZER_FOUND, "--print-limit", 20,
                                     suite.engine, *command], 420, f"{tool}-{what}-{precision}.log")
            found = sanitizer_errors(done.output)
            if not suite.dry and (not done.ok or found != 0):
                wrong.append(f"{what} in {precision} ({found} errors; {done.why or 'exit code 0'})")
            rows.append({"tool": tool, "what": what, "precision": precision, "errors": found, **done.record()})
    text = f"{len(rows)} runs" + (f"; wrong: {', '.join(wrong)}" if wrong else ", no errors")
    return not wrong, text, {"file": suite.keep("sanitizer.json", tool, rows)}
