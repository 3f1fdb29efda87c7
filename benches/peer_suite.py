"""The peer suite: every job, PyTorch's ways to run it and the engine in turn, in one run on one machine.

    engine, PyTorch, engine, the next way to run PyTorch, engine, ...

so that every run of PyTorch has the engine on both sides. Jobs, variants and what is compared before timing are stated here; the
children's work is in peer_child.py and peer_engine.py, the table in peer_table.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import peer_table
from peer_engine import Engine, Job, write_json
from peer_process import ChildFailed, disturbed, held, machine, meanwhile, processor, run_child, wait_idle

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# glibc returns large freed blocks to the kernel at once, and the next step pays for them in page faults. These settings make it
# keep them: no trimming, no separate mappings, and growth in large pieces.
TUNED_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(256 << 20),
}
BESIDE_S = 0.5  # how long is looked for other processes before and after a child
CHILD_LIMIT_S = 420.0  # a child that takes longer is ended
FIRST_STEPS = 3  # launches


@dataclass(frozen=True)
class Variant:
    """A way to run PyTorch on a CPU."""

    tuned_allocator: bool = False
    compile: bool = False
    bf16: bool = False
    channels_last: bool = True
    fused_adamw: bool = False
    frozen: bool = False  # torch.compile with the weights as constants; for sampling alone

    @property
    def name(self) -> str:
        """One label for a combination of options."""
        parts = ["compiled" if self.compile else "eager", "channels_last" if self.channels_last else "nchw"]
        parts += ["bf16"] if self.bf16 else []
        parts += ["frozen weights"] if self.frozen else []
        parts += ["fused AdamW"] if self.fused_adamw else []
        parts += ["tuned allocator"] if self.tuned_allocator else ["as installed"]
        return ", ".join(parts)

    def environment(self, threads: int) -> dict[str, str]:
        """What a child of this variant is started with."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        for name in (*TUNED_ALLOCATOR, "TORCHINDUCTOR_FREEZING"):
            environment.pop(name, None)
        environment |= TUNED_ALLOCATOR if self.tuned_allocator else {}
        return environment | ({"TORCHINDUCTOR_FREEZING": "1"} if self.frozen else {})


EAGER, EAGER_TUNED, COMPILED = Variant(), Variant(tuned_allocator=True), Variant(tuned_allocator=True, compile=True)
# The strongest opponent has the AdamW of one pass too, which saves PyTorch 3 % of a step of unet2d-tiny.
BEST = replace(COMPILED, fused_adamw=True)
TRAINING = [EAGER, EAGER_TUNED, BEST, replace(EAGER_TUNED, bf16=True), replace(BEST, bf16=True)]
SAMPLING = [EAGER, EAGER_TUNED, COMPILED, replace(COMPILED, frozen=True)]

JOBS = {
    "seed-step": (Job("seed-step", "training step, `seed`", "seed", "step"), TRAINING),
    "seed-sample": (Job("seed-sample", "sampling, `seed`", "seed", "sample"), SAMPLING),
    "unet2d-step": (Job("unet2d-step", "training step, `unet2d-tiny`", "unet2d-tiny", "step"), TRAINING),
}
SECTIONS = [*JOBS, "scaling", "first-step"]


