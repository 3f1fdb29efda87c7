"""What the figures of a GPU run say together: predicted beside measured, shares of the roofline, cuDNN beside the engine.

Everything here takes what is in the JSON files and measures nothing.
"""

from __future__ import annotations

import math
import re
from typing import Any

# Lines of `bench plan --gpu`, by what the driver calls the card. Others of the same family have other rates, so they get no prediction.
PLANNED = (("h200", r"\bH200\b(?! NVL)"), ("h100", r"\bH100 (SXM|80GB HBM3)"), ("a100", r"\bA100-SXM4-80GB"), ("rtx4090", r"\bRTX 4090$"))
ENOUGH = 0.6  # of its roofline, for a convolution
CONVOLUTIONS = ("conv", "conv_wgrad", "conv2d", "resample_conv", "resample_conv_backward")


def gpu_of_card(card: str | None) -> str | None:
    """The `--gpu` of a card; None where `bench plan` has no line for it."""
    return next((name for name, pattern in PLANNED if re.search(pattern, card or "")), None)


# ---- predicted beside measured ---------------------------------------------------------------------------------------------------


def plan_against(plan: dict[str, Any], kernels: dict[str, Any] | None) -> dict[str, Any]:
    """The launches of `bench plan` beside what a profiler saw of the same step: by kernel and part, the largest first.

    Launches are matched by kernel, blocks and threads, where the profiler tells them (nsys); otherwise by the kernel alone (ncu). Where
    one kernel with the same extents serves several parts, the profiler does not tell them apart: each gets the mean time of all of them.
    """
    steps = (kernels or {}).get("steps") or 1
    exact = bool((kernels or {}).get("launches"))
    measured: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in (kernels or {}).get("launches" if exact else "kernels") or []:
        key = (row["kernel"], math.prod(row["grid"]), math.prod(row["block"])) if exact else (row["kernel"],)
        found = measured.setdefault(key, {"launches": 0.0, "seconds": 0.0})
        found["launches"] += row["launches"] / steps
        found["seconds"] += row["total_ns"] / steps * 1e-9
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    planned: set[tuple[Any, ...]] = set()
    for row in plan.get("launches") or []:
        key = (row["kernel"], row["blocks"], row["threads"]) if exact else (row["kernel"],)
        planned.add(key)
        line = lines.setdefault((row["kernel"], row["part"]), {
            "kernel": row["kernel"], "part": row["part"], "launches": 0, "floor_seconds": 0.0, "predicted_seconds": 0.0,
            "measured_seconds": 0.0, "launches_not_seen": 0})
        line["launches"] += row["count"]
        for name in ("floor_seconds", "predicted_seconds"):
            line[name] += row["count"] * row[name]  # a row's seconds are those of one launch
        seen = measured.get(key)
        if seen and seen["launches"]:
            line["measured_seconds"] += row["count"] * seen["seconds"] / seen["launches"]
        else:
            line["launches_not_seen"] += row["count"]
    rows = sorted(lines.values(), key=lambda line: -max(line["measured_seconds"], line["predicted_seconds"]))
    for line in rows:
        whole = measured and not line["launches_not_seen"]
        line["measured_seconds"] = line["measured_seconds"] if whole else None
        line["ratio"] = line["measured_seconds"] / line["predicted_seconds"] if whole and line["predicted_seconds"] else None
    beside = sorted(({"kernel": key[0], "launches_per_step": found["launches"], "seconds_per_step": found["seconds"]}
                     for key, found in measured.items() if key not in planned), key=lambda row: -row["seconds_per_step"])
    sums = {name: sum(line[name] for line in rows) for name in ("launches", "floor_seconds", "predicted_seconds")}
    sums["measured_seconds"] = sum(found["seconds"] for found in measured.values()) if measured else None
    sums["launches_seen"] = sum(found["launches"] for found in measured.values()) if measured else None
    return {"matched_by": "extents" if exact else "kernel" if measured else None, "sum": sums, "kernels": rows, "not_planned": beside}


def plan_text(result: dict[str, Any], lines: int = 30) -> str:
    """Predicted and measured, for people."""

    def micro(seconds: Any) -> str:
        return f"{1e6 * seconds:10.1f}" if isinstance(seconds, (int, float)) else f"{'-':>10}"

    text = [f"{'kernel':32} {'part':18} {'n':>4} {'floor us':>10} {'predicted':>10} {'measured':>10} {'ratio':>6}"]
    for row in result["kernels"][:lines]:
        ratio = f"{row['ratio']:6.2f}" if row["ratio"] else f"{'-':>6}"
        text.append(f"{row['kernel']:32} {row['part']:18} {row['launches']:4} {micro(row['floor_seconds'])} {micro(row['predicted_seconds'])} "
                    f"{micro(row['measured_seconds'])} {ratio}")
    more = len(result["kernels"]) - lines
    text += [f"... and {more} more"] if more > 0 else []
    total = result["sum"]
    text.append(f"{'all':51} {total['launches']:4} {micro(total['floor_seconds'])} {micro(total['predicted_seconds'])} "
                f"{micro(total['measured_seconds'])}")
    text += [f"not in the plan: {row['kernel']}, {row['launches_per_step']:.1f} launches and {1e6 * row['seconds_per_step']:.1f} us a step"
             for row in result["not_planned"][:10]]
    return "\n".join(text)


