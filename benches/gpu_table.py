"""README's table of a GPU run: what was aimed at beside what was measured, PyTorch beside the engine, what stays below its roofline.

It takes the JSON files of a results folder that their summary knows of; whatever is not there is told to be so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

from gpu_analyse import ENOUGH, below
from gpu_base import read_json

BEGIN, END = "<!-- gpu table: begin -->", "<!-- gpu table: end -->"
NOT_RUN = "not run on a GPU"
COMPILED = ("compile-bf16", "graph-bf16")  # max-autotune with its own CUDA graphs, and with the whole step as one
Results = dict[str, dict[str, Any]]


def load(folder: Path) -> tuple[dict[str, Any], Results]:
    """A results folder -> its summary, and what each step's parts found: {file: {part: record}}.

    Raises:
        ValueError: it is no folder of results.
    """
    summary = read_json(folder / "summary.json")
    if not isinstance(summary, dict) or not str(summary.get("format", "")).startswith("ddim-engine-gpu/"):
        raise ValueError(f"{folder}: no summary.json of benches/gpu.sh; expected a folder that it has written")
    results: Results = {}
    for row in summary.get("steps", []):
        whole = read_json(folder / row["file"]) if row.get("file") else None
        part = row.get("part") or "all"
        if isinstance(whole, dict) and part in whole:
            results.setdefault(row["file"], {})[part] = whole[part]
    return summary, results


# ---- figures ---------------------------------------------------------------------------------------------------------------------


def look(results: Results, *path: str) -> Any:
    """What stands at a path of names; None where a name is missing."""
    value: Any = results
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def number(results: Results, *path: str) -> float | None:
    """The number there."""
    value = look(results, *path)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def comparison(results: Results, file: str, part: str) -> dict[str, Any] | None:
    """A variant's comparison; none where the outputs differ."""
    rows = look(results, file, part, "comparisons") or []
    return next((row for row in rows if not row.get("outputs_differ")), None)


def ratio_to_compiled(results: Results, file: str) -> float | None:
    """Of compiled PyTorch's time over the engine's, the lesser of the two ways to have CUDA graphs; None unless the whole step's was measured."""
    found = {name: row["ratio_of_medians"] for name in COMPILED if (row := comparison(results, file, name))}
    return min(found.values()) if "graph-bf16" in found else None


def sanitizer_clean(results: Results) -> tuple[bool | None, str]:
    """Whether compute-sanitizer found nothing in any run."""
    tools = results.get("sanitizer.json") or {}
    rows = [row for rows in tools.values() for row in rows]
    if not rows:
        return None, NOT_RUN
    wrong = [f"{row['tool']} of {row['what']} in {row['precision']}" for row in rows if row.get("errors") != 0 or row.get("exit_code") != 0]
    return not wrong, f"wrong: {', '.join(wrong)}" if wrong else f"{', '.join(tools)}: {len(rows)} runs, no errors"


def checked(results: Results, name: str, good: Callable[[dict[str, Any]], bool]) -> tuple[bool | None, str]:
    """Of the parts of `check`, in which arithmetic something holds."""
    rows = results.get("check.json") or {}
    if not rows:
        return None, NOT_RUN
    wrong = [precision for precision, row in rows.items() if not good(row)]
    return not wrong, f"not in {', '.join(wrong)}" if wrong else f"{name} in {', '.join(rows)}"


def convolutions(results: Results) -> list[dict[str, Any]]:
    """All that have a share of the roofline, of both presets."""
    found = []
    for preset, record in (results.get("roofline.json") or {}).items():
        found += [{**row, "preset": preset} for row in record.get("convolutions") or [] if row.get("share") is not None]
    return found


# ---- the table -------------------------------------------------------------------------------------------------------------------


def line(what: str, aim: str, measured: str, met: bool | None, predicted: str = "") -> str:
    """A row of the first table."""
    return f"| {what} | {aim} | {measured} | {'' if met is None else 'yes' if met else '**no**'} | {predicted} |"


def at_most(results: Results, what: str, limit: float, value: float | None, unit: str, scale: float, predicted: float | None = None) -> str:
    """A row with an upper bound, in `unit`s after scaling."""
    told = NOT_RUN if value is None else f"**{scale * value:.3g} {unit}**"
    return line(what, f"at most {limit:g} {unit}", told, None if value is None else scale * value <= limit,
                "" if predicted is None else f"{scale * predicted:.3g} {unit}")


