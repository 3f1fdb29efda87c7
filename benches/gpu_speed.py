"""Steps of the GPU script that time training steps, kernels and sampling, alone and beside PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_base import HERE, Outcome, Skipped, Suite, milliseconds, read_json
from gpu_machine import gpu_state
from gpu_parse import kernel_launches, kernel_sums, kernels_of_ncu, launch_gaps

# What is profiled: the preset and the arithmetic of each part of `kernels`.
PROFILED = {"fp32": ("seed", "fp32"), "tf32": ("seed", "tf32"), "bf16": ("seed", "bf16"), "unet2d-64": ("unet2d-64", "bf16")}
WARMUP = 2  # steps of `bench step` before those that it times


def step_times(suite: Suite, precision: str) -> Outcome:
    """Training steps of the preset `seed`."""
    return steps_of(suite, "seed", precision, 50 if suite.quick else 300, "step.json")


def steps_of(suite: Suite, preset: str, precision: str, repeat: int, file: str) -> Outcome:
    """Training steps of a preset, by the engine's own clock."""
    log = suite.log(f"step-{preset}-{precision}.json")
    before = None if suite.dry else gpu_state()
    done = suite.runner.run([*suite.bench_step(preset, precision, repeat), "--json", log], 300, f"step-{preset}-{precision}.log", watch=True)
    report = {**(read_json(log) or {}), **done.record(), "gpu_before": before, "gpu_after": None if suite.dry else gpu_state()}
    median = report.get("seconds_per_step_median")
    text = f"{milliseconds(median)} a step, arena at most {report.get('arena_peak_mib') or 0:.0f} MiB" if median else f"no result: {done.why}"
    return median is not None or suite.dry, text, {"file": suite.keep(file, precision, report), "seconds_per_step_median": median}


# ---- kernels ---------------------------------------------------------------------------------------------------------------------


def step_kernels(suite: Suite, part: str) -> Outcome:
    """Time of every kernel of a step, by nsys or else by ncu."""
    nsys, ncu = suite.tool("nsys"), suite.tool("ncu")
    if nsys is None and ncu is None:
        raise Skipped("neither nsys nor ncu was found; both come with the CUDA toolkit")
    record = of_nsys(suite, nsys, part) if nsys else {"kernels": []}
    if not record["kernels"] and ncu:
        record = of_ncu(suite, ncu, part) | {"nsys": record if nsys else None}
    total = record.get("kernel_milliseconds_per_step")
    gap = record.get("gaps", {}).get("median_ns")
    text = f"{total:.3f} ms of kernels a step, by {record['profiler']}" if total else f"no result (see logs/nsys-{part}*, logs/ncu-{part}*)"
    text += f"; {gap:.0f} ns between two of them in the median" if gap is not None else ""
    return bool(total) or suite.dry, text, {"file": suite.keep("kernels.json", part, record), "kernel_milliseconds_per_step": total}


def of_nsys(suite: Suite, nsys: str, part: str) -> dict[str, Any]:
    """Kernel times of some steps, by name and by launch extents, and what lies between two kernels."""
    preset, precision = PROFILED[part]
    repeat = 20 if preset == "seed" else 5
    base = suite.log(f"nsys-{part}")
    profile = suite.runner.run([nsys, "profile", "--trace=cuda", "--cuda-graph-trace=node", "--sample=none", "--cpuctxsw=none",
                                "--force-overwrite=true", "-o", base, *suite.bench_step(preset, precision, repeat)], 200, f"nsys-{part}.log")
    record: dict[str, Any] = {"profiler": "nsys", "preset": preset, "precision": precision, "profile": profile.record(),
                              "steps": repeat + WARMUP, "kernels": []}
    file = Path(f"{base}.nsys-rep")
    if not suite.dry and not file.exists():
        return record
    stats = [nsys, "stats", "--format", "csv", "--force-export=true"]
    sums = suite.runner.run([*stats, "--report", "cuda_gpu_kern_sum", file], 200, f"nsys-{part}-sums.csv", stdout_only=True)
    launches = suite.runner.run([*stats, "--report", "cuda_gpu_trace", file], 200, f"nsys-{part}-launches.csv", stdout_only=True)
    record |= {"stats": sums.record(), "kernels": kernel_sums(sums.output), "launches": kernel_launches(launches.output),
               "gaps": launch_gaps(launches.output) or {}}
    if record["kernels"]:
        total = sum(row["total_ns"] for row in record["kernels"])
        record["kernel_milliseconds_per_step"] = total / 1e6 / record["steps"]
    for large in (file, file.with_suffix(".sqlite")):  # what they say is in the JSON
        large.unlink(missing_ok=True)
    return record


