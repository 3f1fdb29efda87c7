"""Comparisons and tables of the peer suite's results; no torch, no measuring.

A comparison is of neighbours: a run of PyTorch with the runs of the engine just before and just after it. Its ratio is PyTorch's
seconds over the mean of the engine's two (above 1: the engine is faster).
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from peer_process import disturbed

BEGIN, END = "<!-- peer table: begin -->", "<!-- peer table: end -->"


def compare(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one job in the order in which they were made -> one row for each way to run PyTorch.

    A comparison counts if none of its three runs was disturbed; where all were, all count and the row says so.
    """
    triples: dict[str, list[list[dict[str, Any]]]] = {}
    for at, run in enumerate(runs):
        if run.get("who") != "torch":
            continue
        ours = [other for other in (nearest(runs[:at][::-1], run["against"]), nearest(runs[at + 1:], run["against"])) if other]
        if ours:
            triples.setdefault(run["variant"], []).append([run, *ours])
    return [row(name, found) for name, found in triples.items()]


def nearest(runs: list[dict[str, Any]], precision: str) -> dict[str, Any] | None:
    """The first of the engine's runs in that arithmetic."""
    return next((run for run in runs if run.get("who") == "engine" and run["precision"] == precision), None)


def row(name: str, triples: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """All comparisons of one way to run PyTorch."""
    quiet = [triple for triple in triples if not any(map(disturbed, triple))]
    used = quiet or triples
    peers, ours = [triple[0] for triple in used], [run for triple in used for run in triple[1:]]

    def ratios(key: str) -> list[float]:
        return sorted(triple[0][key] / statistics.mean(run[key] for run in triple[1:]) for triple in used)

    by_min, by_median = ratios("seconds_min"), ratios("seconds_median")
    return {
        "variant": name, "precision": peers[0]["precision"], "against": peers[0]["against"],
        "rounds": len(triples), "used": len(used), "all_disturbed": not quiet,
        "torch_seconds": min(run["seconds_min"] for run in peers), "engine_seconds": min(run["seconds_min"] for run in ours),
        "torch_seconds_median": statistics.median(run["seconds_median"] for run in peers),
        "engine_seconds_median": statistics.median(run["seconds_median"] for run in ours),
        "ratio": statistics.median(by_min), "ratio_worst": by_min[0], "ratio_best": by_min[-1],
        "ratio_of_medians": statistics.median(by_median), "ratio_of_medians_worst": by_median[0], "ratio_of_medians_best": by_median[-1],
        "torch_peak_mib": max(run["peak_rss_mib"] for run in peers), "engine_peak_mib": max(run["peak_rss_mib"] for run in ours),
    }


def scaling(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Runs of the engine with one thread and with all, in turn -> how many times faster all are."""
    one = [run for run in runs if run["threads"] == 1]
    many = [run for run in runs if run["threads"] > 1]
    pairs = list(zip(one, many))
    quiet = [pair for pair in pairs if not any(map(disturbed, pair))]
    used = quiet or pairs
    if not used:
        return None
    ratios = sorted(pair[0]["seconds_min"] / pair[1]["seconds_min"] for pair in used)
    return {"threads": many[0]["threads"], "rounds": len(pairs), "used": len(used), "all_disturbed": not quiet,
            "one_seconds": min(pair[0]["seconds_min"] for pair in used), "many_seconds": min(pair[1]["seconds_min"] for pair in used),
            "speedup": statistics.median(ratios), "speedup_worst": ratios[0], "speedup_best": ratios[-1]}


def markdown(result: dict[str, Any]) -> str:
    """The whole result as Markdown: a table, and what it does not hold below it, with command and machine."""
    lines = ["| job | PyTorch | its s | engine, s | ratio: median (worst to best) | peak MiB: PyTorch | engine |", "|---|---|---|---|---|---|---|"]
    for job in result["jobs"]:
        about = job["about"]
        for line in compare(job["runs"]):
            lines.append(table_line(about, line))
            about = ""
        for name, why in job.get("failures", {}).items():
            lines.append(f"| {about} | {name} | {one_line(why)} | | | | |")
            about = ""
    notes = [note for note in (scaling_note(result), start_note(result), *absent_notes(result), disturbed_note(result), machine_note(result)) if note]
    return "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


def table_line(about: str, line: dict[str, Any]) -> str:
    """One row."""
    engine = f"{line['engine_seconds']:.3f}"
    if line["against"] != line["precision"]:
        engine += f" ({line['against']})"
    marks = f" of {line['used']}" if line["used"] < line["rounds"] else ""
    marks += ", disturbed" if line["all_disturbed"] else ""
    spread = f"{line['ratio_worst']:.2f} to {line['ratio_best']:.2f}" if line["used"] > 1 else "one round"
    return (f"| {about} | {line['variant']} | {line['torch_seconds']:.3f} | {engine} | **{line['ratio']:.2f}** ({spread}{marks}) "
            f"| {line['torch_peak_mib']:.0f} | {line['engine_peak_mib']:.0f} |")


def one_line(text: str) -> str:
    """A message that fits into a cell."""
    return " ".join(text.split()).replace("|", "/")[-160:]


def scaling_note(result: dict[str, Any]) -> str:
    """How the engine scales from one thread to all."""
    found = scaling(result.get("scaling", {}).get("runs", []))
    if not found:
        return ""
    mark = "; disturbed" if found["all_disturbed"] else ""
    gains = sorted(c["flops"] / c["flops_one_core"] for c in result["scaling"].get("ceilings", []))
    machine = f" Multiply-adds in registers: {statistics.median(gains):.2f} times ({gains[0]:.2f} to {gains[-1]:.2f})." if gains else ""
    return (f"One thread to {found['threads']} ({result['scaling']['about']}): {found['one_seconds']:.3f} to {found['many_seconds']:.3f} s, "
            f"**{found['speedup']:.2f}** times in the median of {found['used']} rounds ({found['speedup_worst']:.2f} to "
            f"{found['speedup_best']:.2f}{mark}).{machine}")


def start_note(result: dict[str, Any]) -> str:
    """Launch and size."""
    first, binary = result.get("first_step"), result.get("binary")
    words = []
    if first:
        ours, peer = (statistics.median(run["launch_to_first_step_s"] for run in first[who]) for who in ("engine", "torch"))
        words.append(f"From launch to the end of the first step ({first['about']}): {ours:.2f} s, PyTorch (eager) {peer:.2f} s.")
    if binary:
        words.append(f"The program: {binary['binary_mb']:.1f} MB.")
    return " ".join(words)


def absent_notes(result: dict[str, Any]) -> list[str]:
    """What the engine does not have here."""
    return [f"Engine in {name}: not available here ({one_line(why).rstrip('.')}); PyTorch's {name} stands beside fp32."
            for name, why in result.get("precisions", {}).items() if why]


def disturbed_note(result: dict[str, Any]) -> str:
    """A word where no comparison of some row was quiet."""
    if not any(line["all_disturbed"] for job in result["jobs"] for line in compare(job["runs"])):
        return ""
    return "Rows that say `disturbed` were measured beside other processes that used the cores: they show that the suite works, not how fast either side is."


def machine_note(result: dict[str, Any]) -> str:
    """Machine, versions, command."""
    about, versions = result["machine"], result["versions"]
    family = f" (family {about['family']}, model {about['model']})" if about.get("family") else ""
    flags = ", ".join(about.get("flags", []))
    memory = f", {about['memory_gib']:.0f} GiB" if about.get("memory_gib") else ""
    onednn = f" (oneDNN {versions['onednn']})" if versions.get("onednn") else ""
    diffusers = f", diffusers {versions['diffusers']}" if versions.get("diffusers") else ""
    return (f"{about['processor']}{family}, {about['cores']} cores [{flags}]{memory}; torch {versions.get('torch')}{onednn}{diffusers}; "
            f"{versions['engine']}{commit_words(versions)}; {result['date']}; {result['threads']} threads, {result['rounds']} rounds.\n"
            f"`{result['command']}`")


def commit_words(versions: dict[str, Any]) -> str:
    """The commit, where known."""
    return f" at {versions['commit']}" if versions.get("commit") else ""


def replace_between(text: str, table: str) -> str:
    """`text` with everything between the two markers replaced; the markers stay."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected `{BEGIN}` once and `{END}` once behind it")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END):]
    return f"{before}\n{table.strip()}\n{after}"


def write_readme(path: Path, table: str) -> None:
    """Puts the table into a file that has the markers."""
    try:
        text = replace_between(path.read_text(), table)
    except ValueError as error:
        raise SystemExit(f"{path}: {error}") from error
    path.write_text(text)