# ---- rooflines -------------------------------------------------------------------------------------------------------------------


def rates(engine: dict[str, Any], torch: dict[str, Any] | None) -> dict[str, Any]:
    """The card's rates: those measured through PyTorch where they are there, else the engine's copy and the published peak."""
    found = {"flops": engine.get("flops"), "flops_from": engine.get("source"), "bytes_per_second": engine.get("copy_bytes_per_second"),
             "bytes_from": "the driver's copy of 256 MiB"}
    gemm = ((torch or {}).get("gemm") or {}).get("bf16")
    if gemm:
        found |= {"flops": gemm["flops_per_second"], "flops_from": f"PyTorch's product of {gemm['extent']} by {gemm['extent']} in bf16, measured"}
    copies = [row["bytes_per_second"] for row in (torch or {}).get("copies") or [] if row["bytes"] >= 1 << 30]
    if copies and max(copies) > (found["bytes_per_second"] or 0.0):
        found |= {"bytes_per_second": max(copies), "bytes_from": "PyTorch's copy of some GiB, measured"}
    return found


def shares(rows: list[dict[str, Any]], card: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of `bench kernels` with `share`: time at these rates over time measured, with warm caches."""
    flops, bandwidth = card.get("flops"), card.get("bytes_per_second")
    found = []
    for row in rows:
        hot = (row.get("hot") or {}).get("median")
        share = bound = None
        if hot and flops and bandwidth:
            compute, memory = row["flops"] / flops, row["bytes"] / bandwidth
            share, bound = max(compute, memory) / hot, "compute" if compute > memory else "memory"
        found.append({**row, "share": share, "share_bound": bound})
    return found


def conv_table(rows: list[dict[str, Any]], cudnn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every convolution: its share of the roofline, and cuDNN's time beside it; the largest share of a step first."""
    beside = {key_of(row): row for row in cudnn}
    found = []
    for row in rows:
        if row["operation"] not in CONVOLUTIONS:
            continue
        other = beside.get(key_of(row), {})
        hot = (row.get("hot") or {}).get("median")
        theirs = other.get("cudnn_seconds")
        uses = sum(count for name, count in (row.get("uses") or {}).items() if name.endswith("step"))
        found.append({"operation": row["operation"], "part": row["kind"], "shape": row["shape"], "options": row["options"], "uses_in_step": uses,
                      "seconds": hot, "seconds_cold": (row.get("cold") or {}).get("median"), "error": row.get("error"), "share": row["share"],
                      "bound": row["share_bound"], "plan": row.get("plan"), "cudnn_seconds": theirs, "cudnn_calls": other.get("calls"),
                      "cudnn_leaves_out": other.get("leaves_out"), "cudnn_why": other.get("why"),
                      "ratio": theirs / hot if theirs and hot else None})
    return sorted(found, key=lambda row: -row["uses_in_step"] * (row["seconds"] or 0.0))


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What tells one operation from another."""
    return tuple(str(row.get(name)) for name in ("operation", "kind", "shape", "options"))


def below(table: list[dict[str, Any]], enough: float = ENOUGH) -> list[dict[str, Any]]:
    """Convolutions that reach less of their roofline."""
    return [row for row in table if row["share"] is not None and row["share"] < enough]


def conv_text(table: list[dict[str, Any]], lines: int = 60) -> str:
    """Convolutions for people."""

    def number(value: Any, form: str, scale: float = 1.0) -> str:
        return f"{scale * value:{form}}" if isinstance(value, (int, float)) else "-"

    text = [f"{'part':13} {'shape':38} {'n':>3} {'us':>8} {'roofline %':>10} {'cuDNN us':>9} {'cuDNN/ours':>10}  in ours, not in cuDNN's call"]
    for row in table[:lines]:
        text.append(f"{row['part']:13} {row['shape']:38} {row['uses_in_step']:3} {number(row['seconds'], '.1f', 1e6):>8} "
                    f"{number(row['share'], '.0f', 100):>10} {number(row['cudnn_seconds'], '.1f', 1e6):>9} {number(row['ratio'], '.2f'):>10}  "
                    f"{', '.join(row['cudnn_leaves_out'] or []) or row['cudnn_why'] or ''}")
    return "\n".join(text)