def of_ncu(suite: Suite, ncu: str, part: str) -> dict[str, Any]:
    """Kernel times of three steps; ncu runs kernels one at a time at its base clock, so the sum is larger than a step."""
    preset, precision = PROFILED[part]
    done = suite.runner.run([ncu, "--csv", "--page", "raw", "--metrics", "gpu__time_duration.sum", "--graph-profiling", "node",
                             *suite.bench_step(preset, precision, 1)], 420, f"ncu-{part}.csv", stdout_only=True)
    rows = kernels_of_ncu(done.output)
    record: dict[str, Any] = {"profiler": "ncu", "preset": preset, "precision": precision, "profile": done.record(), "steps": 1 + WARMUP,
                              "kernels": rows}
    if rows:
        record["kernel_milliseconds_per_step"] = sum(row["total_ns"] for row in rows) / 1e6 / record["steps"]
    return record


# ---- PyTorch beside it -----------------------------------------------------------------------------------------------------------


def step_torch(suite: Suite, part: str) -> Outcome:
    """PyTorch and the engine in turn: training steps of `seed`; `outputs` compares what both compute."""
    return beside_torch(suite, "seed", part, "torch.json", suite.torch())


def step_torch_unet2d(suite: Suite, part: str) -> Outcome:
    """The same with `unet2d-64` and the UNet2DModel of diffusers."""
    return beside_torch(suite, "unet2d-64", part, "torch-unet2d.json", suite.torch("diffusers"))


def beside_torch(suite: Suite, preset: str, part: str, file: str, python: str) -> Outcome:
    """One variant of PyTorch: engine, PyTorch, engine, round after round; or both sides' outputs."""
    command = [python, HERE / "torch_peer.py", "--device", "cuda", "--engine", suite.engine, "--preset", preset]
    if part == "outputs":
        return outputs_of_both(suite, preset, file, command)
    large = preset != "seed"
    rounds, steps = (1, 20 if large else 50) if suite.quick else (3, 50 if large else 200)
    log = suite.log(f"torch-{preset}-{part}.json")
    done = suite.runner.run([*command, "--variant", part, "--rounds", rounds, "--steps", steps, "--json", log], 590,
                            f"torch-{preset}-{part}.log", watch=True)
    result = read_json(log) or {}
    return compared(suite, file, part, {**done.record(), **result}, done.ok, f"logs/torch-{preset}-{part}.log")


def compared(suite: Suite, file: str, part: str, record: dict[str, Any], ok: bool, log: str) -> Outcome:
    """What a comparison in turns gave."""
    rows = record.get("comparisons", [])
    differs = [row["variant"] for row in rows if row.get("outputs_differ")]
    text = "; ".join(f"{row['variant']}: {milliseconds(row['torch_seconds_median'])}, engine {milliseconds(row['engine_seconds_median'])}, "
                     f"PyTorch's time over the engine's {row['ratio_of_medians']:.2f}" for row in rows)
    text += f"; outputs differ: {', '.join(differs)}" if differs else ""
    text = text or "no comparison"
    text += f"; {record.get('why') or 'failed'}, see {log}" if not ok else ""
    ratios = {row["variant"]: row["ratio_of_medians"] for row in rows}
    return ok and (bool(rows) or suite.dry) and not differs, text, {"file": suite.keep(file, part, record), "torch_over_engine": ratios}


