"""Tests of the peer suite without torch and without an engine: children, readers, comparisons, tables.

    python3 benches/peer_test.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import peer_table
from peer_engine import check_errors
from peer_process import ChildFailed, disturbed, parse_object, run_child
from peer_suite import JOBS, Variant, command_line, kept_of

CHECK = """r.safetensors
  quantity                                          absolute  relative  tolerance
  expect.eval.pred_noise                              2.3e-5    1.1e-5       5e-4
  all gradients                                       1.2e-5    6.6e-3       2e-3  FAILED
  grad.* (mid_blocks.1.batch_norm1.weight)            9.8e-9    2.6e-3       2e-3  FAILED
  sample.images                                          NaN       NaN       5e-4  FAILED
  only rounding in the gradients of: mid_block.attentions.0.to_k.bias
0 of 1 files pass
"""


def run(who: str, seconds: float, **more: Any) -> dict[str, Any]:
    """A measurement."""
    result = {"who": who, "variant": f"{who}, fp32", "precision": "fp32", "seconds_min": seconds, "seconds_median": 1.5 * seconds,
              "peak_rss_mib": 100.0 * seconds, "threads": 2, "others": 0.0}
    return result | ({"against": "fp32"} if who == "torch" else {}) | more


def whole_result(**more: Any) -> dict[str, Any]:
    """A result of the suite, with one job."""
    job = {"name": "seed-step", "about": "a step", "failures": {"compiled": "no\ncompiler | here"},
           "runs": [run("engine", 1.0), run("torch", 3.0), run("engine", 2.0)]}
    return {"jobs": [job], "machine": {"processor": "CPU", "cores": 2, "flags": ["avx2"], "memory_gib": 24.0, "family": "25", "model": "1"},
            "versions": {"torch": "2", "engine": "ddim-engine 0", "commit": "abc"}, "date": "2026-01-31", "threads": 2, "rounds": 1,
            "command": "python x", "precisions": {"fp32": None, "bf16": "refused."}} | more


class Children(unittest.TestCase):
    """Processes."""

    def test_a_child_gives_its_last_line_and_what_it_used(self) -> None:
        code = "import os; print('words'); print('{\"launched\": %s}' % os.environ['PEER_LAUNCHED'])"
        result = run_child([sys.executable, "-c", code], dict(os.environ), beside=0.01)
        self.assertGreater(result["launched"], 1e9)
        self.assertGreater(result["peak_rss_mib"], 1.0)
        self.assertIn("busy_after", result)

    def test_failures_say_what_happened(self) -> None:
        for code, options, words in (("raise SystemExit('so it is')", {}, "so it is"), ("print(1)", {}, "no JSON object"),
                                     ("import time; time.sleep(60)", {"limit": 0.3}, "not finished within 0 s")):
            with self.assertRaises(ChildFailed) as caught:
                run_child([sys.executable, "-c", code], dict(os.environ), **options)
            self.assertIn(words, str(caught.exception))
        with self.assertRaises(ChildFailed):
            run_child(["/no/such/program"], {})

    def test_a_run_is_disturbed_by_what_others_did_meanwhile_or_beside(self) -> None:
        self.assertFalse(disturbed({"others": 0.02, "busy_before": 0.05, "busy_after": None}))
        self.assertFalse(disturbed({}))
        self.assertTrue(disturbed({"others": 0.06}))
        self.assertFalse(disturbed({"others": 0.30, "others_timed": 0.0}))
        self.assertTrue(disturbed({"others": 0.0, "busy_after": 0.5}))

    def test_environments_of_variants(self) -> None:
        os.environ["MALLOC_MMAP_MAX_"] = "7"
        self.addCleanup(os.environ.pop, "MALLOC_MMAP_MAX_")
        self.assertNotIn("MALLOC_MMAP_MAX_", Variant().environment(2))
        self.assertEqual(Variant(tuned_allocator=True).environment(3)["MALLOC_MMAP_MAX_"], "0")
        self.assertEqual(Variant(frozen=True).environment(3)["TORCHINDUCTOR_FREEZING"], "1")
        for job, variants in JOBS.values():
            self.assertEqual(len({variant.name for variant in variants}), len(variants), job.name)


class Readers(unittest.TestCase):
    """Of texts."""

    def test_json_is_the_text_or_its_last_line(self) -> None:
        self.assertEqual(parse_object('{"a":\n 1}\n'), {"a": 1})
        self.assertEqual(parse_object('told\n{"a": 1}\n'), {"a": 1})
        self.assertIsNone(parse_object("[1]\n"))
        self.assertIsNone(parse_object(""))

    def test_the_engines_check(self) -> None:
        errors, failed = check_errors(CHECK)
        self.assertEqual(len(errors), 4)
        self.assertEqual(errors["expect.eval.pred_noise"], 1.1e-5)
        self.assertEqual(failed, ["all gradients", "sample.images"])  # one parameter alone may be further off; not-a-number may not
        self.assertEqual(check_errors("no table"), ({}, []))

    def test_the_command_has_no_paths_of_a_machine(self) -> None:
        words = ["--engine", "/a/b", "--suite", "--lock", "/c", "--json", "/d", "--rounds", "2"]
        self.assertEqual(command_line(words), "python benches/torch_peer.py --engine target/release/ddim-engine --suite --rounds 2")


class Tables(unittest.TestCase):
    """Comparisons, and how they are shown."""

    def test_neighbours_are_compared(self) -> None:
        rows = peer_table.compare([run("engine", 1.0), run("torch", 3.0), run("engine", 2.0), run("torch", 4.0, variant="b"), run("engine", 2.0)])
        self.assertEqual([(row["variant"], row["ratio"]) for row in rows], [("torch, fp32", 2.0), ("b", 2.0)])
        self.assertEqual(rows[0]["engine_seconds"], 1.0)
        self.assertEqual(rows[0]["engine_peak_mib"], 200.0)
        self.assertEqual(peer_table.compare([run("torch", 1.0)]), [])

    def test_disturbed_rounds_are_left_out_while_there_are_others(self) -> None:
        quiet = [run("engine", 1.0), run("torch", 2.0), run("engine", 1.0)]
        noisy = [run("engine", 1.0), run("torch", 9.0, others=0.5), run("engine", 1.0)]
        (row,) = peer_table.compare(quiet + noisy)
        self.assertEqual((row["used"], row["rounds"], row["ratio"], row["all_disturbed"]), (1, 2, 2.0, False))
        (row,) = peer_table.compare(noisy)
        self.assertEqual((row["used"], row["ratio"], row["all_disturbed"]), (1, 9.0, True))
        self.assertIn("disturbed", peer_table.table_line("a step", row))

    def test_the_same_arithmetic_is_compared(self) -> None:
        runs = [run("engine", 1.0), run("engine", 0.5, precision="bf16"), run("torch", 2.0, against="bf16", precision="bf16"), run("engine", 1.0)]
        self.assertEqual(peer_table.compare(runs)[0]["ratio"], 4.0)
        (row,) = peer_table.compare([run("engine", 1.0), run("torch", 2.0, precision="bf16"), run("engine", 1.0)])
        self.assertIn("1.000 (fp32)", peer_table.table_line("a step", row))

    def test_scaling(self) -> None:
        found = peer_table.scaling([run("engine", 4.0, threads=1), run("engine", 2.0), run("engine", 3.8, threads=1), run("engine", 2.0)])
        assert found is not None
        self.assertAlmostEqual(found["speedup"], 1.95)
        self.assertIsNone(peer_table.scaling([]))
        entry = {"about": "a step", "runs": [run("engine", 4.0, threads=1), run("engine", 2.0)], "ceilings": [{"flops_one_core": 4.0, "flops": 7.0}]}
        note = "One thread to 2 (a step): 4.000 to 2.000 s, **2.00** times in the median of 1 rounds (2.00 to 2.00)."
        self.assertEqual(peer_table.scaling_note({"scaling": entry}), note + " Multiply-adds in registers: 1.75 times (1.75 to 1.75).")
        self.assertEqual(peer_table.scaling_note({"scaling": entry | {"ceilings": []}}), note)

    def test_markdown(self) -> None:
        text = peer_table.markdown(whole_result())
        self.assertIn("| a step | torch, fp32 | 3.000 | 1.000 | **2.00** (one round) | 300 | 200 |", text)
        self.assertIn("|  | compiled | no compiler / here | | | | |", text)
        self.assertIn("bf16: not available here (refused)", text)
        self.assertIn("`python x`", text)
        self.assertNotIn("disturbed", text)
        widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
        self.assertEqual(widths, {8})
        busy = whole_result()
        busy["jobs"][0]["runs"][1]["others"] = 0.5
        self.assertIn("beside other processes", peer_table.markdown(busy))
        first = {"about": "quick", "engine": [{"launch_to_first_step_s": 0.4}], "torch": [{"launch_to_first_step_s": 3.0}]}
        text = peer_table.markdown(whole_result(first_step=first, binary={"binary_mb": 21.0}))
        self.assertIn("0.40 s, PyTorch (eager) 3.00 s. The program: 21.0 MB.", text)

    def test_the_readme_keeps_all_but_the_table(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "README.md"
            file.write_text(f"before\n{peer_table.BEGIN}\nold\n{peer_table.END}\nafter\n")
            peer_table.write_readme(file, "| new |\n")
            self.assertEqual(file.read_text(), f"before\n{peer_table.BEGIN}\n| new |\n{peer_table.END}\nafter\n")
        for text in ("", peer_table.BEGIN, f"{peer_table.END}{peer_table.BEGIN}", f"{peer_table.BEGIN}{peer_table.END}{peer_table.END}"):
            with self.assertRaises(ValueError):
                peer_table.replace_between(text, "x")

    def test_sections_join_an_earlier_result(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "peer.json"
            self.assertEqual(kept_of(file, {"scaling"}), {})
            file.write_text(json.dumps({"jobs": [{"name": "seed-step"}, {"name": "unet2d-step"}], "scaling": {}, "first_step": {}, "date": "",
                                        "command": "a"}))
            self.assertEqual(kept_of(file, {"seed-step", "scaling"}), {"command": "a", "jobs": [{"name": "unet2d-step"}], "first_step": {}})

    def test_this_repositorys_readme_has_the_markers(self) -> None:
        peer_table.replace_between((Path(__file__).resolve().parent.parent / "README.md").read_text(), "x")


if __name__ == "__main__":
    unittest.main()
