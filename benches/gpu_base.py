"""What the steps of the GPU script share: what they run with, how they keep what they found, and how long they are thought to take.

A step has parts, each of which can be run alone (`--only torch:graph-bf16`) and writes under its own name into the step's JSON file, so that a
machine that is lent for minutes at a time can still be asked everything.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from gpu_machine import Runner

HERE = Path(__file__).resolve().parent
PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass
class Suite:
    """What the steps share."""

    args: argparse.Namespace
    runner: Runner
    engine: Path
    tests: list[Path]
    fixtures: list[Path]
    card: str | None = None  # the GPU's name, where there is one
    join: bool = False  # the folder holds results of the same commit, which stay
    begun: set[str] = field(default_factory=set)  # files that this run has written

    @property
    def dry(self) -> bool:
        """Only the commands are printed."""
        return self.runner.dry

    @property
    def quick(self) -> bool:
        """Fewer repetitions."""
        return bool(self.args.quick)

    def keep(self, file: str, part: str, record: Any) -> str:
        """Writes what a part of a step found under its name into a JSON file of the output folder; returns the file's name."""
        if not self.dry:
            path = self.runner.out / file
            whole = read_json(path) if self.join or file in self.begun else None
            write_json(path, (whole if isinstance(whole, dict) else {}) | {part or "all": record})
            self.begun.add(file)
        return file

    def kept(self, file: str, part: str) -> Any:
        """What a part has written, in this run or in an earlier one of the same commit; None where there is nothing."""
        whole = read_json(self.runner.out / file) if self.join or file in self.begun else None
        return whole.get(part or "all") if isinstance(whole, dict) else None

    def log(self, name: str) -> Path:
        """A file among the logs, whose folder is made and which is gone at first."""
        path = self.runner.out / "logs" / name
        if not self.dry:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        return path

    def bench_step(self, preset: str, precision: str, repeat: int) -> list[Any]:
        """The command that times training steps of a preset."""
        return [self.engine, "bench", "step", "--device", "cuda", "--precision", precision, "--preset", preset, "--repeat", repeat]

    def tool(self, name: str) -> str | None:
        """A tool of the CUDA toolkit, on the path or where toolkits install it; the dry run takes its name."""
        places = [f"/usr/local/cuda/bin/{name}", f"/usr/local/cuda/compute-sanitizer/{name}"]
        return shutil.which(name) or next((place for place in places if Path(place).exists()), name if self.dry else None)

    def torch(self, *modules: str) -> str:
        """A Python whose torch sees the GPU, and that has the modules.

        Raises:
            Skipped: there is none.
        """
        python: str = self.args.python
        code = "import importlib.util as u, sys\ntry:\n    import torch\nexcept ImportError:\n    sys.exit(4)\n"
        code += f"missing = [m for m in {modules!r} if not u.find_spec(m)]\nprint(*missing)\n"
        code += "sys.exit(5 if missing else 0 if torch.cuda.is_available() else 3)\n"
        if self.dry:
            return python
        try:
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Skipped(f"{python}: {error}") from error
        if done.returncode:
            why = {4: f"{python} has no torch", 3: f"the torch of {python} sees no GPU", 5: f"{python} lacks {done.stdout.strip()}"}
            raise Skipped(why.get(done.returncode, f"the torch of {python} does not start: {done.stderr.strip()[-200:]}"))
        return python


class Skipped(Exception):
    """A part that cannot run here; the message says why."""


Outcome = tuple[bool, str, "dict[str, Any]"]  # passed, in a few words, for the summary


@dataclass(frozen=True)
class Step:
    """A step of the script."""

    run: Callable[[Suite, str], Outcome]
    # Its parts, "" where it has none: seconds that each is thought to take on an H200, in full and with --quick, which leaves those without out.
    parts: dict[str, tuple[float, Optional[float]]]
    needs_gpu: bool = True

    def seconds(self, part: str, quick: bool) -> float | None:
        """How long a part is thought to take; None where --quick leaves it out."""
        return self.parts[part][int(quick)]


Unit = tuple[str, str]  # a step, and a part of it


def label(unit: Unit) -> str:
    """As `--only` has it."""
    return ":".join(word for word in unit if word)


def choose(steps: dict[str, Step], only: str | None) -> list[Unit]:
    """The parts that `--only` names, in the order of the steps; all of them without it.

    Raises:
        ValueError: a name that there is not.
    """
    everything = [(name, part) for name, step in steps.items() for part in step.parts]
    if not only:
        return everything
    wanted = [word.strip() for word in only.split(",") if word.strip()]
    for word in wanted:
        name, _, part = word.partition(":")
        if name not in steps:
            raise ValueError(f"--only {word!r}: expected some of {', '.join(steps)}")
        if part and part not in steps[name].parts:
            parts = ", ".join(f"{name}:{part}" for part in steps[name].parts if part)
            raise ValueError(f"--only {word!r}: " + (f"expected some of {parts}" if parts else f"{name} has no parts"))
    return [unit for unit in everything if unit[0] in wanted or label(unit) in wanted]


def calls(steps: dict[str, Step], units: list[Unit], quick: bool, limit: float) -> list[tuple[list[Unit], float]]:
    """Parts -> calls of the script of at most `limit` seconds, as they are thought to take; one part at least in each."""
    found: list[tuple[list[Unit], float]] = []
    for unit in units:
        seconds = steps[unit[0]].seconds(unit[1], quick)
        if seconds is None:
            continue
        if found and found[-1][1] + seconds <= limit:
            found[-1] = (found[-1][0] + [unit], found[-1][1] + seconds)
        else:
            found.append(([unit], seconds))
    return found


def only_text(steps: dict[str, Step], units: list[Unit]) -> str:
    """Parts as the shortest text that `--only` takes."""
    words: list[str] = []
    for name in dict.fromkeys(name for name, _ in units):
        parts = [part for step, part in units if step == name]
        words += [name] if len(parts) == len(steps[name].parts) else [label((name, part)) for part in parts]
    return ",".join(words)


def write_json(path: Path, value: Any) -> None:
    """As JSON, which has no NaN and no infinity: null stands for them. Whole or not at all."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(part) for key, part in value.items()}
        if isinstance(value, list):
            return [finite(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + "\n")
    beside.replace(path)


def read_json(path: Path) -> Any:
    """A JSON file; None where there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def milliseconds(seconds: Any) -> str:
    """A time for people; a dash where there is none."""
    return f"{1e3 * seconds:.3f} ms" if isinstance(seconds, (int, float)) else "-"
