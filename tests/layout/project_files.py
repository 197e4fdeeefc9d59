"""Reads the files of the project."""

from pathlib import Path, PurePosixPath

from tests.layout.rules import SourceFile

ROOT = Path(__file__).parents[2]
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".sql",
    ".cfg",
    ".toml",
    ".yaml",
    ".yml",
    ".sample",
    ".json",
    ".mjs",
    ".js",
    ".html",
    "",
}
IGNORED = {"node_modules", "__pycache__", "rules.py", "test_rules.py"}


def files_below(*folders: str) -> list[SourceFile]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    paths += sorted(path for path in ROOT.iterdir() if path.suffix in TEXT_SUFFIXES - {""})
    return [
        SourceFile(
            PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text(encoding="utf-8")
        )
        for path in paths
        if path.is_file() and path.suffix in TEXT_SUFFIXES and not IGNORED & set(path.parts)
    ]