class Suite:
    """One run of the suite."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = tempfile.TemporaryDirectory(prefix="peer-")
        self.prefix = ["nice", "-n", str(args.nice)] if args.nice else []
        self.engine = Engine(args.engine, self.launch, args.engine_args.split())
        self.precisions = self.engine.precisions()
        self.file = Path(args.json) if args.json and args.json != "-" else results_file()
        versions = {"engine": self.engine.version(), "commit": commit(), "python": sys.version.split()[0]} | library_versions()
        command = command_line(sys.argv[1:])
        self.result: dict[str, Any] = {
            "what": "PyTorch and the engine in turn", "date": datetime.date.today().isoformat(), "command": command, "machine": machine(),
            "versions": versions, "threads": args.threads, "rounds": args.rounds, "precisions": self.precisions,
            "binary": self.engine.binary(), "jobs": [],
        }
        if args.join:
            kept = kept_of(self.file, set(args.only or SECTIONS))
            before = kept.pop("command", None)
            self.result |= kept | ({"command": f"{before}; then {command}"} if before else {})
        self.failed = False

    def launch(self, command: list[str], environment: dict[str, str], **options: Any) -> dict[str, Any]:
        """Runs one child, alone as far as this machine's users agree."""
        with held(self.args.lock):
            wait_idle(self.args.wait_idle)
            return run_child([*self.prefix, *command], environment, limit=CHILD_LIMIT_S, beside=BESIDE_S, **options)

    def torch(self, variant: Variant, options: dict[str, Any]) -> dict[str, Any]:
        """Runs PyTorch in a child."""
        options = options | {"variant": asdict(variant)}
        command = [sys.executable, str(HERE / "peer_child.py"), json.dumps(options)]
        return self.launch(command, variant.environment(options["threads"]))

    def run(self) -> bool:
        """All sections asked for; False if one failed."""
        for name in self.args.only or SECTIONS:
            print(f"\n{name}", flush=True)
            try:
                if name in JOBS:
                    self.job(*JOBS[name])
                elif name == "scaling":
                    self.scaling()
                else:
                    self.first_step()
            except ChildFailed as failure:
                print(f"torch_peer: {name}: {failure}", file=sys.stderr)
                self.failed = True
            self.save()
        return not self.failed

    def save(self) -> None:
        """Writes what there is so far."""
        self.result["comparisons"] = {job["name"]: peer_table.compare(job["runs"]) for job in self.result["jobs"]}
        write_json(self.file, self.result)

    def report(self, run: dict[str, Any], images: int) -> dict[str, Any]:
        """Prints a line for a run, and returns it."""
        print("  " + describe(run, images), flush=True)
        return run

    def plain(self, text: str) -> str:
        """A message without this machine's paths."""
        for path, name in ((sys.executable, "python"), (str(ROOT), "."), (self.folder.name, "TEMPORARY")):
            text = text.replace(path, name)
        return self.engine.plain(text)

    def options(self, job: Job) -> dict[str, Any]:
        """What both sides are told of a job."""
        args, config = self.args, self.engine.config(self.with_settings(job))
        repetitions = args.steps if job.what == "step" else args.sample_runs
        return {"what": job.what, "config": config, "threads": args.threads, "steps": repetitions, "warmup": args.warmup,
                "budget_s": args.budget, "images": min(args.images, config["batch_size"]) if args.small else args.images,
                "sample_steps": args.sample_steps + (1 if config["family"] == "seed" else 0)}

    def with_settings(self, job: Job) -> Job:
        """The job with the settings of the command line."""
        return Job(job.name, job.about, job.preset, job.what, {**job.settings, **dict(self.args.small_settings)})

    def job(self, job: Job, variants: list[Variant]) -> None:
        """Compares the outputs, then measures all variants, with the engine between them."""
        options = self.options(job)
        config, size = options["config"], options["config"]["image_size"]
        images = options["images"] if job.what == "sample" else config["batch_size"]
        extent = f"{images} images of {size}x{size}"
        about = f"{job.about}, {extent}" + (f", {self.args.sample_steps} DDIM steps" if job.what == "sample" else "")
        entry: dict[str, Any] = {"name": job.name, "about": about, "config": config, "runs": [], "failures": {},
                                 "options": {key: value for key, value in options.items() if key != "config"}}
        self.result["jobs"].append(entry)
        self.result["jobs"].sort(key=lambda job: list(JOBS).index(job["name"]))
        reference = Path(self.folder.name) / f"{job.name}.safetensors"
        options["reference"] = str(reference)
        written = self.torch(EAGER_TUNED, options | {"what": "reference"})
        with held(self.args.lock):
            entry["check"] = {"parameters": written["parameters"]} | self.engine.check(reference)
        print(f"  outputs agree: {written['parameters']:,} parameters; the engine is off by {entry['check']['largest_relative_error']:.1e} at most",
              flush=True)
        self.result["versions"]["torch"] = written["torch"]
        job = self.with_settings(job)
        failures = entry["failures"]
        for number in range(self.args.rounds):
            print(f"  round {number + 1} of {self.args.rounds}", flush=True)
            last = None
            for variant in variants:
                if variant.name in failures or (variant.bf16 and self.args.no_bf16):
                    continue
                precision = "bf16" if variant.bf16 and self.precisions["bf16"] is None else "fp32"
                if last != precision:
                    entry["runs"].append(self.report(self.ours(job, options, precision, number), images))
                try:
                    peer = self.torch(variant, options)
                except ChildFailed as failure:
                    print(f"  {variant.name}: {failure}", file=sys.stderr, flush=True)
                    failures[variant.name] = self.plain(str(failure))
                    self.failed = True
                    self.save()
                    continue
                peer |= {"who": "torch", "variant": variant.name, "precision": "bf16" if variant.bf16 else "fp32", "against": precision,
                         "round": number, "options": asdict(variant)}
                entry["runs"].append(self.report(peer, images))
                self.result["versions"].setdefault("onednn", peer["onednn"])
                entry["runs"].append(self.report(self.ours(job, options, precision, number), images))
                last = precision
                self.save()

    def ours(self, job: Job, options: dict[str, Any], precision: str, number: int, threads: int | None = None) -> dict[str, Any]:
        """One measurement of the engine."""
        return self.engine.measure(job, options, threads or self.args.threads, precision) | {"round": number}

    def scaling(self) -> None:
        """The engine with one thread and with all, in turn; behind each pair what multiply-adds in registers gain by all cores, since a
        virtual machine's cores may be two halves of one from time to time."""
        job = self.with_settings(JOBS["seed-step"][0])
        options = self.options(job)
        images = options["config"]["batch_size"]
        entry: dict[str, Any] = {"about": job.about, "runs": [], "ceilings": []}
        self.result["scaling"] = entry
        if self.args.threads < 2:
            print("  one thread: nothing to compare")
            return
        for number in range(self.args.rounds):
            for threads in (1, self.args.threads):
                run = self.ours(job, options, "fp32", number, threads)
                run["variant"] = f"engine, {threads} thread{'s' if threads > 1 else ''}"
                entry["runs"].append(self.report(run, images))
            entry["ceilings"].append(self.engine.ceilings(self.args.threads))
            one, all_cores = (entry["ceilings"][-1][key] for key in ("flops_one_core", "flops"))
            print(f"  multiply-adds in registers, {self.args.threads} threads over one: {all_cores / one:.2f}", flush=True)
            self.save()

    def first_step(self) -> None:
        """From launch to the end of the first step of the program's default preset."""
        job = Job("first-step", "preset `quick`", "quick", "step", {"data": "procedural"})
        config = self.engine.config(job)
        options = {"what": "step", "config": config, "threads": self.args.threads, "steps": 1, "warmup": 1, "budget_s": 1.0}
        about = f"preset `quick`, {config['batch_size']} images of {config['image_size']}x{config['image_size']}, engine with its data"
        entry: dict[str, Any] = {"about": about, "engine": [], "torch": []}
        for _ in range(FIRST_STEPS):
            with held(self.args.lock):
                entry["engine"].append(self.engine.first_step(job, self.prefix))
            entry["torch"].append(self.torch(EAGER, options))
            ours, peer = (entry[who][-1]["launch_to_first_step_s"] for who in ("engine", "torch"))
            print(f"  engine {ours:.2f} s, PyTorch {peer:.2f} s", flush=True)
        self.result["first_step"] = entry


