"""The campaign of faults: its table, and what it refuses. Whole trials take minutes; docs/reliability.md has them."""

import json
import subprocess
import sys
from pathlib import Path

from scripts.faults.__main__ import table
from scripts.faults.ending import Ending

ROOT = Path(__file__).parents[1]


def _row(verdict, problems=()):
    return {
        "system": "pat",
        "campaign": "moments",
        "trial": "SIGKILL after 0.500 of the time",
        "verdict": verdict,
        "problems": list(problems),
    }


def test_table_counts_verdicts_and_names_what_was_lost():
    text = table([_row("survived"), _row("survived"), _row("lost", ["report/results.md differs"])])
    counts, reasons = text.split("\n\n")
    assert [cell.strip() for cell in counts.splitlines()[-1].strip("|").split("|")] == [
        "moments",
        "pat",
        "3",
        "2",
        "0",
        "0",
        "1",
    ]
    assert reasons == "- pat, SIGKILL after 0.500 of the time: report/results.md differs"


def test_endings_differ_by_parts_and_files():
    expected = Ending({"metrics.jsonl line 1": {"loss": 1.0}, "checkpoints last": 40}, {"config.json", "a"})
    found = Ending({"metrics.jsonl line 1": {"loss": 2.0}, "checkpoints last": 40}, {"a", ".a.tmp"})
    assert found.differences(expected) == [
        "metrics.jsonl line 1 differs",
        "left: .a.tmp",
        "missing: config.json",
    ]
    assert found.differences(expected, same_numbers=False) == ["left: .a.tmp", "missing: config.json"]
    assert expected.differences(expected) == []


def test_trials_are_not_compared_with_a_run_of_other_code(tmp_path):
    stored = tmp_path / "pat" / "undisturbed" / "undisturbed.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(
        json.dumps({"code": "of yesterday", "parts": {}, "paths": [], "seconds": 1, "events": []})
    )
    command = [sys.executable, "-m", "scripts.faults", "moments", "--system=pat", f"--workdir={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: {stored}: ")
    assert "another --workdir" in ended.stderr
    assert not (tmp_path / "trials.jsonl").exists()