def aims(results: Results) -> list[str]:
    """Aims beside figures."""
    plan = {part: number(results, "plan.json", part, "against", "sum", "predicted_seconds") for part in ("seed", "unet2d-64", "seed-sampling")}
    sampling = plan["seed-sampling"]
    rows = ["| what | aim | measured | met | predicted |", "|---|---|---|---|---|",
            at_most(results, "training step, `seed`, bf16, 64 images of 64x64", 1.5, number(results, "step.json", "bf16", "seconds_per_step_median"),
                    "ms", 1e3, plan["seed"])]
    for preset, file, aim in (("seed", "torch.json", 1.5), ("unet2d-64", "torch-unet2d.json", 1.2)):
        ratio = ratio_to_compiled(results, file)
        rows.append(line(f"`{preset}`: compiled PyTorch with CUDA graphs over the engine", f"at least {aim:g}",
                         NOT_RUN if ratio is None else f"**{ratio:.2f}**", None if ratio is None else ratio >= aim))
    step = number(results, "unet2d.json", "bf16", "seconds_per_step_median")
    predicted = f"{1e3 * plan['unet2d-64']:.3g} ms" if plan["unet2d-64"] else ""
    rows.append(line("training step, `unet2d-64`, bf16, 64 images", "", NOT_RUN if step is None else f"{1e3 * step:.3g} ms", None, predicted))
    # The seed's loop of 20 points has 19 network calls.
    rows.append(at_most(results, "64 pictures of `seed` in 20 steps, bf16", 10, number(results, "sampling.json", "batch-64", "engine", "seconds_median"),
                        "ms", 1e3, 19 * sampling if sampling else None))
    run = look(results, "train.json", "run") or {}
    whole = number(results, "train.json", "run", "summary", "seconds") if run.get("steps") == 25_600 else None
    pictures = Path(run["data"]).name if whole is not None and run.get("data") else "flowers"
    rows.append(at_most(results, f"25,600 steps of `seed` on {pictures}, validations and pictures between them", 45, whole, "s", 1.0,
                        25_600 * plan["seed"] if plan["seed"] else None))
    beside = look(results, "train.json", "torch", "beside") or []
    words = [f"{row['step']} steps: {row['engine']['noise_loss']:.4f}, PyTorch {row['torch']['noise_loss']:.4f}" for row in beside[-1:]]
    rows.append(line("its validation noise_loss beside PyTorch's", "within two standard errors", words[0] if words else NOT_RUN,
                     all(row["within"] for row in beside) if beside else None))
    known = convolutions(results)
    low = below(known)
    rows.append(line("convolutions at their roofline", f"{ENOUGH:.0%} or listed below",
                     f"{len(known) - len(low)} of {len(known)} at {ENOUGH:.0%} or more" if known else NOT_RUN, None if not known else not low))
    clean, words_of = sanitizer_clean(results)
    rows.append(line("compute-sanitizer", "clean", words_of, clean))
    same, words_of = checked(results, "the same bytes", lambda row: bool(row.get("same_bytes_when_repeated")))
    rows.append(line("two training runs", "the same bytes", words_of, same))
    right, words_of = checked(results, "within tolerance", lambda row: row.get("exit_code") == 0)
    rows.append(line("PyTorch's reference files", "within tolerance", words_of, right))
    return rows


def beside_torch(results: Results) -> list[str]:
    """PyTorch and the engine in turn; empty where nothing was measured."""
    rows = []
    jobs = [("torch.json", "training step, `seed`"), ("torch-unet2d.json", "training step, `unet2d-64`")]
    for file, what in jobs + [("sampling.json", "20 steps of sampling, `seed`")]:
        for part, record in (results.get(file) or {}).items():
            for row in record.get("comparisons") or []:
                spread = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}" if len(row["ratios"]) > 1 else "one round"
                ratio = "outputs differ" if row.get("outputs_differ") else f"**{row['ratio_of_medians']:.2f}** ({spread})"
                job = f"{what}, {part.replace('batch-', '')} at once" if file == "sampling.json" else what
                mib = [f"{row[name]:.0f}" if isinstance(row.get(name), (int, float)) else "" for name in ("torch_peak_mib", "engine_peak_mib")]
                rows.append(f"| {job} | {row['about']} | {1e3 * row['torch_seconds_median']:.3f} | {1e3 * row['engine_seconds_median']:.3f} "
                            f"({row['engine_precision']}) | {ratio} | {mib[0]} | {mib[1]} |")
    head = ["| job | PyTorch | its ms | engine, ms | ratio: median (worst to best) | peak MiB on the GPU: PyTorch | engine |", "|---|---|---|---|---|---|---|"]
    return head + rows if rows else []


def low_convolutions(results: Results, most: int = 40) -> list[str]:
    """Convolutions below what was aimed at, with cuDNN beside them; empty where there are none."""
    low = below(convolutions(results))
    if not low:
        return []
    rows = [f"Convolutions below {ENOUGH:.0%} of their roofline, with warm caches:", "",
            "| preset | part | shape | fused with it | us | roofline | bound | cuDNN's us, without what is fused |", "|---|---|---|---|---|---|---|---|"]
    for row in low[:most]:
        theirs = f"{1e6 * row['cudnn_seconds']:.1f}" if row.get("cudnn_seconds") else ""
        rows.append(f"| {row['preset']} | {row['part']} | {row['shape']} | {row['options']} | {1e6 * row['seconds']:.1f} | {row['share']:.0%} "
                    f"| {row['bound']} | {theirs} |")
    return rows + ([f"and {len(low) - most} more, in `roofline.json`"] if len(low) > most else [])


