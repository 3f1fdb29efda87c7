"""Reads what the tools of a GPU run print: test programs, `ddim-engine check`, compute-sanitizer, nsys, ncu.

Every function takes text, also none or that of a tool that failed, and returns what it finds in it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from typing import Any


def count_tests(text: str) -> dict[str, Any]:
    """Results of a Rust test program, and the sums that `zz_operation_cases` prints."""
    results = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", text, re.MULTILINE)
    passed, failed, ignored = ([int(result[i]) for result in results] for i in range(3))
    failures = sorted(set(re.findall(r"^test (\S+) \.\.\. FAILED", text, re.MULTILINE)))
    cases = re.findall(r"^operation cases:.*", text, re.MULTILINE)
    return {"tests_passed": sum(passed), "tests_failed": sum(failed), "tests_ignored": sum(ignored), "failures": failures, "cases": cases}


def check_rows(text: str) -> list[dict[str, Any]]:
    """The quantities of `ddim-engine check`: a file's name, then lines of name, absolute and relative error, tolerance."""
    rows: list[dict[str, Any]] = []
    file = ""
    for line in text.splitlines():
        found = re.match(r"^  (\S.*?)\s+([\d.]+e-?\d+|NaN|inf)\s+([\d.]+e-?\d+|NaN|inf)\s+([\d.]+e-?\d+)(\s+FAILED)?$", line)
        if found:
            name, absolute, relative, tolerance, failed = found.groups()
            numbers = {"absolute": float(absolute), "relative": float(relative), "tolerance": float(tolerance)}
            used = numbers["relative"] / numbers["tolerance"]  # the relative error is the one that counts
            rows.append({"file": file, "quantity": name, **numbers, "used": used, "passed": not failed})
        elif line.endswith(".safetensors"):
            file = line.rsplit("/", 1)[-1]
    return rows


def sanitizer_errors(text: str) -> int | None:
    """Errors that compute-sanitizer counted; None where it came to no summary."""
    counts = re.findall(r"ERROR SUMMARY: (\d+) error", text)
    hazards = re.findall(r"RACECHECK SUMMARY: (\d+) hazards? displayed", text)
    numbers = [int(number) for number in counts + hazards]
    return sum(numbers) if numbers else None


def table_after(text: str, column: str) -> list[dict[str, str]]:
    """The CSV table whose heading has `column`, out of text that may begin and end with other lines."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if column in next(csv.reader([line]), [])), None)
    if start is None:
        return []
    rows = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    return [row for row in rows if row.get(column) and None not in row.values()]


def number(text: str | None) -> float:
    """A number as the tools print it, with or without commas; NaN for anything else."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return float("nan")


NSYS_COLUMNS = {"percent": "Time (%)", "total_ns": "Total Time (ns)", "mean_ns": "Avg (ns)", "median_ns": "Med (ns)",
                "min_ns": "Min (ns)", "max_ns": "Max (ns)"}


LONGEST_GAP_NS = 20_000


def kernel_sums(text: str) -> list[dict[str, Any]]:
    """`nsys stats --report cuda_gpu_kern_sum --format csv`: one row for each kernel, the longest first."""
    rows = []
    for row in table_after(text, "Total Time (ns)"):
        numbers = {key: number(row.get(column)) for key, column in NSYS_COLUMNS.items()}
        rows.append({"kernel": row.get("Name"), **numbers, "launches": int(number(row.get("Instances") or "0"))})
    return rows


def kernel_launches(text: str) -> list[dict[str, Any]]:
    """`nsys stats --report cuda_gpu_trace --format csv`: launches of the same kernel with the same extents, the longest first.

    The extents tell the layers of a network apart.
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in table_after(text, "Duration (ns)"):
        extents = tuple(row.get(name) or "" for name in ("GrdX", "GrdY", "GrdZ", "BlkX", "BlkY", "BlkZ", "Reg/Trd"))
        if extents[0]:  # copies and fills have none
            groups.setdefault((row.get("Name") or "", *extents), []).append(number(row["Duration (ns)"]))
    rows = [{"kernel": name, "grid": [int(number(n)) for n in extents[:3]], "block": [int(number(n)) for n in extents[3:6]],
             "registers": int(number(extents[6])) if extents[6] else None, "launches": len(times), "total_ns": sum(times),
             "median_ns": statistics.median(times), "min_ns": min(times)} for (name, *extents), times in groups.items()]
    return sorted(rows, key=lambda row: -row["total_ns"])


def launch_gaps(text: str) -> dict[str, Any] | None:
    """`nsys stats --report cuda_gpu_trace --format csv`: nanoseconds from the end of a kernel to the start of the next one on the GPU.

    Only those below 20 us: longer ones lie between two graphs, or wait for the host. None where there is none.
    """
    spans = sorted((number(row.get("Start (ns)")), number(row["Duration (ns)"])) for row in table_after(text, "Duration (ns)") if row.get("GrdX"))
    gaps = sorted(start - (before + lasted) for (before, lasted), (start, _) in zip(spans, spans[1:]))
    gaps = [gap for gap in gaps if 0 <= gap < LONGEST_GAP_NS]
    if not gaps:
        return None
    return {"count": len(gaps), "median_ns": statistics.median(gaps), "p20_ns": gaps[len(gaps) // 5], "p80_ns": gaps[len(gaps) * 4 // 5]}


def kernels_of_ncu(text: str) -> list[dict[str, Any]]:
    """`ncu --csv --page raw --metrics gpu__time_duration.sum`: one row for each kernel, the longest first."""
    metric = "gpu__time_duration.sum"
    table = table_after(text, metric)
    units = next((row[metric] for row in table if not row.get("Kernel Name")), "nsecond")
    scale = {"n": 1.0, "u": 1e3, "m": 1e6, "s": 1e9}.get(units[:1], 1.0)
    groups: dict[str, list[float]] = {}
    for row in table:
        if row.get("Kernel Name"):
            groups.setdefault(row["Kernel Name"], []).append(scale * number(row[metric]))
    rows = [{"kernel": name, "launches": len(times), "total_ns": sum(times), "mean_ns": statistics.mean(times),
             "median_ns": statistics.median(times), "min_ns": min(times), "max_ns": max(times)} for name, times in groups.items()]
    return sorted(rows, key=lambda row: -row["total_ns"])


def metric_rows(text: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that belong to a split."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "split" in row:
            rows.append(row)
    return rows


def last_losses(text: str) -> dict[str, Any]:
    """The last line of each split of a run's metrics.jsonl."""
    return {row["split"]: row for row in metric_rows(text)}


def curve_rows(text: str) -> list[dict[str, Any]]:
    """Every validation of a run's metrics.jsonl: step, losses, seconds since it began."""
    names = ("step", "noise_loss", "image_loss", "loss", "seconds")
    return [{name: row.get(name) for name in names} for row in metric_rows(text) if row["split"] == "valid" and "noise_loss" in row]
