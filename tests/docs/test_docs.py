"""The documentation is complete, its links and examples work, and operators' pages name no source
files."""

import re
import subprocess
from pathlib import Path
from textwrap import dedent

import click
import pytest

from homeserver.__main__ import main
from homeserver.config.load import load_config
from homeserver.services.sync.sync import MAX_TIMEOUT_MS
from tests.docs.module_map import module_map

ROOT = Path(__file__).parents[2]
OPERATORS = ROOT / "docs" / "operators"
DEVELOPERS = ROOT / "docs" / "developers"
DECISIONS = ROOT / "docs" / "adr"
COMMANDS = (OPERATORS / "commands.md").read_text(encoding="utf-8")
SCRIPT_PAGE = (DEVELOPERS / "scripts.md").read_text(encoding="utf-8")
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
MODULE_MAP = DEVELOPERS / "modules.md"
TO_BE_WRITTEN = re.compile("nickname|NNNN_")
"""Part of the names of files that the how-tos let the reader create."""
COOKIES = frozenset({"mahalla_session", "mahalla_visitor", "mahalla_upstream"})
"""Names in the sources that only look like metrics."""
NAMED_FILES = {
    "irc-registration.yaml": (
        "{id: irc, as_token: 0123456789abcdef, hs_token: b, sender_localpart: irc, namespaces: {}}"
    ),
}
"""Files that examples name, which must exist."""
_PATH = re.compile(
    r"(?<!/v1/)(?<!_matrix/)\b(?:homeserver|federation|storage|tests|scripts|docs)/[\w./{},-]*[\w}/]"
)


def paths_in(text: str) -> set[str]:
    """Return the files and folders that a page names. `a/{b,c}.py` names two."""
    found: set[str] = set()
    for path in _PATH.findall(text):
        before, brace, rest = path.partition("{")
        inside, _, after = rest.partition("}")
        found.update(
            f"{before}{name.strip()}{after}" for name in inside.split(",")
        ) if brace else found.add(path)
    return found


OPERATOR_PAGES = [page for page in PAGES if page.parent == OPERATORS]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors_in(text: str) -> set[str]:
    """Return the anchors of a page's headings, as code hosts generate them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(group: click.Group, words: tuple[str, ...] = ()) -> list[str]:
    names = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            names.extend(commands(command, (*words, name)))
        else:
            names.append(" ".join((*words, name)))
    return names


@pytest.mark.parametrize("command", commands(main))
def test_every_command_is_documented(command: str) -> None:
    assert f"| `mahalla {command}" in COMMANDS


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=page_name)
def test_commands_of_operators_pages_exist(page: Path) -> None:
    known = commands(main)
    for block in re.findall(r"```sh\n(.*?)```", TEXTS[page], re.DOTALL):
        for line in re.findall(r"^ *(?:\(cd \S+ && )?mahalla (.*)$", block, re.MULTILINE):
            assert any(line.startswith(command) for command in known), line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.name))
def test_every_script_is_documented_and_has_help(script: Path) -> None:
    assert f"| `scripts/{script.name}` |" in SCRIPT_PAGE
    helped = subprocess.run(
        [script, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith("usage: scripts/" + script.name)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_have_targets(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", TEXTS[page]):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_in(TEXTS[file.resolve()]), f"{target}#{anchor}"


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=page_name)
def test_operators_pages_name_no_source_files(page: Path) -> None:
    assert re.findall(r"\b(?:homeserver|federation|storage|tests)/[\w/]+\.\w+", TEXTS[page]) == []


@pytest.mark.parametrize("folder", [OPERATORS, DEVELOPERS, DECISIONS], ids=page_name)
def test_the_index_of_a_folder_lists_every_page(folder: Path) -> None:
    index = TEXTS[folder / "README.md"]
    pages = sorted(page.name for page in folder.glob("*.md") if page.name != "README.md")
    assert [name for name in pages if index.count(f"]({name})") == 0] == []


def test_the_page_of_the_project_leads_to_both_halves() -> None:
    assert "](docs/operators/README.md)" in TEXTS[ROOT / "README.md"]
    assert "](docs/developers/README.md)" in TEXTS[ROOT / "README.md"]


def test_the_module_map_is_current() -> None:
    assert TEXTS[MODULE_MAP] == module_map(), "run scripts/write_module_map"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    # an ADR describes the code of its date
    if page.parent != DECISIONS:
        named = {path for path in paths_in(TEXTS[page]) if not TO_BE_WRITTEN.search(path)}
        assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(dedent(example), id=f"{page.name}-{number}")
        for page in OPERATOR_PAGES
        if page.name != "configuration.md"  # parts of files; see test_sample.py
        for number, example in enumerate(
            re.findall(r"^ *```yaml\n(.*?)```", TEXTS[page], re.DOTALL | re.MULTILINE)
        )
        if not example.startswith("    ")  # a part of an option in the previous example
    ],
)
def test_configuration_examples_are_valid(tmp_path: Path, example: str) -> None:
    """A complete example is a valid configuration, and all of its options have an effect."""
    for name in re.findall(r"_path: ([\w.-]+)$", example, re.MULTILINE):
        (tmp_path / name).write_text("a secret of some length", encoding="utf-8")
    for name in NAMED_FILES:
        (tmp_path / name).write_text(NAMED_FILES[name], encoding="utf-8")
    file = tmp_path / "homeserver.yaml"
    base = "" if "public_baseurl" in example else "public_baseurl: https://example.org/\n"
    file.write_text(f"server_name: example.org\n{base}{example}", encoding="utf-8")
    notices = [str(notice) for notice in load_config([file], {}).notices]
    assert all("is partly implemented" in notice for notice in notices), notices


def test_every_metric_is_documented() -> None:
    sources = "".join((ROOT / module).read_text(encoding="utf-8") for module in MODULES)
    metrics = set(re.findall(r'"(mahalla_[a-z0-9_]+)"', sources))
    page = TEXTS[OPERATORS / "metrics.md"]
    assert metrics
    assert sorted(metric for metric in metrics - COOKIES if metric not in page) == []


def test_example_proxies_have_longer_timeouts_than_long_polls() -> None:
    nginx = (ROOT / "docs" / "examples" / "nginx.conf").read_text(encoding="utf-8")
    haproxy = (ROOT / "docs" / "examples" / "haproxy.cfg").read_text(encoding="utf-8")
    waits = [
        *re.findall(r"proxy_read_timeout (\d+)s;", nginx),
        *re.findall(r"timeout server (\d+)s", haproxy),
    ]
    assert [int(seconds) * 1000 > MAX_TIMEOUT_MS for seconds in waits] == [True, True]


RECORDS = sorted(page for page in DECISIONS.iterdir() if page.name != "README.md")


def test_decisions_are_numbered() -> None:
    assert [page.name[:4] for page in RECORDS] == [
        f"{number:04}" for number in range(1, len(RECORDS) + 1)
    ]


@pytest.mark.parametrize("page", RECORDS, ids=page_name)
def test_a_decision_has_one_form_and_fits_one_page(page: Path) -> None:
    title, *lines = TEXTS[page].splitlines()
    assert title.startswith(f"# {int(page.name[:4])}. ")
    assert [line for line in lines if line.startswith("#")] == [
        "## Status",
        "## Context",
        "## Decision",
        "## Consequences",
    ]
    assert len(lines) < 60
