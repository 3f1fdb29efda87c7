"""The step of the GPU script that trains: the whole run of `seed`, its pictures, how far they are from real ones, PyTorch's losses beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gpu_base import HERE, Outcome, Skipped, Suite, read_json
from gpu_parse import curve_rows, last_losses

STEPS = 25_600
EVERY = 512  # steps between validations: an epoch of the flowers, 6,551 pictures five times in batches of 64
CURVE = (512, 1024, 2048, 3072, 4096, 5120)  # steps at which PyTorch is asked for its losses; with --quick the first three


def step_train(suite: Suite, part: str) -> Outcome:
    """25,600 steps of `seed` in bf16: seconds, losses, pictures, their distance from real ones; `torch`: PyTorch's losses of fewer steps."""
    return torch_curve(suite) if part == "torch" else whole_run(suite)


def whole_run(suite: Suite) -> Outcome:
    """The engine's run."""
    steps = 1024 if suite.quick else STEPS
    run = suite.runner.out / "train"
    shutil.rmtree(run, ignore_errors=True)
    source = suite.args.data or "procedural"
    command = [suite.engine, "train", "--device", "cuda", "--precision", "bf16", "--preset", "seed", "--data", source, "--steps", steps, "--seed", 1,
               "--set", f"eval_every={EVERY}", "--run-dir", run]
    done = suite.runner.run(command, 420, "train.log", watch=True)
    metrics = read_text(run / "metrics.jsonl")
    summary = read_json(run / "summary.json") or {}
    report: dict[str, Any] = {"data": source, "steps": steps, "train": done.record(), "last": last_losses(metrics), "valid": curve_rows(metrics),
                              "summary": summary}
    good, text = done.ok, f"{steps} steps on {source} in {summary.get('seconds') or done.seconds:.1f} s"
    text += "".join(f", {name} noise_loss {row['noise_loss']:.4f}" for name, row in report["last"].items() if "noise_loss" in row)
    # Of everything on the card, as nvidia-smi saw it every second.
    report["peak_mib_on_card"] = ((done.watched or {}).get("memory.used") or {}).get("max")
    text += f", at most {report['peak_mib_on_card']:.0f} MiB in use on the card" if report["peak_mib_on_card"] else ""
    text += f"; {done.why}" if done.why else ""
    if done.ok:
        grid = suite.runner.out / "samples.png"
        drawn = suite.runner.run([suite.engine, "sample", run, "--device", "cuda", "--count", 36, "--seed", 1, "--out", grid], 120, "sample.log")
        report["sample"] = drawn.record()
        text += "; 36 pictures in samples.png" if drawn.ok else f"; no pictures: {drawn.why}"
        distance, words = distance_of(suite, run)
        report["distance"] = distance
        text += f"; {words}"
        good = drawn.ok and distance.get("exit_code", 0) == 0
    return good, text, {"file": suite.keep("train.json", "run", report), "last": report["last"], "seconds": summary.get("seconds")}


def distance_of(suite: Suite, run: Path) -> tuple[dict[str, Any], str]:
    """Losses by noise level, and with weights of Inception-v3 KID and FID, by `ddim-engine evaluate`."""
    log = suite.log("evaluate.json")
    command = [suite.engine, "evaluate", run, "--device", "cuda", "--precision", "tf32", "--json", log]
    weights = suite.args.inception
    command += ["--inception", weights, "--kid", "--fid", "--split", "all"] if weights else []
    done = suite.runner.run(command, 240, "evaluate.log", watch=True)
    found = read_json(log) or {}
    record = {**done.record(), "evaluation": found}
    if not done.ok:
        return record, f"evaluate: {done.why}"
    if not weights:
        record["skipped"] = "KID and FID need --inception FILE, the weights of Inception-v3 (`ddim-engine evaluate --help`)"
        return record, f"distance from real pictures skipped: {record['skipped']}"
    quality = found.get("quality") or {}
    words = [f"{name.upper()} {quality[name]:.4g}" for name in ("kid", "fid") if isinstance(quality.get(name), (int, float))]
    return record, ", ".join(words) or "no distance in evaluate's result"


def torch_curve(suite: Suite) -> Outcome:
    """PyTorch, eager in bf16, trained on the same pictures for fewer steps: its validation losses beside the engine's."""
    data = suite.args.data
    if not data or not (data.endswith(".tar") and (suite.dry or Path(data).is_file())):
        raise Skipped("PyTorch's curve needs --data FILE.tar; it knows no other pictures")
    python = suite.torch("numpy", "PIL")
    at = CURVE[:3] if suite.quick else CURVE
    log = suite.log("torch-curve.json")
    done = suite.runner.run([python, HERE / "torch_curve.py", data, "--device", "cuda", "--bf16", "--image-size", 64, "--steps", at[-1], "--at", *at,
                             "--seed", 1, "--valid-images", 100_000, "--json", log], 420, "torch-curve.log", watch=True)
    result = read_json(log) or {}
    rows = beside(result.get("curve", []), (suite.kept("train.json", "run") or {}).get("valid", []))
    text = "; ".join(f"step {row['step']}: noise_loss {row['torch']['noise_loss']:.4f}, engine {row['engine']['noise_loss']:.4f}, "
                     f"{'within' if row['within'] else 'NOT within'} two standard errors" for row in rows[-1:])
    text = text or (f"no curve: {done.why}" if not result and not suite.dry else "no step that both have validated at")
    return done.ok and (bool(result) or suite.dry), text, {"file": suite.keep("train.json", "torch", {**done.record(), **result, "beside": rows})}


def beside(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Validation losses of both at the same steps; `within`: apart by no more than two standard errors of their difference.

    Each side draws its own split, times and noise, and both draws have the same error, which PyTorch's side tells.
    """
    by_step = {row["step"]: row for row in ours}
    rows = []
    for row in theirs:
        other = by_step.get(row["step"])
        if other:
            apart = {name: other[name] - row[name] for name in ("noise_loss", "image_loss")}
            within = all(abs(apart[name]) <= 2 * 2**0.5 * row[name + "_error"] for name in apart)
            rows.append({"step": row["step"], "torch": row, "engine": other, "apart": apart, "within": within})
    return rows


def read_text(path: Path) -> str:
    """A file's text; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
