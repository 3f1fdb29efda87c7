"""Tests of the GPU script on a machine without a GPU: its plan, its readers of what tools print, its way with commands.

    python3 benches/gpu_test.py
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

import gpu_standin
import gpu_table
from gpu_analyse import below, conv_table, gpu_of_card, plan_against, plan_text, rates, shares
from gpu_base import calls, choose, only_text, write_json
from gpu_machine import Runner, summarize_watch
from gpu_pack import SCRIPTS, Unusable, restore_paths, sort_artifacts
from gpu_parse import (check_rows, count_tests, curve_rows, kernel_launches, kernel_sums, kernels_of_ncu, last_losses, launch_gaps,
                       sanitizer_errors)
from gpu_suite import STEPS
from gpu_train import beside
from torch_conv import Product, work_of
from torch_cuda import compare, judged, read_settings

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
        self.assertIsNone(launch_gaps("no such table\n"))
        self.assertEqual(curve_rows(""), [])
        self.assertEqual(read_settings(""), {})
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

    def test_gaps_between_kernels(self) -> None:
        text = NSYS_TRACE.replace("300,24000", "22900,24000").replace("400,90000", "9000000,90000")
        self.assertEqual(launch_gaps(text), {"count": 1, "median_ns": 700.0, "p20_ns": 700.0, "p80_ns": 700.0})

    def test_settings(self) -> None:
        text = '# a file\n\nfamily = "unet2d"   # of a, b\nlr = 2e-4 # c\nwidths = [32, 64] # d\nflip = true\n[unet] # options\na = "none # e"\n'
        self.assertEqual(read_settings(text), {"family": "unet2d", "lr": 2e-4, "widths": [32, 64], "flip": True, "unet": {"a": "none # e"}})

    def test_validations(self) -> None:
        text = '{"split": "train", "step": 5, "noise_loss": 1}\n{"split": "valid", "step": 5, "noise_loss": 0.5, "image_loss": 1}\n'
        self.assertEqual([(row["step"], row["noise_loss"], row["seconds"]) for row in curve_rows(text)], [(5, 0.5, None)])
        self.assertEqual(last_losses(text)["valid"]["noise_loss"], 0.5)

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
        watched = summarize_watch("1755, 7, [N/A], 50, 0x0000000000000024, 1234\n")
        self.assertEqual((watched["throttled"], watched["memory.used"]["max"]), (["power cap", "software thermal"], 1234.0))

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

    def test_what_stands_in_for_a_run(self) -> None:
        done = subprocess.run([HERE / "gpu.sh", "--dry-run", "--quick", "--out", self.path / "none"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        for name, step in STEPS.items():
            for part in step.parts:
                self.assertIn(f"== {name}{':' if part else ''}{part} (", done.stdout)
        self.assertIn("judgement, nothing was measured yet", done.stdout)
        for line in re.findall(r"about +(\d+) s  benches/gpu.sh", done.stdout):
            self.assertLessEqual(int(line), 600)
        self.assertFalse((self.path / "none").exists())
        done = subprocess.run([HERE / "gpu.sh", "--dry-run", "--only", "torch:x"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("torch:graph-bf16", done.stderr)


class Parts(unittest.TestCase):
    """Steps, their parts, and how they divide."""

    def test_chosen_parts(self) -> None:
        self.assertEqual(choose(STEPS, "check:bf16,facts"), [("facts", ""), ("check", "bf16")])
        self.assertEqual(len(choose(STEPS, None)), sum(len(step.parts) for step in STEPS.values()))
        self.assertEqual(only_text(STEPS, choose(STEPS, "check,torch:outputs")), "check,torch:outputs")
        for wrong in ("nothing", "check:fp64", "facts:x"):
            self.assertRaises(ValueError, choose, STEPS, wrong)

    def test_every_part_fits_into_a_call(self) -> None:
        for quick in (False, True):
            found = calls(STEPS, choose(STEPS, None), quick, 570)
            self.assertTrue(all(seconds <= 570 for _, seconds in found), found)
            wanted = [unit for unit in choose(STEPS, None) if STEPS[unit[0]].seconds(unit[1], quick) is not None]
            self.assertEqual([unit for units, _ in found for unit in units], wanted)

    def test_a_pack_has_every_script(self) -> None:
        for name in SCRIPTS:
            self.assertTrue((HERE / name).exists(), name)
            for module in re.findall(r"^ *(?:from|import) ((?:gpu|peer|torch)_\w+)", (HERE / name).read_text() if name.endswith(".py") else "", re.M):
                if name not in ("torch_peer.py", "peer_engine.py"):  # these import the CPU's suite where it is asked for
                    self.assertIn(f"{module}.py", SCRIPTS, f"{name} imports {module}")


class Analyses(unittest.TestCase):
    """What figures say together."""

    def test_cards(self) -> None:
        for card, gpu in (("NVIDIA H200", "h200"), ("NVIDIA H200 NVL", None), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", None),
                          ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100-SXM4-40GB", None), ("NVIDIA GeForce RTX 4090", "rtx4090"),
                          ("NVIDIA GeForce RTX 4090 Laptop GPU", None), (None, None)):
            self.assertEqual(gpu_of_card(card), gpu, card)

    def test_a_plan_beside_a_profile(self) -> None:
        def launches(blocks: int, count: int, nanoseconds: float) -> dict[str, Any]:
            return {"kernel": "conv_fwd_m64n32_bf16", "grid": [blocks, 1, 1], "block": [256, 1, 1], "launches": count, "total_ns": nanoseconds}

        kernels = {"steps": 10, "launches": [launches(128, 20, 5e5), launches(64, 10, 4e5), {**launches(1, 1, 1e3), "kernel": "init"}]}
        found = plan_against(gpu_standin.PLAN, kernels)
        by_part = {row["part"]: row for row in found["kernels"]}
        self.assertAlmostEqual(by_part["conv forward"]["measured_seconds"], 5e-5)
        self.assertAlmostEqual(by_part["conv forward"]["ratio"], 1.25)
        self.assertAlmostEqual(by_part["conv dgrad"]["measured_seconds"], 4e-5)
        self.assertIsNone(by_part["copy, fill"]["measured_seconds"])
        self.assertEqual([row["kernel"] for row in found["not_planned"]], ["init"])
        # What the engine says of all its launches is what the rows add up to.
        for name, value in gpu_standin.PLAN["sum"].items():
            self.assertAlmostEqual(found["sum"][name], value)
        self.assertIn("conv dgrad", plan_text(found))
        by_name = plan_against(gpu_standin.PLAN, {"steps": 1, "kernels": [{"kernel": "conv_fwd_m64n32_bf16", "launches": 3, "total_ns": 9e4}]})
        self.assertEqual(by_name["matched_by"], "kernel")
        self.assertAlmostEqual({row["part"]: row for row in by_name["kernels"]}["conv dgrad"]["measured_seconds"], 3e-5)
        nothing = plan_against(gpu_standin.PLAN, None)
        self.assertIsNone(nothing["sum"]["measured_seconds"])
        self.assertTrue(all(row["ratio"] is None for row in nothing["kernels"]))
        self.assertEqual(plan_against({}, None)["kernels"], [])

    def test_rooflines(self) -> None:
        engine = {"flops": 1e15, "copy_bytes_per_second": 4e12, "source": "published"}
        self.assertEqual(rates(engine, None)["flops"], 1e15)
        torch = {"gemm": {"bf16": {"extent": 8192, "flops_per_second": 5e14}}, "copies": [{"bytes": 32 << 20, "bytes_per_second": 9e12},
                                                                                         {"bytes": 4 << 30, "bytes_per_second": 4.4e12}]}
        card = rates(engine, torch)
        self.assertEqual((card["flops"], card["bytes_per_second"]), (5e14, 4.4e12))
        rows = shares(gpu_standin.ROWS, card)
        self.assertAlmostEqual(rows[0]["share"], 1.0)
        self.assertEqual(rows[0]["share_bound"], "compute")
        self.assertIsNone(shares(gpu_standin.ROWS, rates({}, None))[0]["share"])
        cudnn = [{**{name: gpu_standin.CONV[name] for name in ("operation", "kind", "shape", "options")}, "cudnn_seconds": 3e-5, "calls": ["a"]}]
        table = conv_table(rows, cudnn)
        self.assertEqual([row["part"] for row in table], ["conv forward", "conv wgrad"])
        self.assertAlmostEqual(table[0]["ratio"], 1.5)
        self.assertIsNone(table[1]["ratio"])
        self.assertEqual([row["part"] for row in below(table, 1.2)], ["conv forward"])

    def test_what_cudnn_is_asked(self) -> None:
        work = work_of(gpu_standin.CONV)
        assert work is not None
        self.assertEqual(work.directions, ("fprop",))
        self.assertEqual(work.products, (Product(64, 64, 64, 64, 32, 3), Product(64, 64, 64, 64, 32, 1)))
        self.assertEqual(work.leaves_out, ("norm of the input", "SiLU of the input", "sums for the next norm",
                                           "inputs side by side, not in one tensor", "1x1 residual in the same sum"))
        # Of a dgrad the row has dy's channels first: dx has 64, dy 32.
        turned = work_of({"operation": "conv", "kind": "conv dgrad", "shape": "2x8x8 32>64 3x3", "options": "dgrad+silu'"})
        assert turned is not None
        self.assertEqual((turned.directions, turned.products), (("dgrad",), (Product(2, 8, 8, 64, 32, 3),)))
        halved = work_of({"operation": "resample_conv_backward", "kind": "conv dgrad", "shape": "2x8x8 32>64 3x3", "options": "keep 1+add"})
        assert halved is not None
        self.assertEqual((halved.directions, halved.products), (("dgrad", "wgrad"), (Product(2, 8, 8, 32, 64, 3, 2),)))
        self.assertEqual(halved.calls(), ["dgrad 2x8x8 32>64 3x3/2", "wgrad 2x8x8 32>64 3x3/2"])
        self.assertIsNone(work_of(gpu_standin.ROWS[2]))
        self.assertIsNone(work_of({**gpu_standin.CONV, "shape": "something new"}))

    def test_runs_in_turn(self) -> None:
        def run(seconds: float, **more: Any) -> dict[str, Any]:
            return {"seconds_median": seconds, **more}

        rounds = {"graph-bf16": [(run(3.0, peak_gpu_mib=9.0, outputs_differ=False), run(1.0, arena_peak_mib=5.0), run(2.0)),
                                 (run(3.0, peak_gpu_mib=8.0, outputs_differ=True), run(1.0), run(1.0))]}
        (row,) = compare(rounds)
        self.assertEqual(row["ratios"], [2.0, 3.0])
        self.assertEqual((row["ratio_of_medians"], row["torch_peak_mib"], row["engine_peak_mib"], row["outputs_differ"]), (2.5, 9.0, 5.0, True))

    def test_outputs(self) -> None:
        good = "a.safetensors\n  sample.images  1.0e-5  2.0e-5  5e-4\n"
        self.assertEqual(judged(good, "", 0)["largest_relative_error"], 2e-5)
        self.assertTrue(judged(good, "", 0)["passed"])
        self.assertFalse(judged(good.replace("2.0e-5", "NaN"), "", 1)["passed"])
        self.assertIn("no such file", judged("", "no such file", 2)["why"])

    def test_curves(self) -> None:
        theirs = [{"step": 5, "noise_loss": 0.2, "noise_loss_error": 0.004, "image_loss": 0.4, "image_loss_error": 0.01}]
        for loss, within in ((0.205, True), (0.22, False)):
            (row,) = beside(theirs, [{"step": 5, "noise_loss": loss, "image_loss": 0.4}, {"step": 6}])
            self.assertEqual(row["within"], within)
        self.assertEqual(beside(theirs, [{"step": 6}]), [])


class Whole(unittest.TestCase):
    """The whole script, with stand-ins for a GPU's tools."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name)
        (self.path / "bin").mkdir()
        (self.path / "tests/fixtures/reference").mkdir(parents=True)
        (self.path / "tests/fixtures/reference/a.safetensors").write_bytes(b"x")
        (self.path / "flowers.tar").write_bytes(b"x")
        (self.path / "weights").write_bytes(b"x")
        gpu_standin.make(self.path, ["ddim-engine", "python-with-torch"])
        gpu_standin.make(self.path / "bin", ["nvidia-smi", "nsys", "compute-sanitizer"])
        for name in ("gpu_conv", "ops_adam"):
            program = self.path / "test-programs" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text("#!/bin/sh\necho 'test result: ok. 3 passed; 0 failed; 0 ignored'\n")
            program.chmod(0o755)

    def run_script(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs gpu.sh on the stand-ins."""
        path = {"PATH": f"{self.path / 'bin'}:{os.environ['PATH']}"}
        command = [HERE / "gpu.sh", "--bin", self.path, "--out", self.path / "out", "--python", self.path / "python-with-torch", *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **path, **environment})

    def summary(self) -> dict[str, Any]:
        """What it wrote."""
        return json.loads((self.path / "out/summary.json").read_text())

    def test_a_run_and_its_table(self) -> None:
        done = self.run_script("--quick", "--data", str(self.path / "flowers.tar"), "--inception", str(self.path / "weights"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        rows = {(row["step"], row["part"]): row for row in self.summary()["steps"]}
        self.assertEqual(len(rows), sum(len(step.parts) for step in STEPS.values()))
        for (name, part), row in rows.items():
            left_out = STEPS[name].seconds(part, True) is None
            self.assertEqual(row["status"], "skipped" if left_out else "passed", row)
        self.assertIn("KID 0.0123, FID 45.6", rows["train", "run"]["text"])
        self.assertIn("1000 ns between two", rows["kernels", "bf16"]["text"])
        self.assertIn("within two standard errors", rows["train", "torch"]["text"])
        plan = json.loads((self.path / "out/plan.json").read_text())["seed"]
        self.assertEqual(plan["gpu"], "h200")
        self.assertAlmostEqual({row["part"]: row for row in plan["against"]["kernels"]}["conv forward"]["ratio"], 1.25)
        record = json.loads((self.path / "out/step.json").read_text())["bf16"]
        self.assertTrue(record["command"].endswith("--json " + str(self.path / "out/logs/step-seed-bf16.json")), record["command"])

        table = gpu_table.markdown(*gpu_table.load(self.path / "out"))
        self.assertIn("| training step, `seed`, bf16, 64 images of 64x64 | at most 1.5 ms | **1.4 ms** | yes |", table)
        self.assertIn("`seed`: compiled PyTorch with CUDA graphs over the engine | at least 1.5 | **1.60** | yes", table)
        self.assertIn("`unet2d-64`: compiled PyTorch with CUDA graphs over the engine | at least 1.2 | **1.60** | yes", table)
        self.assertIn("| 64 pictures of `seed` in 20 steps, bf16 | at most 10 ms | **9 ms** | yes |", table)
        # A shorter run than asked for is no figure for the aim.
        self.assertIn("| 25,600 steps of `seed` on flowers, validations and pictures between them | at most 45 s | not run on a GPU |  |", table)
        self.assertIn("| two training runs | the same bytes | the same bytes in fp32, tf32, bf16 | yes |", table)
        self.assertIn("memcheck, racecheck: 8 runs, no errors | yes", table)
        self.assertIn("about graph-bf16 | 2.240 | 1.400 (bf16) | **1.60** (1.50 to 1.70) | 900 | 300 |", table)
        self.assertIn("NVIDIA H200, driver 580.1, --quick;", table)
        self.assertIn("by everything: 1234 MiB", table)
        self.assertNotIn("Not run on a GPU", table)

    def test_parts_join_and_failures_stay_alone(self) -> None:
        done = self.run_script("--only", "times:bf16,check:fp32")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        done = self.run_script("--only", "times:fp32,ceilings:torch", GPU_STANDIN_FAILS="python-with-torch")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("does not start: python-with-torch: fails, as asked", done.stdout)
        rows = [(row["step"], row["part"], row["status"]) for row in self.summary()["steps"]]
        self.assertEqual(rows, [("ceilings", "torch", "skipped"), ("check", "fp32", "passed"), ("times", "fp32", "passed"),
                                ("times", "bf16", "passed")])
        self.assertEqual(set(json.loads((self.path / "out/step.json").read_text())), {"bf16", "fp32"})
        self.assertEqual(len(self.summary()["commands"]), 2)
        done = self.run_script("--only", "kernels:bf16,facts", "--budget", "20", GPU_STANDIN_FAILS="nsys")
        self.assertIn("left for another call", done.stdout)
        done = self.run_script("--only", "sanitizer:memcheck", GPU_STANDIN_FAILS="compute-sanitizer")
        self.assertEqual(done.returncode, 1)
        self.assertIn("| compute-sanitizer | clean | wrong: memcheck of check in fp32", gpu_table.markdown(*gpu_table.load(self.path / "out")))
        # The same folder, another commit or card: what is there is of something else.
        (self.path / "pack.json").write_text(json.dumps({"git": {"commit": "other"}, "repository": str(self.path), "temporary": str(self.path)}))
        self.run_script("--only", "times:tf32")
        self.assertEqual(set(json.loads((self.path / "out/step.json").read_text())), {"tf32"})
        self.assertEqual(len(self.summary()["steps"]), 1)

    def test_without_a_gpu_there_is_the_plan(self) -> None:
        (self.path / "ddim-engine").write_text((self.path / "ddim-engine").read_text().replace("#!/bin/sh\n", "#!/bin/sh\n[ \"$1\" = doctor ] && exit 0\n"))
        done = self.run_script("--only", "times")
        self.assertEqual((done.returncode, "no usable GPU" in done.stderr), (2, True))
        done = self.run_script("--only", "plan")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        table = gpu_table.markdown(*gpu_table.load(self.path / "out"))
        self.assertIn("**Not run on a GPU.**", table)
        self.assertIn("| at most 1.5 ms | not run on a GPU |  | 0.07 ms |", table)


class Tables(unittest.TestCase):
    """README's table."""

    def test_of_nothing(self) -> None:
        table = gpu_table.markdown(None, {})
        self.assertIn("**Not run on a GPU.**", table)
        for word in ("at most 1.5 ms", "at least 1.5", "at least 1.2", "at most 10 ms", "at most 45 s", "60% or listed below", "clean"):
            self.assertIn(word, table)
        self.assertNotIn("**no**", table)
        self.assertRaises(ValueError, gpu_table.load, HERE)

    def test_aims_that_are_missed(self) -> None:
        low = {"part": "conv wgrad", "shape": "a", "options": "", "share": 0.4, "bound": "memory", "seconds": 1e-5, "cudnn_seconds": 2e-5}
        differs = {"variant": "graph-bf16", "ratio_of_medians": 9.0, "ratios": [9.0], "outputs_differ": True, "about": "graph", "torch_seconds_median": 1.0,
                   "engine_seconds_median": 1.0, "engine_precision": "bf16"}
        results = {"step.json": {"bf16": {"seconds_per_step_median": 1.7e-3}}, "torch.json": {"graph-bf16": {"comparisons": [differs]}},
                   "roofline.json": {"seed": {"convolutions": [low, {**low, "share": 0.7}, {**low, "share": None}]}},
                   "check.json": {"bf16": {"exit_code": 0, "same_bytes_when_repeated": False}},
                   "train.json": {"run": {"steps": 25600, "data": "x/procedural", "summary": {"seconds": 46}}}}
        table = gpu_table.markdown({"card": "X"}, results)
        self.assertIn("**1.7 ms** | **no**", table)
        self.assertIn("25,600 steps of `seed` on procedural, validations and pictures between them | at most 45 s | **46 s** | **no**", table)
        self.assertIn("1 of 2 at 60% or more | **no**", table)
        self.assertIn("| seed | conv wgrad | a |  | 10.0 | 40% | memory | 20.0 |", table)
        self.assertIn("not in bf16 | **no**", table)
        self.assertIn("outputs differ", table)
        self.assertIn("`seed`: compiled PyTorch with CUDA graphs over the engine | at least 1.5 | not run on a GPU |  |", table)

    def test_markers(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            readme = Path(folder) / "README.md"
            readme.write_text(f"a\n{gpu_table.BEGIN}\nold\n{gpu_table.END}\nb\n")
            gpu_table.write_readme(readme, "new")
            self.assertEqual(readme.read_text(), f"a\n{gpu_table.BEGIN}\nnew\n{gpu_table.END}\nb\n")
            readme.write_text("a\n")
            self.assertRaises(ValueError, gpu_table.write_readme, readme, "new")
        text = (HERE.parent / "README.md").read_text()
        self.assertEqual((text.count(gpu_table.BEGIN), text.count(gpu_table.END)), (1, 1))


if __name__ == "__main__":
    unittest.main()
