"""The documentation names everything that there is to name, and its links lead somewhere."""

import re
import subprocess
from pathlib import Path

import click
import pytest

from homeserver.__main__ import main
from homeserver.config.load import load_config
from homeserver.services.sync.sync import MAX_TIMEOUT_MS
from tests.docs.module_map import module_map

ROOT = Path(__file__).parents[2]
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
PACKAGES = ("homeserver", "federation", "storage")
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)
MODULE_MAP = ROOT / "docs" / "developers" / "modules.md"
HOW_TOS = frozenset({"add_a_table.md", "add_an_endpoint.md"})
"""They speak of files that the reader is to make."""
_PATH = re.compile(
    r"(?<!/v1/)\b(?:homeserver|federation|storage|tests|scripts|docs)/[\w./{},-]*[\w}/]"
)


def paths_in(text: str) -> set[str]:
    """The files and folders that a page names; `a/{b,c}.py` names two."""
    found: set[str] = set()
    for path in _PATH.findall(text):
        before, brace, rest = path.partition("{")
        inside, _, after = rest.partition("}")
        found.update(
            f"{before}{name.strip()}{after}" for name in inside.split(",")
        ) if brace else found.add(path)
    return found


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
    helped = subprocess.run(
        [script, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith("usage: scripts/" + script.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_map_of_modules_is_up_to_date() -> None:
    assert TEXTS[MODULE_MAP] == module_map(), "run scripts/write_module_map"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    if (
        page.name not in HOW_TOS and page.parent.name != "adr"
    ):  # a decision speaks of the day when it was made
        assert [path for path in sorted(paths_in(TEXTS[page])) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "example", re.findall(r"```yaml\n(.*?)```", TEXTS[ROOT / "docs" / "accounts.md"], re.DOTALL)
)
def test_examples_of_ways_in_are_right(tmp_path: Path, example: str) -> None:
    file = tmp_path / "homeserver.yaml"
    base = "" if "public_baseurl" in example else "public_baseurl: https://example.org/\n"
    file.write_text(f"server_name: example.org\n{base}{example}", encoding="utf-8")
    assert load_config([file], {}).notices == ()


def test_every_metric_is_told() -> None:
    sources = "".join((ROOT / module).read_text(encoding="utf-8") for module in MODULES)
    metrics = set(re.findall(r'"(mahalla_[a-z0-9_]+)"', sources))
    told = "\n".join(TEXTS.values())
    assert metrics
    assert sorted(metric for metric in metrics if metric not in told) == []


def test_proxies_of_the_examples_wait_longer_than_clients() -> None:
    nginx = (ROOT / "docs" / "examples" / "nginx.conf").read_text(encoding="utf-8")
    haproxy = (ROOT / "docs" / "examples" / "haproxy.cfg").read_text(encoding="utf-8")
    waits = [
        *re.findall(r"proxy_read_timeout (\d+)s;", nginx),
        *re.findall(r"timeout server (\d+)s", haproxy),
    ]
    assert [int(seconds) * 1000 > MAX_TIMEOUT_MS for seconds in waits] == [True, True]


def test_decisions_are_numbered() -> None:
    decisions = sorted(path.name for path in (ROOT / "docs" / "adr").iterdir())
    assert [name[:4] for name in decisions] == [
        f"{number:04}" for number in range(1, len(decisions) + 1)
    ]
