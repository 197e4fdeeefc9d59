"""Changelog, version, hooks and CI agree with each other; the list of benchmarks is readable."""

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


def test_the_changelog_names_the_version_of_the_package_first() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    unreleased, newest, *_ = re.findall(r"^## \[(.+?)\]", CHANGELOG, re.MULTILINE)
    assert (unreleased, newest) == ("Unreleased", setup["metadata"]["version"])


def test_unreleased_changes_have_the_headings_of_keep_a_changelog() -> None:
    _, unreleased, *_ = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)
    assert set(re.findall(r"^### (.+)$", unreleased, re.MULTILINE)) <= KINDS


def test_the_hooks_run_the_commands_of_the_check_script() -> None:
    check = (ROOT / "scripts" / "check").read_text("utf-8")
    steps = [step for step in re.findall(r"^\s*step (\S.*)$", check, re.MULTILINE)]
    read_only = [step for step in steps if step not in ("ruff check --fix .", "ruff format .")]
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == read_only
    assert {hook["language"] for hook in hooks} == {"system"}


def test_continuous_integration_runs_on_every_supported_debian() -> None:
    job = load(".github/workflows/ci.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["debian"] == ["12", "13"]
    assert job["container"]["image"] == "debian:${{ matrix.debian }}"
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_each_scenario_has_a_name_and_a_description() -> None:
    path = {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    command = [sys.executable, "-m", "bench_parts.main", "--list"]
    output = subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout
    lines = output.splitlines()
    assert len(lines) > 30
    assert [line for line in lines if not re.match(r"[a-z_0-9]+ {2,}\S", line)] == []
