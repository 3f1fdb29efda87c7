"""Stand-ins for what gpu.sh runs: the engine, nvidia-smi, nsys, compute-sanitizer, a Python with torch. They print what those print, with made-up figures.

    python3 benches/gpu_standin.py NAME ARGUMENTS...       # as the small programs call it that `make` writes

For gpu_test.py: with them the whole script runs on a machine that has none of these, and every figure of its results is known.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from gpu_machine import FIELDS, WATCHED

CARD = "NVIDIA H200"
STEP_S = {"seed": 1.4e-3, "unet2d-64": 9e-3}  # of bf16; other arithmetic twice as long
CONV = {"operation": "conv", "kind": "conv forward", "shape": "64x64x64 32+32>32 3x3 res 64", "options": "affine+silu+stats", "dtype": "bfloat16",
        "uses": {"seed step": 2, "seed sample": 1}, "flops": 10_000_000_000, "bytes": 40_000_000, "predicted_seconds": 1e-5, "bound": "compute",
        "plan": "conv_fwd_m64n32_bf16", "hot": {"median": 2e-5}, "cold": {"median": 3e-5}, "roofline": 0.5, "error": 1e-3}
ROWS = [CONV, {**CONV, "operation": "conv_wgrad", "kind": "conv wgrad", "shape": "64x16x16 96>96 3x3", "options": "border", "hot": {"median": 1.2e-5}},
        {**CONV, "operation": "adam_step", "kind": "adam", "shape": "3562224", "options": "", "flops": 0, "error": None}]
PLAN = {"gpu": "H200", "precision": "bf16", "measured": False, "model": {"multiprocessors": 132},
        "sum": {"launches": 4, "floor_seconds": 3.5e-5, "predicted_seconds": 7e-5},
        "launches": [{"kernel": "conv_fwd_m64n32_bf16", "part": "conv forward", "shape": "a", "count": 2, "blocks": 128, "threads": 256,
                      "floor_seconds": 1e-5, "predicted_seconds": 2e-5},
                     {"kernel": "conv_fwd_m64n32_bf16", "part": "conv dgrad", "shape": "b", "count": 1, "blocks": 64, "threads": 256,
                      "floor_seconds": 1e-5, "predicted_seconds": 2e-5},
                     {"kernel": "fill", "part": "copy, fill", "shape": "c", "count": 1, "blocks": 0, "threads": 0, "floor_seconds": 5e-6,
                      "predicted_seconds": 1e-5}]}
SUMS = """Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
100.0,{total},{count},1.0,1.0,1,1,0.0,conv_fwd_m64n32_bf16
"""
TRACE = "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Reg/Trd,Device,Strm,Name\n"
KNOWN = {"name": CARD, "uuid": "GPU-1", "driver_version": "580.1", "clocks.sm": "1980", "temperature.gpu": "40", "memory.used": "1234"}
SMI = f"""#!/bin/sh
case "$*" in
*--query-gpu={','.join(FIELDS)}*) echo "{', '.join(KNOWN.get(name, '0') for name in FIELDS)}" ;;
*--query-gpu={','.join(WATCHED)}*) echo "{', '.join(KNOWN.get(name, '0') for name in WATCHED)}" ;;
*) echo "CUDA Version: 13.0 |" ;;
esac
"""


def make(folder: Path, names: list[str]) -> None:
    """Writes a small program for each name into a folder; nvidia-smi, which is asked all the time, without Python."""
    for name in names:
        path = folder / name
        path.write_text(SMI if name == "nvidia-smi" else f'#!/bin/sh\nexec "{sys.executable}" -S -E "{Path(__file__).resolve()}" "{name}" "$@"\n')
        path.chmod(0o755)


def option(words: list[str], name: str, otherwise: str = "") -> str:
    """The word behind an option."""
    return words[words.index(name) + 1] if name in words else otherwise


def put(words: list[str], value: Any) -> None:
    """A result, where `--json` wants it."""
    target = option(words, "--json")
    if target and target != "-":
        Path(target).write_text(json.dumps(value))
    else:
        print(json.dumps(value))


def engine(words: list[str]) -> int:
    """ddim-engine."""
    what = words[0] if words[0] != "bench" else f"bench {words[1]}"
    preset, precision = option(words, "--preset", "quick"), option(words, "--precision", "bf16")
    if what == "doctor":
        print(f"GPU kernels        108 in this build\ngpu                cuda:0 {CARD}, compute capability 9.0")
    elif what == "check":
        print("a.safetensors\n  expect.eval.pred_noise  1.0e-5  2.0e-5  5e-4\n1 of 1 files pass")
    elif what == "bench step":
        seconds = STEP_S.get(preset, 1e-3) * (1 if precision == "bf16" else 2)
        put(words, {"seconds_per_step_min": seconds, "seconds_per_step_median": seconds, "arena_peak_mib": 300.0}) if "--json" in words else None
    elif what == "bench sample":
        put(words, {"seconds_min": 8e-3, "seconds_median": 9e-3, "arena_peak_mib": 100.0})
    elif what == "bench kernels":
        put(words, {"ceilings": {"flops": 9.894e14, "copy_bytes_per_second": 4e12, "source": "copy measured; peak published"}, "rows": ROWS})
    elif what == "bench plan":
        put(words, PLAN)
    elif what == "train":
        train(words)
    elif what == "sample":
        Path(option(words, "--out")).write_bytes(b"png")
    elif what == "evaluate":
        quality = {"quality": {"kid": 0.0123, "fid": 45.6}} if "--inception" in words else {}
        put(words, {"step": 1024, "noise_loss": 0.16, "levels": [], **quality})
    else:
        print(f"error: unrecognized subcommand '{what}'", file=sys.stderr)
        return 2
    return 0


def train(words: list[str]) -> None:
    """A run's folder."""
    run = Path(option(words, "--run-dir"))
    (run / "checkpoints/step-00000020").mkdir(parents=True)
    (run / "checkpoints/step-00000020/model.safetensors").write_bytes(b"the same bytes")
    rows = [{"step": step, "split": "valid", "noise_loss": 0.2, "image_loss": 0.4, "loss": 0.2, "seconds": 0.1} for step in (512, 1024)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").write_text(json.dumps({"seconds": 33.3, "steps": int(option(words, "--steps"))}))


def nsys(words: list[str]) -> int:
    """nsys: a profile, and its tables; of every step two launches of one extent and one of another, 1 us apart."""
    if words[0] == "profile":
        Path(option(words, "-o") + ".nsys-rep").write_text(option(words, "--repeat"))
        return 0
    steps = int(Path(words[-1]).read_text()) + 2
    if "cuda_gpu_kern_sum" in words:
        print(SUMS.format(total=steps * 90_000, count=steps * 3))
        return 0
    text, at = TRACE, 1_000_000
    for _ in range(steps):
        for blocks, lasted in ((128, 25_000), (128, 25_000), (64, 40_000)):
            text += f"{at},{lasted},1,{blocks},1,1,256,1,1,128,GPU (0),7,conv_fwd_m64n32_bf16\n"
            at += lasted + 1_000
        at += 100_000
    print(text)
    return 0


def sanitizer(_words: list[str]) -> int:
    """compute-sanitizer."""
    print("========= ERROR SUMMARY: 0 errors")
    return 0


def torch(words: list[str]) -> int:
    """A Python with torch that sees a GPU."""
    script = Path(words[0]).name
    if script == "-c":
        return 0
    if script == "torch_peer.py":
        put(words, peer(words))
    elif script == "torch_conv.py":
        rows = [{**{name: row[name] for name in ("operation", "kind", "shape", "options")}, "calls": ["fprop"], "leaves_out": ["norm of the input"],
                 "cudnn_seconds": 3e-5} for row in json.loads(Path(words[1]).read_text())["rows"] if row["operation"] != "adam_step"]
        put(words, {"torch": "2", "cudnn": 9, "gpu": CARD, "precision": "bf16", "method": "m", "rows": rows})
    elif script == "torch_ceilings.py":
        put(words, {"copies": [{"bytes": 32 << 20, "bytes_per_second": 9e12}, {"bytes": 4 << 30, "bytes_per_second": 4.2e12}],
                    "gemm": {"bf16": {"extent": 8192, "flops_per_second": 7.5e14}}, "graph": {"seconds_per_node": 9e-7}})
    elif script == "torch_ops.py":
        put(words, {"operations": [{"torch_over_engine": 1.5}, {"torch_over_engine": 2.5}]})
    elif script == "torch_curve.py":
        put(words, {"curve": [{"step": 1024, "noise_loss": 0.201, "noise_loss_error": 0.004, "image_loss": 0.41, "image_loss_error": 0.012}]})
    return 0


def peer(words: list[str]) -> dict[str, Any]:
    """What torch_peer.py writes."""
    if "--outputs" in words:
        return {"outputs": {"bf16": {"passed": True, "failed": [], "why": "", "largest_relative_error": 1e-3}}}
    ours = 9e-3 if "--sampling" in words else STEP_S[option(words, "--preset")]
    variant = option(words, "--variant")
    return {"comparisons": [{"variant": variant, "about": f"about {variant}", "engine_precision": "bf16", "torch_seconds_median": 1.6 * ours,
                             "engine_seconds_median": ours, "ratio_of_medians": 1.6, "ratios": [1.5, 1.6, 1.7], "outputs_differ": False,
                             "torch_peak_mib": 900.0, "engine_peak_mib": 300.0}], "runs": []}


def main() -> int:
    """Plays the part of a program; GPU_STANDIN_FAILS names one that shall fail."""
    name, words = sys.argv[1], sys.argv[2:]
    if name in os.environ.get("GPU_STANDIN_FAILS", "").split(","):
        print(f"{name}: fails, as asked", file=sys.stderr)
        return 9
    parts = {"ddim-engine": engine, "nsys": nsys, "compute-sanitizer": sanitizer, "python-with-torch": torch}
    return parts[name](words)


if __name__ == "__main__":
    sys.exit(main())
