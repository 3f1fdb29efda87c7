"""Tests of the GPU script on a machine without a GPU: its plan, its readers of what tools print, its way with commands.

    python3 benches/gpu_test.py
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tempfile
import unittest
from pathlib import Path

from gpu_machine import Runner, summarize_watch
from gpu_pack import Unusable, restore_paths, sort_artifacts
from gpu_parse import check_rows, count_tests, kernel_launches, kernel_sums, kernels_of_ncu, last_losses, sanitizer_errors
from gpu_suite import STEPS, write_json

HERE = Path(__file__).resolve().parent

NSYS_SUMS = """Processing [x.sqlite] with [cuda_gpu_kern_sum.py]...

Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
62.5,1000000,44,22727.3,22000.0,20000,30000,100.0,conv_fwd_bf16
37.5,600000,22,27272.7,27000.0,20000,30000,100.0,"void f<float, (int)4>(g, h)"

"""
NSYS_TRACE = """Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Reg/Trd,Device,Strm,Name
100,2000,1,,,,,,,,GPU (0),7,[CUDA memcpy Host-to-Device]
200,22000,2,64,2,1,256,1,1,128,GPU (0),7,conv_fwd_bf16
300,24000,3,64,2,1,256,1,1,128,GPU (0),7,conv_fwd_bf16
400,90000,4,65,2,1,256,1,1,128,GPU (0),7,conv_fwd_bf16
"""
NCU = """==PROF== Connected to process 1 (/x)
"ID","Process ID","Kernel Name","Grid Size","gpu__time_duration.sum"
"","","","","us"
"0","1","conv_fwd_bf16","(64, 1, 1)","1,012.50"
"1","1","adam_step_f32","(64, 1, 1)","12.50"
==PROF== Disconnected from process 1
"""
CHECK = """tests/fixtures/reference/a.safetensors
  quantity              absolute  relative  tolerance
  expect.signal_rates    0.0e0     0.0e0       5e-4
  grad.unet.conv.weight  1.2e-3    6.0e-4      5e-4  FAILED
  after 3 steps, loss    NaN       NaN         1e-3  FAILED
"""


class Readers(unittest.TestCase):
    """Of texts as the tools print them, and of none."""

    def test_nothing_gives_nothing(self) -> None:
        for read in (check_rows, kernel_sums, kernel_launches, kernels_of_ncu):
            self.assertEqual(read("no such table\n"), [])
            self.assertEqual(read(""), [])
        self.assertIsNone(sanitizer_errors("========= COMPUTE-SANITIZER\n"))
        self.assertIsNone(summarize_watch(""))
        self.assertEqual(last_losses("not json\n"), {})
        self.assertEqual(count_tests("")["tests_passed"], 0)

    def test_profilers(self) -> None:
        sums = kernel_sums(NSYS_SUMS)
        self.assertEqual([(row["kernel"], row["launches"], row["total_ns"]) for row in sums],
                         [("conv_fwd_bf16", 44, 1e6), ("void f<float, (int)4>(g, h)", 22, 6e5)])
        launches = kernel_launches(NSYS_TRACE)
        self.assertEqual([(row["grid"], row["launches"], row["median_ns"]) for row in launches],
                         [([65, 2, 1], 1, 9e4), ([64, 2, 1], 2, 23e3)])
        self.assertEqual([(row["kernel"], row["total_ns"]) for row in kernels_of_ncu(NCU)],
                         [("conv_fwd_bf16", 1012500.0), ("adam_step_f32", 12500.0)])

    def test_check(self) -> None:
        rows = check_rows(CHECK)
        self.assertEqual([(row["quantity"], row["passed"]) for row in rows],
                         [("expect.signal_rates", True), ("grad.unet.conv.weight", False), ("after 3 steps, loss", False)])
        self.assertAlmostEqual(rows[1]["used"], 1.2)

    def test_programs(self) -> None:
        text = "test a::b ... FAILED\ntest result: FAILED. 2 passed; 1 failed; 3 ignored; 0 measured\noperation cases: 5 on cuda\n"
        self.assertEqual(count_tests(text), {"tests_passed": 2, "tests_failed": 1, "tests_ignored": 3, "failures": ["a::b"],
                                             "cases": ["operation cases: 5 on cuda"]})
        self.assertEqual(sanitizer_errors("========= ERROR SUMMARY: 3 errors\n"), 3)
        self.assertEqual(sanitizer_errors("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"), 0)
        self.assertEqual(summarize_watch("1755, 7, [N/A], 50, 0x0000000000000024\n")["throttled"], ["power cap", "software thermal"])

    def test_cargo(self) -> None:
        def artifact(kind: str, name: str, executable: str | None) -> str:
            target = {"kind": [kind], "name": name}
            profile = {"test": kind == "test"}
            return json.dumps({"reason": "compiler-artifact", "target": target, "profile": profile, "executable": executable})

        lines = ["Compiling", artifact("bin", "ddim-engine", "/e"), artifact("test", "zz_operation_cases", "/z"),
                 artifact("test", "ops_adam", "/a"), artifact("test", "cli", "/c"), artifact("lib", "ddim_engine", None)]
        self.assertEqual(sort_artifacts("\n".join(lines)), (Path("/e"), [Path("/a"), Path("/z")]))
        self.assertRaises(Unusable, sort_artifacts, "")


class Commands(unittest.TestCase):
    """Limits, logs, paths, files."""

    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.addCleanup(self.folder.cleanup)

    def test_runner(self) -> None:
        runner = Runner(self.path / "out", self.path, False)
        self.assertEqual(runner.run(["sh", "-c", "echo out; echo err >&2"], 10, "a.log").output, "out\nerr\n")
        self.assertEqual(runner.run(["sh", "-c", "echo out; echo err >&2; exit 3"], 10, "a.log", stdout_only=True).output, "out\n")
        slow = runner.run(["sh", "-c", "sleep 600 & sleep 600"], 0.2, "a.log")
        self.assertIsNone(slow.code)
        self.assertLess(slow.seconds, 9)
        self.assertIn("No such file", runner.run([self.path / "none"], 1, "a.log").why)
        self.assertEqual(len(list((self.path / "out/logs").glob("*.log"))), 4)

    def test_paths_of_a_pack(self) -> None:
        repository, fixtures = self.path / "far/away", self.path / "fixtures"
        fixtures.mkdir()
        about = {"repository": str(repository), "temporary": str(repository / "target/tmp")}
        (self.path / "pack.json").write_text(json.dumps(about))
        with contextlib.redirect_stdout(io.StringIO()), restore_paths(self.path, fixtures):
            self.assertEqual((repository / "tests/fixtures/reference").resolve(), fixtures.resolve())
            (repository / "target/tmp/counts").write_text("x")
        self.assertFalse((self.path / "far").exists())
        self.assertTrue(fixtures.exists())

    def test_json_without_nan(self) -> None:
        write_json(self.path / "x.json", {"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
        self.assertEqual(json.loads((self.path / "x.json").read_text()), {"a": [None, 1.5], "b": {"c": None}})

    def test_plan(self) -> None:
        done = subprocess.run([HERE / "gpu.sh", "--dry-run", "--quick", "--out", self.path / "none"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in STEPS:
            self.assertIn(f"== {name}:", done.stdout)
        self.assertFalse((self.path / "none").exists())


if __name__ == "__main__":
    unittest.main()
