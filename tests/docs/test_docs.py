"""The documentation names everything that there is to name, and its links lead somewhere."""

import re
import subprocess
from pathlib import Path

import click
import pytest

from homeserver.__main__ import main

ROOT = Path(__file__).parents[2]
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def commands(group: click.Group, words: tuple[str, ...] = ()) -> list[str]:
    names = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            names.extend(commands(command, (*words, name)))
        else:
            names.append(" ".join((*words, name)))
    return names


@pytest.mark.parametrize("command", commands(main))
def test_every_command_is_told(command: str) -> None:
    assert f"| `{command}" in COMMANDS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.name))
def test_every_script_is_told_and_helps(script: Path) -> None:
    assert f"| `scripts/{script.name}` |" in COMMANDS
    helped = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith("usage: scripts/" + script.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_decisions_are_numbered() -> None:
    decisions = sorted(path.name for path in (ROOT / "docs" / "adr").iterdir())
    assert [name[:4] for name in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
