"""The machine of a GPU run and its commands: what nvidia-smi and git say, and processes with a time limit and a log.

Nothing here fails because a tool is missing: what is not known is None.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS = ("name", "uuid", "driver_version", "compute_cap", "vbios_version", "memory.total", "memory.used", "utilization.gpu",
          "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "clocks.applications.graphics", "power.draw", "power.limit",
          "temperature.gpu", "pstate", "persistence_mode", "ecc.mode.current", "mig.mode.current", "clocks_throttle_reasons.active")
WATCHED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active", "memory.used")
# Bits of clocks_throttle_reasons.active that say that the GPU was slowed down (idle and application clocks are not among them).
THROTTLED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}


@dataclass
class Done:
    """A command that has ended."""

    command: list[str]
    code: int | None  # None: past its limit, or not started
    seconds: float
    output: str = ""  # stdout and stderr together
    why: str = ""  # in words, where it did not end by itself with 0
    watched: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether it exited with 0 in time."""
        return self.code == 0

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        record: dict[str, Any] = {"command": shlex.join(self.command), "exit_code": self.code, "seconds": round(self.seconds, 3)}
        if self.why:
            record["why"] = self.why
        if self.watched:
            record["gpu_meanwhile"] = self.watched
        return record


@dataclass
class Runner:
    """Runs commands, or only prints them."""

    out: Path
    root: Path
    dry: bool
    used: set[str] = field(default_factory=set)
    deadline: float | None = None  # of time.monotonic(): no command runs past it

    def left(self) -> float | None:
        """Seconds until the deadline, where there is one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def run(self, command: list[Any], limit: float, log: str, watch: bool = False, stdout_only: bool = False) -> Done:
        """Runs `command` in the root folder for at most `limit` seconds; all it prints goes to the file `log` of the output folder.

        `watch`: nvidia-smi looks at clocks, power and temperature every second meanwhile.
        """
        words = [str(word) for word in command]
        told = [word.replace(f"{self.root}/", "") for word in words]  # as it can be repeated from the root folder
        if self.dry:
            print(f"    [{limit:5.0f} s] {shlex.join(told)}")
            return Done(told, 0, 0.0)
        left = self.left()
        limit = limit if left is None else min(limit, max(1.0, left))
        path = self.unused(log)
        watcher = self.start_watcher(path) if watch else None
        began = time.monotonic()
        code: int | None = None
        why = ""
        with path.open("wb") as sink:
            errors = path.with_suffix(".stderr").open("wb") if stdout_only else None
            try:
                child = subprocess.Popen(words, cwd=self.root, stdin=subprocess.DEVNULL, stdout=sink, stderr=errors or subprocess.STDOUT,
                                         start_new_session=True)
            except OSError as error:
                why = f"cannot start {words[0]}: {error.strerror}"
            else:
                try:
                    code = child.wait(timeout=limit)
                except subprocess.TimeoutExpired:
                    why = f"longer than its limit of {limit:.0f} s"
                finally:
                    if child.poll() is None:  # out of time, or interrupted
                        stop(child)
            finally:
                watched = finish_watcher(watcher)
                if errors:
                    errors.close()
        seconds = time.monotonic() - began
        if code:
            why = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        output = path.read_text(errors="replace")
        return Done(told, code, seconds, output, why, watched)

    def unused(self, log: str) -> Path:
        """The path of a log that no earlier command of this run has written."""
        name, number = log, 2
        while name in self.used:
            name, number = f"{Path(log).stem}-{number}{Path(log).suffix}", number + 1
        self.used.add(name)
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        return self.out / "logs" / name

    def start_watcher(self, log: Path) -> tuple[subprocess.Popen[bytes], Path] | None:
        """nvidia-smi, asked every second."""
        if not shutil.which("nvidia-smi"):
            return None
        path = log.with_suffix(".smi.csv")
        with path.open("wb") as sink:
            command = ["nvidia-smi", "-i", gpu_id(), f"--query-gpu={','.join(WATCHED)}", "--format=csv,noheader,nounits", "-lms", "1000"]
            try:
                return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.DEVNULL), path
            except OSError:
                return None


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads a session, and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def finish_watcher(watcher: tuple[subprocess.Popen[bytes], Path] | None) -> dict[str, Any] | None:
    """Least, median and largest of what was seen."""
    if watcher is None:
        return None
    process, path = watcher
    process.terminate()
    process.wait()
    return summarize_watch(path.read_text(errors="replace"))


def summarize_watch(text: str) -> dict[str, Any] | None:
    """Of lines of nvidia-smi, one number for each of WATCHED."""
    columns: dict[str, list[float]] = {name: [] for name in WATCHED}
    for line in text.splitlines():
        for name, word in zip(WATCHED, line.split(",")):
            try:
                columns[name].append(float(int(word, 16)) if "throttle" in name else float(word))
            except ValueError:
                continue
    reasons = columns.pop("clocks_throttle_reasons.active")
    seen: dict[str, Any] = {name: {"min": min(values), "median": statistics.median(values), "max": max(values)}
                            for name, values in columns.items() if values}
    if reasons:
        seen["throttled"] = sorted({text for bits in reasons for bit, text in THROTTLED.items() if int(bits) & bit})
    return seen or None


def ask(command: list[str], cwd: Path | None = None) -> str | None:
    """What a short command prints; None if it does not work."""
    try:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def gpu_id() -> str:
    """The GPU that a CUDA program calls device 0, for nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return visible or "0"


def gpu_state() -> dict[str, str | None] | None:
    """What nvidia-smi tells of the GPU now, by field; None where there is no nvidia-smi or it finds no GPU."""

    def query(fields: tuple[str, ...]) -> list[str] | None:
        text = ask(["nvidia-smi", "-i", gpu_id(), f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        words = [word.strip() for word in (text or "").split("\n")[0].split(",")]
        return words if len(words) == len(fields) and words[0] else None

    values = query(FIELDS)
    if values is None:  # a driver that does not know one of them refuses all
        if query(("name",)) is None:
            return None
        values = [(query((name,)) or [""])[0] for name in FIELDS]
    state = {name: value or None for name, value in zip(FIELDS, values)}
    if state["uuid"]:  # enough to tell cards apart
        state["uuid"] = "sha256:" + hashlib.sha256(state["uuid"].encode()).hexdigest()[:16]
    return state


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit, and whether anything differs from it."""
    commit = ask(["git", "rev-parse", "HEAD"], root)
    if commit is None:
        return None
    status = ask(["git", "status", "--porcelain", "--untracked-files=no"], root)
    return {"commit": commit, "dirty": bool(status), "branch": ask(["git", "branch", "--show-current"], root)}


def machine_facts(engine: Path | None) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    cpu = next((line.split(":", 1)[1].strip() for line in (ask(["cat", "/proc/cpuinfo"]) or "").splitlines()
                if line.startswith("model name")), None)
    smi = ask(["nvidia-smi"]) or ""
    version = next((line.split("CUDA Version:")[1].split("|")[0].strip() for line in smi.splitlines() if "CUDA Version:" in line), None)
    return {
        "gpu": gpu_state(),
        "driver_cuda_version": version,
        "nvcc": (ask(["nvcc", "--version"]) or "").splitlines()[-1:] or None,
        "processes_on_gpu": (ask(["nvidia-smi", "-i", gpu_id(), "--query-compute-apps=name,used_memory", "--format=csv,noheader"]) or "")
        .splitlines(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "doctor": (ask([str(engine), "doctor"]) or "").splitlines() if engine else [],
    }
