"""Steps of the GPU script that measure what the card can do, every operation against that, and a step against its plan."""

from __future__ import annotations

from typing import Any

from gpu_analyse import below, conv_table, conv_text, gpu_of_card, plan_against, plan_text, rates, shares
from gpu_base import HERE, Outcome, Skipped, Suite, milliseconds, read_json

PLANS = {"seed": "bf16", "unet2d-64": "unet2d-64", "seed-sampling": None}  # the part of `kernels` that a plan stands beside


def step_ceilings(suite: Suite, part: str) -> Outcome:
    """What the card can do: copies and large products through PyTorch, the gap between a graph's nodes, the engine's own ceilings."""
    log = suite.log(f"ceilings-{part}.json")
    if part == "torch":
        done = suite.runner.run([suite.torch(), HERE / "torch_ceilings.py", "--json", log], 200, "ceilings-torch.log", watch=True)
        found = read_json(log) or {}
        words = [f"copy of {row['bytes'] / 2**20:.0f} MiB {row['bytes_per_second'] / 1e12:.2f} TB/s" for row in found.get("copies", [])]
        words += [f"{name} product {row['flops_per_second'] / 1e12:.0f} TFLOP/s" for name, row in found.get("gemm", {}).items()]
        words += [f"{1e6 * found['graph']['seconds_per_node']:.2f} us a node of a graph"] if found.get("graph") else []
        text = ", ".join(words) + " (by PyTorch)" if words else f"no result: {done.why}"
        return bool(words) or suite.dry, text, {"file": suite.keep("ceilings.json", part, {**found, **done.record()})}
    command = [suite.engine, "bench", "kernels", "--preset", "seed", "--device", "cuda", "--precision", "bf16", "--only", "fill", "--repeat", 1]
    done = suite.runner.run([*command, "--json", log], 120, "ceilings-engine.log")
    found = (read_json(log) or {}).get("ceilings") or {}
    copy = found.get("copy_bytes_per_second")
    text = f"copy {copy / 1e12:.2f} TB/s; {found.get('source')}" if copy else f"no result: {done.why}"
    return bool(copy) or suite.dry, text, {"file": suite.keep("ceilings.json", part, {"ceilings": found, **done.record()})}


def step_roofline(suite: Suite, preset: str) -> Outcome:
    """Every operation in bf16: hot and cold, its share of the roofline, its error; every convolution beside cuDNN."""
    log = suite.log(f"operations-{preset}.json")
    command = [suite.engine, "bench", "kernels", "--preset", preset, "--device", "cuda", "--precision", "bf16"]
    command += ["--repeat", 5, "--budget", 0.1, "--hot-only"] if suite.quick else []
    done = suite.runner.run([*command, "--json", log], 400, f"operations-{preset}.log", watch=True)
    result = read_json(log) or {}
    record: dict[str, Any] = {"preset": preset, "command": done.record(), "ceilings": result.get("ceilings"), "machine": result.get("machine")}
    cudnn, said = [], ""
    if result.get("rows") or suite.dry:
        beside = suite.log(f"cudnn-{preset}.json")
        try:
            run = suite.runner.run([suite.torch(), HERE / "torch_conv.py", log, "--json", beside], 400, f"cudnn-{preset}.log", watch=True)
            found = read_json(beside) or {}
            record["cudnn"] = {**run.record(), **{name: found.get(name) for name in ("torch", "cudnn", "gpu", "precision", "method")}}
            cudnn = found.get("rows", [])
            said = "" if run.ok else f"; cuDNN: {run.why}"
        except Skipped as why:
            record["cudnn"] = {"skipped": str(why)}
            said = f"; cuDNN skipped: {why}"
    card = rates(result.get("ceilings") or {}, suite.kept("ceilings.json", "torch"))
    rows = shares(result.get("rows") or [], card)
    table = conv_table(rows, cudnn)
    record |= {"card": card, "rows": rows, "convolutions": table}
    known = [row for row in table if row["share"] is not None]
    low = below(table)
    errors = [row["error"] for row in rows if row.get("error") is not None]
    ratios = sorted(row["ratio"] for row in table if row["ratio"])
    text = f"{len(rows)} operations, largest error {max(errors):.1e}" if errors else f"{len(rows)} operations"
    text += f"; {len(known) - len(low)} of {len(known)} convolutions at 60 % of their roofline or more" if known else "; no ceilings, no shares"
    text += f"; cuDNN's time over the engine's {ratios[0]:.2f} to {ratios[-1]:.2f}, median {ratios[len(ratios) // 2]:.2f}" if ratios else ""
    text += said + (f"; {done.why}" if not done.ok else "")
    if table:
        print(conv_text(table), flush=True)
    good = done.ok and (bool(rows) or suite.dry) and not said.startswith("; cuDNN:")
    return good, text, {"file": suite.keep("roofline.json", preset, record)}


def step_plan(suite: Suite, part: str) -> Outcome:
    """The launches of a step, or of a network call of sampling, as `bench plan` predicts them; beside what `kernels` measured, where it ran."""
    gpu = suite.args.gpu or gpu_of_card(suite.card)
    if gpu is None and suite.card:
        raise Skipped(f"bench plan has no line for {suite.card}; --gpu names another")
    gpu = gpu or "h200"
    preset, sampling = part.removesuffix("-sampling"), part.endswith("-sampling")
    log = suite.log(f"plan-{part}.json")
    command = [suite.engine, "bench", "plan", "--preset", preset, "--gpu", gpu, "--precision", "bf16", "--kernels", "--json", log]
    done = suite.runner.run(command + (["--sampling"] if sampling else []), 120, f"plan-{part}.log")
    plan = read_json(log)
    if not suite.dry and not (plan or {}).get("launches"):
        raise Skipped(f"this engine has no `bench plan`: {done.why}") if "unrecognized subcommand" in done.output else RuntimeError(
            f"no plan: {done.why}, see logs/plan-{part}.log")
    kernels = suite.kept("kernels.json", PLANS[part] or "")
    record = {"gpu": gpu, "card": suite.card, **done.record(), "model": (plan or {}).get("model"), "plan": plan,
              "against": plan_against(plan or {}, kernels if suite.card else None)}
    total = record["against"]["sum"]
    text = f"{total['launches']} launches, predicted for {gpu} {milliseconds(total['predicted_seconds'])}, at best {milliseconds(total['floor_seconds'])}"
    if total["measured_seconds"]:
        text += f"; measured {milliseconds(total['measured_seconds'])} of kernels in {total['launches_seen']:.0f} launches"
        print(plan_text(record["against"]), flush=True)
    elif not sampling:
        text += "; not measured" + (": the part of `kernels` has not run" if suite.card else ": no GPU")
    return True, text, {"file": suite.keep("plan.json", part, record)}