def describe(result: dict[str, Any], images: int) -> str:
    """One line for one measurement."""
    least, median = result["seconds_min"], result["seconds_median"]
    text = f"{result['variant']:<46} min {least:7.3f} s  median {median:7.3f} s  {images / least:6.1f} images/s"
    text += f"  peak {result['peak_rss_mib']:6.0f} MiB"
    if "page_faults_per_run" in result:
        text += f"  {result['page_faults_per_run']:7.0f} page faults"
    shares = [result.get("busy_before"), meanwhile(result), result.get("busy_after")]
    if any(share is not None for share in shares):
        text += "  others " + " ".join("?" if share is None else f"{share:.0%}" for share in shares)
    return text + (" (disturbed)" if disturbed(result) else "")


def kept_of(file: Path, anew: set[str]) -> dict[str, Any]:
    """The sections of an earlier result that are not measured anew; each keeps its own runs, the rest is told of the new run."""
    try:
        old = json.loads(file.read_text())
    except OSError:
        return {}
    kept: dict[str, Any] = {"command": old["command"], "jobs": [job for job in old["jobs"] if job["name"] not in anew]}
    kept |= {key: old[key] for key, name in (("scaling", "scaling"), ("first_step", "first-step")) if name not in anew and key in old}
    return kept


def results_file() -> Path:
    """benches/results/<date>-<processor>/peer.json."""
    slug = re.sub(r"[^a-z0-9]+", "-", processor().lower().replace("(r)", "").replace("(tm)", "")).strip("-")
    return HERE / "results" / f"{datetime.date.today().isoformat()}-{slug}" / "peer.json"


def command_line(words: list[str]) -> str:
    """The command as anybody could give it: without this machine's paths, and what is only of use here."""
    kept = []
    for before, word in zip(["", *words], words):
        if word in ("--lock", "--json") or before in ("--lock", "--json"):
            continue
        kept.append("target/release/ddim-engine" if before == "--engine" else word)
    return " ".join(["python", "benches/torch_peer.py", *kept])


def commit() -> str | None:
    """Of the working tree, marked where it has changes."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def library_versions() -> dict[str, str]:
    """Without importing them."""
    from importlib import metadata

    found = {}
    for name in ("torch", "diffusers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found
