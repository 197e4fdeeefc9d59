"""Finds small files of the product that a single module imports.

Such a file belongs into its importer, so that a reader finds one thing in one place. It stays where
a general rule (`GENERAL_RULES`) or a reason (`REASONS`) keeps it.
"""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from tests.layout.rules import SourceFile

SMALL = 80
"""A file with fewer lines is small."""

REASONS: Mapping[str, str] = {
    "federation/rooms/receive/extremity_limit.py": "one rule that the specification does not have",
    "homeserver/http/conditional_requests.py": "the name of the RFC's topic; no input or output",
    "homeserver/observe/metrics_page.py": "a page of the documentation, as config/sample.py",
    "homeserver/services/ephemeral/edu_sender.py": "the counterpart of edu_receivers.py",
    "homeserver/services/login/password_attempts.py": "the bound on guesses, with its own laws",
    "homeserver/services/rooms/forget_on_leave.py": "one option, with its follower and its job",
    "homeserver/services/sliding_sync/pos.py": "the word of the specification: the form of `pos`",
    "homeserver/services/upstream/plugin_passwords.py": "a file for each external way to sign in",
    "homeserver/wiring/cache_sizes.py": "the capacities of all caches, the place to tune them",
    "storage/events/thread_senders.py": "the writes of one table, which has this name",
}
"""The files that stay for a reason of their own."""


def _is_layer_below(path: PurePosixPath, importer: PurePosixPath) -> bool:
    """The importer is in another package, where the file may not be."""
    return path.parts[0] != importer.parts[0]


def _is_endpoint(_path: PurePosixPath, importer: PurePosixPath) -> bool:
    """Endpoints have a file for each topic of the specification."""
    return str(importer) == "homeserver/wiring/endpoints.py"


def _is_option_group(path: PurePosixPath, importer: PurePosixPath) -> bool:
    """Options have a file for each group."""
    return (
        path.parent.parts == ("homeserver", "config")
        and str(importer) == "homeserver/config/configuration.py"
    )


def _is_wiring(path: PurePosixPath, importer: PurePosixPath) -> bool:
    """The parts of a server have a file for each topic."""
    return path.parent.parts == ("homeserver", "wiring") and str(importer) == "homeserver/app.py"


GENERAL_RULES: Sequence[Callable[[PurePosixPath, PurePosixPath], bool]] = (
    _is_layer_below,
    _is_endpoint,
    _is_option_group,
    _is_wiring,
)
"""Each keeps a file with this path and this importer."""


def small_files_have_a_reason(
    files: Sequence[SourceFile], reasons: Mapping[str, str] = REASONS
) -> Iterator[str]:
    """Complain of small files with one importer, and of reasons that no file needs.

    A file also stays if another layer has a file of the same topic word: `client/receipts.py`,
    `services/rooms/receipts.py`, `storage/rooms/receipts.py`.
    """
    product = [file for file in files if file.is_product and file.is_python]
    layers: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for file in product:
        layers[file.path.stem].add(_layer(file.path))
    found: set[str] = set()
    for path, importers in _find_importers(product).items():
        if len(importers) != 1:
            continue
        [importer] = importers
        if len(layers[path.stem]) > 1 or any(rule(path, importer) for rule in GENERAL_RULES):
            continue
        found.add(str(path))
        if str(path) not in reasons:
            yield (
                f"{path}: fewer than {SMALL} lines, and only {importer} imports it: merge them, or"
                " say in tests/layout/small_files.py why it stays"
            )
    for listed in sorted(reasons.keys() - found):
        yield f"{listed}: needs no reason in tests/layout/small_files.py"


def _layer(path: PurePosixPath) -> tuple[str, ...]:
    """Return the package and its first folder."""
    return path.parent.parts[:2]


def _find_importers(
    product: Sequence[SourceFile],
) -> Mapping[PurePosixPath, set[PurePosixPath]]:
    """Return the importers of each small module; a package's `__init__.py` is none."""
    modules = {".".join(file.path.with_suffix("").parts): file for file in product}
    importers: dict[PurePosixPath, set[PurePosixPath]] = {
        file.path: set()
        for file in product
        if file.text.count("\n") < SMALL
        and file.path.name != "__init__.py"
        and file.path.parts[:2] != ("federation", "protocol")
    }
    for file in product:
        for name in _imported_names(file):
            if name in modules and modules[name].path in importers:
                importers[modules[name].path].add(file.path)
    return importers


def _imported_names(file: SourceFile) -> Iterator[str]:
    """Return the modules that a file imports, among other names."""
    for node in file.tree.body:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)
