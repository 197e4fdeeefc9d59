"""`scripts/bench --list` is readable."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_scenario_has_a_name_and_a_description() -> None:
    path = {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    command = [sys.executable, "-m", "bench_parts.main", "--list"]
    output = subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout
    lines = output.splitlines()
    assert len(lines) > 30
    assert [line for line in lines if not re.match(r"[a-z_0-9]+ {2,}\S", line)] == []
