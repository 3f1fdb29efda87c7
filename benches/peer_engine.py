"""The engine's side of the peer suite: its settings, its check against a reference file, its own measurements, each in a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from peer_process import ChildFailed, run_child

# Relative errors that the worst single parameter may have here, by the start of a row of `check`, whose own bound is 2e-3 for networks of its
# own files. With the mean absolute error the gradient is a sign: where a difference is rounding, two right programs take either, and in a
# network of this depth some parameter's gradient is mostly cancellation. All gradients together are held to `check`'s bound.
LOOSER = {"grad.*": 1e-2, "after.param.*": 1e-2}

# How a child is started: the lock, the looking beside it, the limit.
Launch = Callable[..., "dict[str, Any]"]


@dataclass(frozen=True)
class Job:
    """What both sides do."""

    name: str
    about: str
    preset: str
    what: str  # step or sample
    settings: dict[str, str] = field(default_factory=dict)

    def sets(self) -> list[str]:
        """The settings as options of the engine."""
        return [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]


class Engine:
    """A ddim-engine binary."""

    def __init__(self, path: str, launch: Launch, arguments: list[str]) -> None:
        self.path, self.launch, self.arguments = path, launch, arguments
        self.folder = tempfile.TemporaryDirectory(prefix="peer-")
        self.measures_sampling = bool(re.search(r"^\s+sample\s", self.text("bench", "--help"), re.MULTILINE))
        self.models: dict[str, Path] = {}

    def plain(self, text: str) -> str:
        """A word or message without this machine's paths."""
        return text.replace(self.path, "ddim-engine").replace(self.folder.name, "TEMPORARY")

    def text(self, *arguments: str) -> str:
        """What a short command prints."""
        try:
            done = subprocess.run([self.path, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise ChildFailed(f"cannot start {self.path}: {error.strerror}") from error
        if done.returncode:
            raise ChildFailed(f"`{self.path} {' '.join(arguments)}` exited with {done.returncode}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def config(self, job: Job) -> dict[str, Any]:
        """All settings of a job, as the engine has them."""
        import tomllib

        return tomllib.loads(self.text("train", "--preset", job.preset, *job.sets(), "--print-config"))

    def check(self, file: Path) -> dict[str, Any]:
        """Replays a reference file; fails where a quantity is out of its tolerance."""
        command = [self.path, "check", "--device", "cpu", "--precision", "fp32", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        errors, failed = check_errors(done.stdout)
        if done.returncode not in (0, 1) or not errors:
            raise ChildFailed(f"`{' '.join(command)}` exited with {done.returncode}: {done.stderr.strip()[-400:]}")
        if failed:
            raise ChildFailed(f"the engine's numbers are not PyTorch's, so nothing is timed:\n{done.stdout}")
        telling = {name: error for name, error in errors.items() if not name.startswith(tuple(LOOSER))}
        return {"largest_relative_error": max(telling.values()), "relative_errors": errors}

    def precisions(self) -> dict[str, str | None]:
        """Which arithmetic there is on this device; for what is not, why."""
        refused: dict[str, str | None] = {"fp32": None}
        try:
            self.text("bench", "step", "--device", "cpu", "--precision", "bf16", "--set", "image_size=16", "--repeat", "1")
            refused["bf16"] = None
        except ChildFailed as failure:
            refused["bf16"] = str(failure).rsplit("error: ", 1)[-1]
        return refused

    def measure(self, job: Job, options: dict[str, Any], threads: int, precision: str) -> dict[str, Any]:
        """One measurement of a job."""
        work = self.step if job.what == "step" else self.sample
        result = work(job, options, threads, precision)
        for key in ("seconds_min", "seconds_median"):
            if not isinstance(result.get(key), (int, float)):
                raise ChildFailed(f"the engine's JSON lacks {key}; it has {', '.join(sorted(result))}")
        command = " ".join(self.plain(word) for word in result["command"])
        return result | {"who": "engine", "variant": f"engine, {precision}", "precision": precision, "threads": threads, "command": command}

    def step(self, job: Job, options: dict[str, Any], threads: int, precision: str) -> dict[str, Any]:
        """`bench step`: the time of a step on the host, with the copy of the batch, AdamW and the moving average of the weights."""
        command = [self.path, "bench", "step", "--device", "cpu", "--precision", precision, "--preset", job.preset, *job.sets()]
        command += ["--threads", str(threads), "--repeat", str(options["steps"]), "--json", "-", *self.arguments]
        result = self.launch(command, dict(os.environ))
        return result | {"command": command, "seconds_min": result.get("seconds_per_step_min"),
                         "seconds_median": result.get("seconds_per_step_median")}

    def ceilings(self, threads: int) -> dict[str, Any]:
        """What `bench kernels` measures of the machine itself: multiply-adds in registers on one core and on all, copies of memory."""
        command = ["bench", "kernels", "--device", "cpu", "--preset", "quick", "--only", "fill", "--repeat", "1", "--threads", str(threads)]
        return json.loads(self.text(*command, "--json", "-"))["ceilings"]

    def sample(self, job: Job, options: dict[str, Any], threads: int, precision: str) -> dict[str, Any]:
        """`bench sample`; with an engine that has none, what 20 network calls take of the command `sample`."""
        if not self.measures_sampling:
            return self.sample_by_difference(job, options, threads, precision)
        command = [self.path, "bench", "sample", "--device", "cpu", "--precision", precision, "--preset", job.preset, *job.sets()]
        images = str(options["images"])
        command += ["--images", images, "--batch", images, "--sample-steps", str(options["sample_steps"]), "--threads", str(threads)]
        command += ["--repeat", str(options["steps"]), "--json", "-", *self.arguments]
        return self.launch(command, dict(os.environ)) | {"command": command}

    def sample_by_difference(self, job: Job, options: dict[str, Any], threads: int, precision: str) -> dict[str, Any]:
        """The command `sample` with all steps less the same with one network call, scaled to all calls: without start and files."""
        model = self.model(job)
        folder = Path(self.folder.name)

        def wall(steps: int) -> dict[str, Any]:
            command = [self.path, "sample", str(model), "--count", str(options["images"]), "--batch", str(options["images"]), "--device", "cpu",
                       "--steps", str(steps), "--threads", str(threads), "--precision", precision, "--out", str(folder / "samples.png")]
            return self.launch(command, dict(os.environ), json_expected=False) | {"command": command}

        calls = options["sample_steps"] - 1
        if calls < 2:
            raise ChildFailed("sampling takes three points at least: its time is a difference")
        whole, beginning = wall(calls + 1), wall(2)
        seconds = (whole["wall_seconds"] - beginning["wall_seconds"]) * calls / (calls - 1)
        return whole | {"seconds_min": seconds, "seconds_median": seconds, "network_calls": calls, "by_difference": True}

    def model(self, job: Job) -> Path:
        """A run of one step of the job's preset, to sample from."""
        key = " ".join([job.preset, *job.sets()])
        if key not in self.models:
            run = Path(self.folder.name) / f"run-{len(self.models)}"
            self.text("train", "--preset", job.preset, *job.sets(), "--data", "procedural", "--steps", "1", "--set", "sample_count=0", "--set",
                      "valid_fraction=0.01", "--device", "cpu", "--run-dir", str(run))
            self.models[key] = run
        return self.models[key]

    def first_step(self, job: Job, prefix: list[str]) -> dict[str, Any]:
        """Seconds from the launch of `train` to the line that tells of the end of its first step; pictures are made or read before it."""
        with tempfile.TemporaryDirectory(prefix="peer-") as folder:
            command = [self.path, "train", "--preset", job.preset, *job.sets(), "--steps", "1", "--device", "cpu", "--set", "sample_count=0",
                       "--run-dir", f"{folder}/run"]
            start, told = time.monotonic(), None
            child = subprocess.Popen([*prefix, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
            assert child.stderr is not None
            for line in child.stderr:
                if told is None and re.match(r"epoch 1\b", line):
                    told = time.monotonic() - start
            if child.wait() or told is None:
                raise ChildFailed(f"`{' '.join(command)}` did not tell of its first step (exit code {child.returncode})")
        return {"command": " ".join(self.plain(word.replace(folder, "TEMPORARY")) for word in command), "launch_to_first_step_s": told}

    def binary(self) -> dict[str, Any]:
        """Size of the program."""
        return {"binary_mb": os.path.getsize(self.path) / 1e6}

    def version(self) -> str:
        """As the program tells it."""
        return self.text("--version").strip()


def check_errors(text: str) -> tuple[dict[str, float], list[str]]:
    """What `ddim-engine check` printed -> relative error of each quantity, and those that are too far off."""
    errors, failed = {}, []
    for line in text.splitlines():
        found = re.match(r"\s+(\S.*?)\s{2,}\S+\s+(\S+)\s+([0-9.]+e-?\d+)(\s+FAILED)?\s*$", line)
        if not found:
            continue
        name, error, tolerance = found[1], float(found[2]), float(found[3])
        allowed = max([tolerance, *(looser for start, looser in LOOSER.items() if name.startswith(start))])
        errors[name] = error
        if not error <= allowed:
            failed.append(name)
    return errors, failed


def write_json(path: Path, value: Any) -> None:
    """Writes a result whole or not at all: who stops the suite keeps what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    beside.replace(path)