def notes(summary: dict[str, Any], results: Results) -> list[str]:
    """The card's rates, the distance of pictures, memory, and where the figures come from."""
    words = []
    torch = look(results, "ceilings.json", "torch") or {}
    copies = [f"{row['bytes'] / 2**20:.0f} MiB {row['bytes_per_second'] / 1e12:.2f} TB/s" for row in torch.get("copies") or []]
    gemm = [f"{name} {row['flops_per_second'] / 1e12:.0f} TFLOP/s" for name, row in (torch.get("gemm") or {}).items()]
    if copies or gemm:
        node = number(results, "ceilings.json", "torch", "graph", "seconds_per_node")
        words.append(f"The card, through PyTorch: copies of {', '.join(copies)}; products of 8192 by 8192 in {', '.join(gemm)}"
                     + (f"; a node of a graph {1e6 * node:.2f} us." if node else "."))
    latencies = [f"{part.removeprefix('batch-')}: {1e3 * seconds:.3g} ms" for part in (results.get("sampling.json") or {})
                 if (seconds := number(results, "sampling.json", part, "engine", "seconds_median"))]
    words += [f"20 steps of sampling by pictures at once: {', '.join(latencies)}."] if latencies else []
    memory = [f"{name} {mib:.0f}" for name, file in (("`seed`", "step.json"), ("`unet2d-64`", "unet2d.json"))
              if (mib := number(results, file, "bf16", "arena_peak_mib"))]
    words += [f"Peak memory of a training step in bf16, MiB of the arena: {', '.join(memory)}."] if memory else []
    used = number(results, "train.json", "run", "peak_mib_on_card")
    words += [f"In use on the card during the training run, by everything: {used:.0f} MiB."] if used else []
    distance = look(results, "train.json", "run", "distance")
    if distance:
        quality = look(distance, "evaluation", "quality") or {}
        of = [f"{name.upper()} {quality[name]:.4g}" for name in ("kid", "fid") if isinstance(quality.get(name), (int, float))]
        words.append(f"Pictures of the trained model against real ones: {', '.join(of) or distance.get('skipped') or 'not measured'}.")
    plans = results.get("plan.json") or {}
    model = next((record["model"] for record in plans.values() if record.get("model")), None)
    if model and "compute_share" in model:
        launch = 1e6 * (model.get("ramp_seconds", 0.0) + model.get("gap_seconds", 0.0))
        words.append(f"`predicted` is of a model, no measurement: {model['compute_share']:.0%} of the rate of `mma.sync`, {model['memory_share']:.0%} of that "
                     f"of a copy, {launch:.1f} us a launch ([docs/bench.md](docs/bench.md)).")
    for part, record in plans.items():
        total = look(record, "against", "sum") or {}
        told = f"measured {1e3 * total['measured_seconds']:.3g} ms of kernels" if total.get("measured_seconds") else NOT_RUN
        words.append(f"Plan of `{part}` for {record.get('gpu')}: {total.get('launches')} launches, at best {1e3 * (total.get('floor_seconds') or 0):.3g} ms, "
                     f"predicted {1e3 * (total.get('predicted_seconds') or 0):.3g} ms; {told}.")
    card, git = summary.get("gpu_before") or {}, summary.get("git") or {}
    if summary.get("card"):
        wrong = sorted({label_of(row) for row in summary.get("steps", []) if row["status"] == "failed"})
        words.append(f"{summary['card']}, driver {card.get('driver_version')}{', --quick' if summary.get('quick') else ''}; {git.get('commit', 'commit unknown')[:12]}"
                     f"{', with changes' if git.get('dirty') else ''}; {str(summary.get('began'))[:10]}; `{summary.get('command')}`"
                     + (f"; steps that failed: {', '.join(wrong)}" if wrong else ""))
    return words


def label_of(row: dict[str, Any]) -> str:
    """A step's name, with its part."""
    return f"{row['step']}:{row['part']}" if row.get("part") else str(row["step"])


def markdown(summary: Optional[dict[str, Any]], results: Results) -> str:
    """The whole as Markdown."""
    summary = summary or {}
    head = [] if summary.get("card") else [f"**{NOT_RUN[0].upper()}{NOT_RUN[1:]}.** Aims, and what `bench plan` predicts where it was asked.", ""]
    parts = [head + aims(results), beside_torch(results), low_convolutions(results), notes(summary, results)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def write_readme(path: Path, table: str) -> None:
    """Puts the table into a file that has the markers.

    Raises:
        ValueError: it has not.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path}: expected `{BEGIN}` once and `{END}` once behind it")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END):]
    path.write_text(f"{before}\n{table.strip()}\n{after}")


def main(folder: Path | None, readme: Path) -> None:
    """Prints the table of a results folder, or of none, and puts it into the README.

    Raises:
        ValueError: no results in the folder, or no markers in the README.
    """
    summary, results = load(folder) if folder else (None, {})
    table = markdown(summary, results)
    print(table)
    write_readme(readme, table)

