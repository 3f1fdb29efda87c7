"""Programs for a GPU run: built with cargo, or packed into a folder that goes to a machine without cargo.

    DIR/ddim-engine               DIR/test-programs/gpu_conv ...      DIR/pack.json: commit, and paths built into the programs
    DIR/tests/fixtures/reference  DIR/benches/gpu.sh ...

The test programs know the repository's folder and cargo's folder for temporary files by the paths of the machine that built them.
`restore_paths` makes both where they are missing, for as long as the run takes.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator

from gpu_machine import ask, git_state

PACK_FILE, TEST_PROGRAMS = "pack.json", "test-programs"
# Test programs with cases for GPUs; `zz_operation_cases` counts them and runs last.
WITH_GPU_CASES = re.compile(r"^(gpu_|ops_|zz_operation_cases)")
LIMIT_MIB = 64
SCRIPTS = ("gpu.sh", "gpu_suite.py", "gpu_base.py", "gpu_correct.py", "gpu_speed.py", "gpu_roofline.py", "gpu_train.py", "gpu_analyse.py",
           "gpu_table.py", "gpu_machine.py", "gpu_pack.py", "gpu_parse.py", "torch_peer.py", "torch_cuda.py", "torch_ops.py", "torch_conv.py",
           "torch_ceilings.py", "torch_curve.py", "peer_models.py", "peer_process.py", "peer_child.py", "peer_engine.py", "README.md")


class Unusable(Exception):
    """The run cannot begin; the message says why."""


def build(root: Path) -> tuple[Path, list[Path]]:
    """Builds with cargo: the engine and the test programs with cases for GPUs, in the order in which they run."""
    if not shutil.which("cargo"):
        raise Unusable("cargo was not found: install Rust, or fill a folder with `benches/gpu.sh --pack DIR` elsewhere; then --bin DIR")
    if not (root / "Cargo.toml").exists():
        raise Unusable(f"{root} is no ddim-engine repository: name the folder of programs by --bin")
    print("builds with cargo (minutes the first time)", flush=True)
    if subprocess.run(["cargo", "build", "--release", "--bins"], cwd=root).returncode:
        raise Unusable("cargo build failed")
    command = ["cargo", "test", "--release", "--no-run", "--message-format=json"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Unusable(f"{' '.join(command)} failed")
    return sort_artifacts(done.stdout)


def sort_artifacts(messages: str) -> tuple[Path, list[Path]]:
    """The engine and the test programs of cargo's JSON messages."""
    engine, tests = None, {}
    for line in messages.splitlines():
        if not line.startswith("{"):
            continue
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message.get("executable"):
            continue
        target, path = message["target"], Path(message["executable"])
        if target["kind"] == ["bin"] and not message["profile"]["test"]:
            engine = path
        elif target["kind"] == ["test"] and WITH_GPU_CASES.match(target["name"]):
            tests[target["name"]] = path
    if engine is None or not tests:
        raise Unusable("cargo built no ddim-engine or no test programs")
    return engine, [tests[name] for name in sorted(tests)]


def make_pack(root: Path, folder: Path) -> int:
    """Fills `folder`; 1 if it became too large."""
    engine, tests = build(root)
    doctor = ask([str(engine), "doctor"]) or ""
    kernels = next((line for line in doctor.splitlines() if line.startswith("GPU kernels")), "")
    if not kernels or "none" in kernels:
        raise Unusable(f"this build has no GPU kernels, a pack would be useless: {kernels or 'see ddim-engine doctor'}")
    if folder.exists() and any(folder.iterdir()) and not (folder / PACK_FILE).exists():
        raise Unusable(f"{folder} is not empty and not a pack: name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    for part in (TEST_PROGRAMS, "tests/fixtures/reference", "benches"):
        (folder / part).mkdir(parents=True)
    copy_stripped(engine, folder / "ddim-engine")
    for test in tests:
        copy_stripped(test, folder / TEST_PROGRAMS / re.sub(r"-[0-9a-f]{16}$", "", test.name))
    for file in (root / "tests/fixtures/reference").glob("*.safetensors"):
        shutil.copy2(file, folder / "tests/fixtures/reference")
    for name in SCRIPTS:
        shutil.copy2(root / "benches" / name, folder / "benches")
    # target/release/ddim-engine -> target/tmp, which is CARGO_TARGET_TMPDIR of the tests.
    about = {"git": git_state(root), "kernels": kernels, "repository": str(root.resolve()), "temporary": str(engine.parent.parent / "tmp")}
    (folder / PACK_FILE).write_text(json.dumps(about, indent=1) + "\n")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"{folder}: {total:.1f} MiB, {len(tests)} test programs; copy it to the machine with the GPU and run benches/gpu.sh there")
    if total > LIMIT_MIB:
        print(f"gpu.sh: larger than {LIMIT_MIB} MiB")
        return 1
    return 0


def copy_stripped(source: Path, target: Path) -> None:
    """A copy without debug information, where strip is there to take it out."""
    if shutil.which("strip") and subprocess.run(["strip", "--strip-debug", "-o", target, source]).returncode == 0:
        target.chmod(0o755)
    else:
        shutil.copy2(source, target)


@contextlib.contextmanager
def restore_paths(folder: Path, fixtures: Path) -> Iterator[None]:
    """Where the programs come from a pack: makes the folders that their tests look for, says so, and removes them afterwards."""
    made: list[Path] = []

    def make(path: Path) -> None:
        missing = [path, *(parent for parent in path.parents if not parent.exists())]
        path.mkdir(parents=True)
        made.extend(missing)

    try:
        about: dict[str, Any] = json.loads((folder / PACK_FILE).read_text())
    except (OSError, ValueError):
        about = {}
    try:
        if about:
            temporary, wanted = Path(about["temporary"]), Path(about["repository"]) / "tests/fixtures/reference"
            if not wanted.exists():
                if not wanted.parent.exists():
                    make(wanted.parent)
                wanted.symlink_to(fixtures)
                made.insert(0, wanted)
            if not temporary.exists():
                make(temporary)
            if made:
                print(f"for the tests, which know these paths, and until the end of this run: {wanted}, {temporary}")
    except OSError as error:
        print(f"gpu.sh: some tests will not find their files, which they look for in {about.get('repository')}: {error}")
    try:
        yield
    finally:
        for path in sorted(set(made), key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                if path.is_symlink():
                    path.unlink()
                elif str(path) == about.get("temporary"):
                    shutil.rmtree(path)
                else:
                    path.rmdir()
