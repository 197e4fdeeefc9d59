"""Names of code in docstrings and comments exist: a rename has to reach them."""

import re

import pytest

from tests.layout.language import comments, docstrings
from tests.layout.project_files import files_below
from tests.layout.rules import SourceFile

QUOTED = re.compile(r"`[^`\n]*`")
DOTTED_NAME = re.compile(r"`([\w.]+)(?:\(\))?`")
OF_CODE = re.compile(r"\w+_\w+|[A-Z][a-z]+[A-Z]\w*")
"""Words that look like names of code, not like ordinary words."""
OF_OTHERS = {"token_bytes", "IntFlag", "PoFileError", "NAME_path", "NAME_file"}
"""Names of libraries, and placeholders."""


@pytest.fixture(scope="module")
def files() -> list[SourceFile]:
    return list(files_below("homeserver", "federation", "storage", "tests", "scripts"))


def test_names_in_docstrings_exist(files: list[SourceFile]) -> None:
    known = {each.path.stem for each in files} | OF_OTHERS
    for file in files:
        known.update(re.findall(r"\w+", QUOTED.sub("", file.text)))
    missing = [
        f"{file.path}:{line}: {quoted}"
        for file in files
        if file.is_python
        for line, text in [*docstrings(file), *comments(file)]
        for quoted in DOTTED_NAME.findall(text)
        if any(OF_CODE.fullmatch(word) and word not in known for word in quoted.split("."))
    ]
    assert missing == []