def outputs_of_both(suite: Suite, preset: str, file: str, command: list[Any]) -> Outcome:
    """PyTorch's numbers of a small batch, eager and in fp32, which `ddim-engine check` replays on the GPU."""
    log = suite.log(f"outputs-{preset}.json")
    done = suite.runner.run([*command, "--outputs", "--json", log], 400, f"outputs-{preset}.log")
    result = (read_json(log) or {}).get("outputs", {})
    wrong = [f"{name} ({', '.join(row['failed']) or row['why']})" for name, row in result.items() if not row["passed"]]
    text = ", ".join(f"{name}: largest relative error {row['largest_relative_error']:.1e}" for name, row in result.items()
                     if row.get("largest_relative_error") is not None)
    text += f"; differ: {'; '.join(wrong)}" if wrong else ""
    text = text or f"no result: {done.why}"
    good = done.ok and not wrong and (bool(result) or suite.dry)
    return good, text, {"file": suite.keep(file, "outputs", {**done.record(), "outputs": result})}


def step_unet2d(suite: Suite, part: str) -> Outcome:
    """The preset `unet2d-64`: training steps; group norm and attention alone, beside PyTorch's."""
    if not part.startswith("ops-"):
        return steps_of(suite, "unet2d-64", part, 10 if suite.quick else 50, "unet2d.json")
    precision = part.removeprefix("ops-")
    log = suite.log(f"{part}.json")
    done = suite.runner.run([suite.torch(), HERE / "torch_ops.py", "--device", "cuda", "--precision", precision, "--engine", suite.engine,
                             "--json", log], 300, f"{part}.log", watch=True)
    result = read_json(log) or {}
    ratios = [row["torch_over_engine"] for row in result.get("operations", [])]
    text = f"PyTorch's time over the engine's {min(ratios):.2f} to {max(ratios):.2f}" if ratios else f"no result: {done.why}"
    return bool(ratios) or suite.dry, text, {"file": suite.keep("unet2d.json", part, {**result, **done.record()})}


def step_sampling(suite: Suite, part: str) -> Outcome:
    """Pictures of `seed` in 20 steps, 64, 16 or one at once: the engine and PyTorch, compiled and as one CUDA graph, in turn."""
    images = int(part.removeprefix("batch-"))
    repeat = 20 if suite.quick else 100
    file, name = "sampling.json", f"sampling-{images}"
    log = suite.log(f"{name}.json")
    before = suite.runner.run([suite.engine, "bench", "sample", "--device", "cuda", "--precision", "bf16", "--preset", "seed", "--images", images,
                               "--batch", images, "--sample-steps", 20, "--repeat", repeat, "--json", log], 120, f"{name}.log", watch=True)
    record: dict[str, Any] = {"images": images, "sample_steps": 20, "engine": {**(read_json(log) or {}), **before.record()}}
    median = record["engine"].get("seconds_median")
    text = f"{milliseconds(median)} for {images} pictures" if median else f"no result: {before.why}"
    more = {"file": suite.keep(file, part, record), "seconds_median": median}
    if not median and not suite.dry:
        return False, text, more
    try:
        python = suite.torch()
    except Skipped as why:
        return True, f"{text}; beside PyTorch: skipped, {why}", more
    log = suite.log(f"torch-{name}.json")
    rounds = 1 if suite.quick else 3
    done = suite.runner.run([python, HERE / "torch_peer.py", "--device", "cuda", "--engine", suite.engine, "--preset", "seed", "--sampling",
                             "--images", images, "--sample-steps", 20, "--variant", "graph-bf16", "--rounds", rounds, "--steps", repeat, "--json",
                             log], 590, f"torch-{name}.log", watch=True)
    passed, beside, found = compared(suite, file, part, {**record, **done.record(), **(read_json(log) or {})}, done.ok, f"logs/torch-{name}.log")
    return passed, f"{text}; {beside}", {**more, **found}
