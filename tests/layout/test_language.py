"""Everything people read keeps to the words of the field; see `tests/layout/language.py`."""

from pathlib import PurePosixPath

import pytest

from tests.layout.language import LANGUAGE_RULES, no_clause_opens_a_docstring, no_private_words
from tests.layout.project_files import files_below
from tests.layout.rules import Rule, SourceFile

FOLDERS = ("homeserver", "federation", "storage", "tests", "scripts", "docs")
OWN_EXAMPLES = {"tests/layout/language.py", "tests/layout/test_language.py"}


def is_read(file: SourceFile) -> bool:
    """The rules quote what they refuse."""
    return file.path.as_posix() not in OWN_EXAMPLES


@pytest.fixture(scope="module")
def files() -> list[SourceFile]:
    return [file for file in files_below(*FOLDERS) if is_read(file)]


@pytest.mark.parametrize("rule", LANGUAGE_RULES, ids=lambda rule: str(rule.__name__))
def test_texts_follow_the_writing_guide(files: list[SourceFile], rule: Rule) -> None:
    assert len(files) > 1000
    assert [complaint for file in files for complaint in rule(file)] == []


@pytest.mark.parametrize(
    ("docstring", "refused"),
    [
        ("Who asks, and how often.", True),
        ("What is known of a room.", True),
        ("Those that are left.", True),
        ("How a room is found.", True),
        ("How many rooms are known.", False),
        ("Return the rooms of a user.", False),
        ("The rooms of a user.", False),
    ],
)
def test_docstrings_that_open_with_a_clause_are_found(docstring: str, refused: bool) -> None:
    file = SourceFile(PurePosixPath("a.py"), f'def f() -> None:\n    """{docstring}"""\n')
    assert bool([*no_clause_opens_a_docstring(file)]) is refused


@pytest.mark.parametrize(
    ("comment", "refused"),
    [
        ("the room is told of it, lest it be lost", True),
        ("sent anew", True),
        ("a letter goes to the user", True),
        ("`letter` is the option's name", False),
        ("an upper-case letter", False),
        ("peers are notified", False),
    ],
)
def test_private_words_are_found(comment: str, refused: bool) -> None:
    file = SourceFile(PurePosixPath("a.py"), f"x = 1  # {comment}\n")
    assert bool([*no_private_words(file)]) is refused
