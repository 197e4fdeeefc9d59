"""Finds constructions and words that the writing guide refuses, in everything people read.

A text starts with a verb or with the thing itself, and uses the words of the field. See
`CONTRIBUTING.md`.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from tests.layout.rules import SourceFile

OPENING = re.compile(
    r"(Who|Whom|Whose|What|Which|Whoever|Whatever|Those|That which|Where|Whence"
    r"|How(?! (?:many|much|long|often|far|hard|large|deep|old)\b))\b"
)
"""A clause that stands for a noun, at the start of a docstring."""
WORDS = {
    r"lest|anew|whence|whither|thereof|whereof|wherein|thereupon|heeds?|heeded|hearken|dear": (
        "nobody says this any more"
    ),
    r"riddles?": "a captcha",
    r"(?<!capital )(?<!case )(?<!Greek )(?<!Cyrillic )letters?(?! of the alphabet)": (
        "an e-mail, or a character"
    ),
    r"(?:is|are|was|were|be|been|being) told": "notified, sent, informed",
    r"untold|unheard": "pending, unacknowledged",
    r"com(?:es?|ing) to nothing|came to nothing": "fails, has no effect",
    r"whoever|whosoever": "name who: a client, a user, a caller",
}
WORD = re.compile("|".join(rf"(?P<w{n}>\b(?:{words})\b)" for n, words in enumerate(WORDS)), re.I)
ADVICE = list(WORDS.values())
CODE = re.compile(r"`[^`]*`|\"[^\"]*\"|https?://\S+")


def docstrings(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Return the docstrings of the module, classes, functions and attributes, with their lines."""
    for node in file.nodes:
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documents_itself = isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        )
        for before, statement in zip([None, *body], body, strict=False):
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
                and (
                    (before is None and documents_itself)
                    or isinstance(before, ast.Assign | ast.AnnAssign)
                )
            ):
                yield statement.lineno, statement.value.value


def comments(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Return the comments of a Python file, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#: ")


def texts(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Return what people read in a file: documentation of code, or all of a page."""
    if file.is_python:
        yield from docstrings(file)
        yield from comments(file)
    elif file.path.suffix in {".md", ".sql"}:
        yield from enumerate(file.text.splitlines(), start=1)


def no_clause_opens_a_docstring(file: SourceFile) -> Iterator[str]:
    """Complain of a docstring that opens with a clause in the place of a noun."""
    for line, text in docstrings(file) if file.is_python else ():
        if found := OPENING.match(text.strip()):
            yield f"{file.path}:{line}: start with a verb or the thing itself, not {found[0]!r}"


def no_private_words(file: SourceFile) -> Iterator[str]:
    """Complain of words that the field does not use. Quoted text and code are left out."""
    for line, text in texts(file):
        for found in WORD.finditer(CODE.sub("", text)):
            advice = ADVICE[int((found.lastgroup or "w0")[1:])]
            yield f"{file.path}:{line}: not {found[0]!r} (rather: {advice})"


LANGUAGE_RULES = (no_clause_opens_a_docstring, no_private_words)
