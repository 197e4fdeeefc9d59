"""Every file of the project follows the rules in `rules.py`."""

from pathlib import PurePosixPath

import pytest

from tests.layout.project_files import ROOT, files_below
from tests.layout.rules import (
    EVICTION_BY_HAND,
    PACKAGES,
    PYTHON_RULES,
    TEXT_RULES,
    WHOLE_RULES,
    Rule,
    SourceFile,
    WholeRule,
    find_evictions,
)
from tests.layout.small_files import small_files_have_a_reason


@pytest.fixture(scope="module")
def files() -> list[SourceFile]:
    return files_below(*PACKAGES, "tests", "scripts", ".ci", ".github", "docs")


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: str(rule.__name__))
def test_python_files_follow_the_rules(files: list[SourceFile], rule: Rule) -> None:
    python_files = [file for file in files if file.is_python]
    assert len(python_files) > 20
    assert [violation for file in python_files for violation in rule(file)] == []


@pytest.mark.parametrize("rule", TEXT_RULES, ids=lambda rule: str(rule.__name__))
def test_all_files_follow_the_rules(files: list[SourceFile], rule: Rule) -> None:
    assert [violation for file in files for violation in rule(file)] == []


@pytest.mark.parametrize(
    "rule", [*WHOLE_RULES, small_files_have_a_reason], ids=lambda rule: str(rule.__name__)
)
def test_the_files_together_follow_the_rules(files: list[SourceFile], rule: WholeRule) -> None:
    assert list(rule(files)) == []


@pytest.mark.parametrize("path", EVICTION_BY_HAND)
def test_every_exception_for_eviction_is_needed(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert list(find_evictions(SourceFile(PurePosixPath(path), text)))
