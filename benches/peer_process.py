"""Child processes of the peer scripts: started one at a time, timed, with what they and others used of the machine.

Nothing here imports torch: the process that starts the measurements stays small, and so does what its children inherit of its peak.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Shares of the machine from which a run's figures say little: used by others meanwhile, and just before or after.
OTHERS_MEANWHILE = 0.05
BUSY_BESIDE = 0.10
# Environment variable that tells a child when it was started, in seconds since 1970.
LAUNCHED = "PEER_LAUNCHED"


class ChildFailed(RuntimeError):
    """A child did not give a result; the message says what it printed."""


def busy_seconds() -> float | None:
    """Seconds of processor time that all processes have used since the start of the machine; None where unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def busy_share(seconds: float) -> float | None:
    """Looks for so long how much of all processors is in use, as a share; None where unknown."""
    before, start = busy_seconds(), time.monotonic()
    time.sleep(seconds)
    after = busy_seconds()
    if before is None or after is None:
        return None
    return (after - before) / ((os.cpu_count() or 1) * (time.monotonic() - start))


def wait_idle(limit: float) -> None:
    """Returns once the processors have been nearly idle for two seconds, or after `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        share = busy_share(2.0)
        if share is None or share < OTHERS_MEANWHILE:
            return


@contextlib.contextmanager
def held(lock: str | None) -> Iterator[None]:
    """Holds a lock file, where one is named: for machines that are shared by agreement."""
    if not lock:
        yield
        return
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def disturbed(result: dict[str, Any]) -> bool:
    """Whether other processes had so much of the machine that the figures say little."""
    if (meanwhile(result) or 0.0) > OTHERS_MEANWHILE:
        return True
    return any((result.get(key) or 0.0) > BUSY_BESIDE for key in ("busy_before", "busy_after"))


def meanwhile(result: dict[str, Any]) -> float | None:
    """The share of the machine that others used: while it was timed, where the child knows, else in the child's whole life.

    The compiler that PyTorch starts is no part of the child's own time, and ends before the timing.
    """
    return result["others_timed"] if result.get("others_timed") is not None else result.get("others")


def run_child(command: list[str], environment: dict[str, str], *, limit: float | None = None, beside: float = 0.0,
              json_expected: bool = True) -> dict[str, Any]:
    """Runs a command whose last line of output is a JSON object, and returns that object.

    Added to it: `peak_rss_mib`, the largest resident size (VmHWM) as the kernel saw it; `others`, the share of the processors that other
    processes used meanwhile; with `beside` seconds of looking, `busy_before` and `busy_after`, the share in use just before and after;
    `wall_seconds`. After `limit` seconds the child is ended, which is a failure.
    """
    busy_before = busy_share(beside) if beside else None
    busy, start = busy_seconds(), time.monotonic()
    ended: list[bool] = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            launched = environment | {LAUNCHED: repr(time.time())}
            child = subprocess.Popen(command, stdout=out, stderr=err, env=launched, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise ChildFailed(f"cannot start {command[0]}: {error.strerror}") from error

        def end() -> None:
            ended.append(True)
            child.kill()

        timer = threading.Timer(limit, end) if limit else None
        if timer:
            timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        finally:
            if timer:
                timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text, complaint = out.read(), err.read().strip()
    wall = time.monotonic() - start
    busy_end = busy_seconds()
    if ended:
        raise ChildFailed(f"not finished within {limit:.0f} s")
    if child.returncode != 0:
        lines = complaint.splitlines()[-6:] or text.strip().splitlines()[-6:] or ["(no output)"]
        raise ChildFailed(f"`{' '.join(command)[:400]}` exited with {child.returncode}:\n    " + "\n    ".join(lines))
    result = parse_object(text) if json_expected else {}
    if result is None:
        raise ChildFailed(f"`{' '.join(command)[:400]}` printed no JSON object: {text[:200]!r}")
    result["peak_rss_mib"] = usage.ru_maxrss / 1024
    result["wall_seconds"] = wall
    known = busy is not None and busy_end is not None
    capacity = wall * (os.cpu_count() or 1)
    result["others"] = max(0.0, busy_end - busy - usage.ru_utime - usage.ru_stime) / capacity if known else None
    if beside:
        result |= {"busy_before": busy_before, "busy_after": busy_share(beside)}
    return result


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or that stands on its last line; None if neither."""
    lines = text.strip().splitlines()
    for candidate in [text, *lines[-1:]]:
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


# ---- the machine -----------------------------------------------------------------------------------------------------------------


def processor() -> str:
    """The processor's name, as the kernel gives it."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_facts() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, system."""
    facts = cpu_facts()
    flags = facts.get("flags", "").split()
    telling = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "hypervisor")
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        memory = None
    return {"processor": processor(), "family": facts.get("cpu family"), "model": facts.get("model"), "stepping": facts.get("stepping"),
            "flags": [flag for flag in telling if flag in flags], "cores": os.cpu_count(), "memory_gib": memory,
            "system": f"{platform.system()} {platform.machine()}", "libc": " ".join(platform.libc_ver()), "load_average": load_average()}


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes."""
    try:
        return list(os.getloadavg())
    except OSError:
        return None
