"""Generates docs/developers/modules.md: every module of the product with the first paragraph of its
docstring."""

import ast
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("homeserver", "federation", "storage")
HEAD = """# Modules

Every module of the product, by folder, with what its header says. Imports run from the top of this
page to its end: `homeserver` → `federation` → `storage`; `setup.cfg` has the order of the folders
inside each package, and `lint-imports` checks it.

This page is generated: `scripts/write_module_map` writes it, and a test compares it with the code.
"""


def module_map() -> str:
    """Return the text of the page."""
    return HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    for package in PACKAGES:
        files = sorted(
            (path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"),
            key=lambda path: (path.parent.parts, path.name),
        )
        for folder, paths in groupby(files, key=lambda path: path.parent):
            yield f"\n## {folder.relative_to(ROOT).as_posix()}\n\n| module | purpose |\n|---|---|\n"
            for path in paths:
                yield f"| `{path.name}` | {_purpose(path)} |\n"


def _purpose(path: Path) -> str:
    """Return the first paragraph of the module's docstring, without spec references."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return paragraph.partition(" spec:")[0].replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(module_map(), encoding="utf-8")
