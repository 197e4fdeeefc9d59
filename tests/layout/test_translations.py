"""Every text on pages and in e-mails is translated into every language, with the same
placeholders."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from homeserver.services.pages.languages import ENGLISH, Languages

PACKAGE = Path(__file__).parents[2] / "homeserver"
IN_TEMPLATE = re.compile(r"\b_\(\"((?:[^\"\\]|\\.)*)\"\)")
CALL = re.compile(r"\b_\(")
PLACEHOLDER = re.compile(r"%\(\w+\)s|%%")
LANGUAGES = Languages()


def _texts() -> Iterator[str]:
    for path in PACKAGE.rglob("templates/*"):
        yield from IN_TEMPLATE.findall(path.read_text(encoding="utf-8"))
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if CALL.search(source) else ():
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "_"
            ):
                [text] = node.args
                assert isinstance(text, ast.Constant), (
                    f"{path}: a text for translation must be a literal"
                )
                yield str(text.value)


@cache
def texts() -> frozenset[str]:
    """Return all texts that are passed to `_`."""
    return frozenset(_texts())


def test_english_and_the_languages_of_the_country_are_available() -> None:
    assert {"uz", "uz_Cyrl", "kaa", "ru", ENGLISH} <= set(LANGUAGES.codes)
    assert len(texts()) > 20


@pytest.mark.parametrize("code", sorted({*LANGUAGES.codes} - {ENGLISH}))
def test_every_text_is_translated(code: str) -> None:
    language = LANGUAGES.get(code)
    assert [text for text in sorted(texts()) if language.gettext(text) == text] == []
    for text in sorted(texts()):
        assert sorted(PLACEHOLDER.findall(language.gettext(text))) == sorted(
            PLACEHOLDER.findall(text)
        )


@pytest.mark.parametrize("code", sorted({*LANGUAGES.codes} - {ENGLISH}))
def test_no_translation_is_unused(code: str) -> None:
    assert LANGUAGES.get(code).texts <= texts()
