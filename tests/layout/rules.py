"""Rules of the code base that a machine can check: each is a function from a file to its
violations."""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from federation.protocol.room_versions import ROOM_VERSIONS

PACKAGES = ("homeserver", "federation", "storage")
MAX_LINES = 600
MAX_PARAMETERS = 10
VAGUE_NAMES = {"utils", "util", "helpers", "base", "common", "manager", "misc"}

SQL = re.compile(
    r"\b(SELECT\s.+\sFROM\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s"
    r"|(CREATE|ALTER|DROP)\s+(TABLE|INDEX|VIEW)\s)",
    re.DOTALL,
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|home)/\w")
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|npmjs\.(org|com)|deb\.debian\.org|yarnpkg\.com"
)
INDENTED_IMPORT = re.compile(r"^[ \t]+(import|from)\s", re.MULTILINE)
DOCSTRING = re.compile(r'\s*(#.*\n\s*)*r?"""\s*[^\s"]')
LARGE_CONSTRUCTOR = re.compile(r"# More than ten: \S.{9,}")
EXCEPTION = re.compile(r"(Exception|Error|Refused|Forbidden)$")
DESCRIBED = re.compile(r"(?:(?<=[.;:] )|(?<=\n)|^)`[a-z_0-9]+`(?:, `[a-z_0-9]+`)*: ")
"""The start of a sentence of a docstring that describes parameters."""
QUOTED_NAME = re.compile(r"`(\w+)`")
VERSION_RECORD = re.compile(r"V\d+")
EVICTION_BY_HAND = {
    "storage/cache.py": "these are the caches",
    "storage/engine/prepared.py": "a lower layer; an eviction has to deallocate a statement",
    "homeserver/services/streams/latest_changes.py": "an eviction raises `complete_from`",
    "federation/peers/fair_semaphore.py": "a queue whose waiters move to both ends",
    "federation/sender/destination.py": "queues: each entry is taken once",
    "federation/sender/transaction_builder.py": "takes entries from these queues",
}
"""Files that may evict entries from a map themselves, or have an ordered map for another purpose,
with the reasons."""
RIDDLE = re.compile(
    r"test_(who|whom|whose|what|which|how|that|of|nor|also|but|so|they|their|its?)_"
)
"""The start of the name of a test that does not say what it is about."""
PRIVATE_NAME = re.compile(r"_[A-Za-z]\w*(?<!__)|__[A-Za-z]\w*(?<!__)")
PUBLIC_DESPITE_UNDERSCORE = {"_asdict", "_exit", "_fields", "_make", "_replace"}
"""Documented names of the standard library."""
PRIVATE_REASON = re.compile(r"# private: \S.{6,}")
PATCHED_BY_NAME = ("setattr", "getattr", "delattr", "hasattr", "setitem", "attrgetter")


@dataclass(frozen=True)
class SourceFile:
    """A file of the project: its path from the project's folder, and its content."""

    path: PurePosixPath
    text: str

    @property
    def package(self) -> str:
        return self.path.parts[0]

    @property
    def is_product(self) -> bool:
        return self.package in PACKAGES

    @property
    def is_python(self) -> bool:
        return self.path.suffix == ".py"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> Sequence[ast.AST]:
        """All nodes of the syntax tree."""
        return list(ast.walk(self.tree))

    def nodes_with(self, *words: str) -> Sequence[ast.AST]:
        """Return all nodes if one of the words is in the file; most files need not be parsed
        then."""
        return self.nodes if any(word in self.text for word in words) else ()

    def at(self, node: ast.AST, text: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {text}"


Rule = Callable[[SourceFile], Iterator[str]]
WholeRule = Callable[[Sequence[SourceFile]], Iterator[str]]
"""A rule that compares files with each other."""


def no_import_in_a_function(file: SourceFile) -> Iterator[str]:
    if not INDENTED_IMPORT.search(file.text):
        return
    for function in file.nodes:
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield file.at(
                        node, "an import inside a function hides a dependency of the module"
                    )


def no_hidden_import(file: SourceFile) -> Iterator[str]:
    if (
        not file.is_product
        or file.path.parts[:2] == ("homeserver", "wiring")
        or str(file.path) == "homeserver/services/plugins/hooks.py"
    ):
        # optional libraries are loaded while parts are wired; plug-ins are named by the
        # configuration
        return
    for node in file.nodes_with("import_module", "__import__"):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield file.at(
                node,
                "an import by name hides a dependency: see docs/adr/0020-optional-libraries.md",
            )


def no_type_checking_import(file: SourceFile) -> Iterator[str]:
    for node in file.nodes_with("TYPE_CHECKING"):
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith(
            "TYPE_CHECKING"
        ):
            yield file.at(node, "an import under TYPE_CHECKING hides a cycle")


def no_sql_outside_storage(file: SourceFile) -> Iterator[str]:
    if not file.is_product or file.package == "storage":
        return
    for node in file.nodes:
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and SQL.search(node.value + " ")
        ):
            yield file.at(node, "SQL belongs in storage/")


def no_comparison_of_room_versions(file: SourceFile) -> Iterator[str]:
    if not file.is_product or file.path.name == "room_versions.py":
        return
    for node in file.nodes:
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            sides = [node.subject, *_matched_values(node)]
        else:
            continue
        about_versions = any(
            word in ast.unparse(side) for side in sides for word in ("version", "identifier")
        )
        if any(
            _is_version_record(side) or (about_versions and _has_version(side)) for side in sides
        ):
            yield file.at(node, "a room version is a record: read its fields, never compare it")


def _matched_values(node: ast.Match) -> Iterator[ast.expr]:
    for case in node.cases:
        for pattern in ast.walk(case.pattern):
            if isinstance(pattern, ast.MatchValue):
                yield pattern.value


def _is_version_record(node: ast.expr) -> bool:
    """Return whether the expression is `V12` or `room_versions.V12`. Members of enums, such as
    `EventFormat.V1`, are values that a record holds."""
    return VERSION_RECORD.fullmatch(ast.unparse(node).removeprefix("room_versions.")) is not None


def _has_version(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return node.value in ROOM_VERSIONS
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(_has_version(each) or _is_version_record(each) for each in node.elts)
    return False


def no_vague_name(file: SourceFile) -> Iterator[str]:
    names = {*file.path.parts[:-1], file.path.stem}
    if file.path.parts[:2] == ("tests", "helpers"):
        names.discard("helpers")
    for name in sorted(names & VAGUE_NAMES):
        yield f"{file.path}: `{name}` does not describe the content"


def has_docstring(file: SourceFile) -> Iterator[str]:
    if file.text.strip() and not DOCSTRING.match(file.text):
        yield f"{file.path}: a module starts with a docstring"


def is_not_too_long(file: SourceFile) -> Iterator[str]:
    lines = file.text.count("\n")
    if lines > MAX_LINES:
        yield f"{file.path}: {lines} lines; split it by topic"


def no_mock(file: SourceFile) -> Iterator[str]:
    for node in file.nodes_with("mock"):
        if isinstance(node, ast.ImportFrom | ast.Import) and any(
            "mock" in name for name in _imported(node)
        ):
            yield file.at(node, "a fake is a small class in tests/helpers, not a Mock")


def tests_are_functions(file: SourceFile) -> Iterator[str]:
    for node in file.nodes_with("unittest", "TestCase"):
        imports = isinstance(node, ast.ImportFrom | ast.Import) and any(
            "unittest" in name for name in _imported(node)
        )
        if imports or (isinstance(node, ast.Attribute) and node.attr == "TestCase"):
            yield file.at(node, "pytest does not collect unittest classes here (setup.cfg)")


def no_asyncio(file: SourceFile) -> Iterator[str]:
    if str(file.path).startswith("tests/clients/"):
        # other projects' clients run in processes of their own
        return
    for node in file.nodes_with("asyncio", "inlineCallbacks"):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = _imported(node)
            if "asyncio" in names or any(name.endswith("inlineCallbacks") for name in names):
                yield file.at(
                    node, "coroutines on Twisted's reactor only: no asyncio, no inlineCallbacks"
                )


def _imported(node: ast.ImportFrom | ast.Import) -> list[str]:
    module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [module + each.name for each in node.names]


def no_global_state(file: SourceFile) -> Iterator[str]:
    for node in file.nodes_with("global"):
        if isinstance(node, ast.Global):
            yield file.at(node, "no module state: pass it as an argument")


def no_stub(file: SourceFile) -> Iterator[str]:
    if not file.is_product:
        return
    for node in file.nodes_with("NotImplementedError"):
        if (
            isinstance(node, ast.Raise)
            and node.exc is not None
            and "NotImplementedError" in ast.unparse(node.exc)
        ):
            yield file.at(node, "a stub: implement it or remove it")


def values_are_structs(file: SourceFile) -> Iterator[str]:
    if not file.is_product or file.path.parts[:2] == ("homeserver", "config"):
        # an option's declaration is metadata of a dataclass field: see
        # docs/adr/0005-configuration.md
        return
    for node in file.nodes_with("dataclasses"):
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses":
            yield file.at(node, "a value is a msgspec.Struct: see docs/adr/0021-structs.md")


def no_untracked_callable(file: SourceFile) -> Iterator[str]:
    for node in file.nodes_with("gc=False"):
        if isinstance(node, ast.ClassDef) and any(each.arg == "gc" for each in node.keywords):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and "Callable" in ast.unparse(field.annotation):
                    yield file.at(field, "a callable may form a reference cycle: not with gc=False")


def constructors_are_small(file: SourceFile) -> Iterator[str]:
    if not file.is_product:
        return
    lines = file.text.splitlines()
    for node in file.nodes_with("def __init__"):
        if not isinstance(node, ast.FunctionDef) or node.name != "__init__":
            continue
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][1:]
        above = lines[node.lineno - 2].strip()
        if len(parameters) > MAX_PARAMETERS and not LARGE_CONSTRUCTOR.fullmatch(above):
            yield file.at(
                node,
                f"a constructor has at most {MAX_PARAMETERS} parameters, or the line above it says"
                " why: `# More than ten: <reason>`",
            )


def constructors_take_keywords(file: SourceFile) -> Iterator[str]:
    """Complain of positional parameters of a constructor that has more than one parameter.

    Exceptions are raised with their text first. The values of the protocol core are exempt, and so
    is a constructor that takes any number of arguments.
    """
    if not file.is_product or file.path.parts[:2] == ("federation", "protocol"):
        return
    for node in file.nodes_with("def __init__"):
        if not isinstance(node, ast.ClassDef) or any(
            EXCEPTION.search(ast.unparse(base)) for base in node.bases
        ):
            continue
        for function in node.body:
            if not isinstance(function, ast.FunctionDef) or function.name != "__init__":
                continue
            given = function.args
            positional = [*given.posonlyargs, *given.args][1:]
            if positional and given.vararg is None and len(positional + given.kwonlyargs) > 1:
                yield file.at(function, f"{node.name} takes its arguments by keyword")


def docstrings_name_parameters(file: SourceFile) -> Iterator[str]:
    """Complain of a docstring that describes a parameter which the function does not have."""
    for node in file.nodes_with("def "):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = node.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        parameters = {each.arg for each in named if each is not None}
        for found in DESCRIBED.finditer(ast.get_docstring(node) or ""):
            for name in QUOTED_NAME.findall(found[0]):
                if name not in parameters:
                    yield file.at(node, f"{node.name} has no parameter {name!r}")


def no_eviction_by_hand(file: SourceFile) -> Iterator[str]:
    if file.is_product and str(file.path) not in EVICTION_BY_HAND:
        yield from find_evictions(file)


def find_evictions(file: SourceFile) -> Iterator[str]:
    """Find ordered maps, and code that removes the first entry of a map."""
    for node in file.nodes_with("OrderedDict", "popitem", "next(iter(", "cachetools"):
        if _names_ordered_map(node) or _removes_first(node):
            yield file.at(node, "storage/cache.py has bounded maps: `LRU`, `drop_oldest`")


def _names_ordered_map(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any(
            name == "collections.OrderedDict" or name.split(".")[0] == "cachetools"
            for name in _imported(node)
        )
    return isinstance(node, ast.Attribute) and node.attr == "OrderedDict"


def _removes_first(node: ast.AST) -> bool:
    if isinstance(node, ast.Delete):
        return any(
            isinstance(each, ast.Subscript) and _is_first_of(each.slice, each.value)
            for each in node.targets
        )
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr == "popitem":
        return any(each.arg == "last" for each in node.keywords)
    return (
        node.func.attr == "pop" and bool(node.args) and _is_first_of(node.args[0], node.func.value)
    )


def _is_first_of(key: ast.expr, entries: ast.expr) -> bool:
    return ast.unparse(key) == f"next(iter({ast.unparse(entries)}))"


def tests_name_a_subject(file: SourceFile) -> Iterator[str]:
    """Complain of a test whose name opens with a clause or a pronoun."""
    if file.package != "tests":
        return
    for node in file.nodes_with("def test_"):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and RIDDLE.match(node.name):
            yield file.at(node, f"{node.name} does not say what does what")


def tests_reach_no_private_names(file: SourceFile) -> Iterator[str]:
    """Complain of a test that uses a private name of the product or of a library, unless the line,
    or the line above it, says why: `# private: <reason>`.

    A name that the file itself defines is its own. So is an attribute of `self` in a class: a
    subclass may use what it inherits.
    """
    if file.package != "tests":
        return
    own = _defined_names(file)
    lines = file.text.splitlines()
    for node, name in _private_names(file):
        if name in own or name in PUBLIC_DESPITE_UNDERSCORE:
            continue
        line = getattr(node, "end_lineno", 1)
        if not any(PRIVATE_REASON.search(each) for each in lines[max(line - 2, 0) : line]):
            yield file.at(
                node, f"a test uses the private name {name}: find a public way, or say why not"
            )


def tests_import_no_test_module(file: SourceFile) -> Iterator[str]:
    """Complain of an import from a test module: what several modules use belongs in a helper."""
    if file.package != "tests":
        return
    for node in file.nodes_with("test_"):
        if isinstance(node, ast.Import | ast.ImportFrom):
            is_own = isinstance(node, ast.ImportFrom) and node.level > 0
            for name in _imported(node):
                parts = name.split(".")
                if (is_own or parts[0] == "tests") and any(
                    part.startswith("test_") for part in parts
                ):
                    yield file.at(
                        node, f"{name}: a test module is imported; move the name to a helper module"
                    )


def _defined_names(file: SourceFile) -> set[str]:
    names: set[str] = set()
    for node in file.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            names.add(node.attr)
    return names


def _private_names(file: SourceFile) -> Iterator[tuple[ast.AST, str]]:
    """Return the private names in attributes, in strings for `setattr`, and in imports."""
    in_classes = {
        id(node)
        for outer in file.nodes
        if isinstance(outer, ast.ClassDef)
        for node in ast.walk(outer)
    }
    for node in file.nodes:
        names: Sequence[str] = ()
        if isinstance(node, ast.Attribute):
            is_own = ast.unparse(node.value) in ("self", "cls", "super()")
            names = () if is_own and id(node) in in_classes else (node.attr,)
        elif isinstance(node, ast.ImportFrom):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(PATCHED_BY_NAME):
            names = [
                argument.value.rpartition(".")[2]
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        for name in names:
            if PRIVATE_NAME.fullmatch(name):
                yield node, name


PYTHON_RULES: tuple[Rule, ...] = (
    no_import_in_a_function,
    no_hidden_import,
    no_type_checking_import,
    no_sql_outside_storage,
    no_comparison_of_room_versions,
    no_vague_name,
    has_docstring,
    is_not_too_long,
    no_mock,
    tests_are_functions,
    no_asyncio,
    no_global_state,
    no_stub,
    values_are_structs,
    no_untracked_callable,
    constructors_are_small,
    constructors_take_keywords,
    docstrings_name_parameters,
    no_eviction_by_hand,
    tests_name_a_subject,
    tests_reach_no_private_names,
    tests_import_no_test_module,
)


def public_class_names_are_unique(files: Sequence[SourceFile]) -> Iterator[str]:
    """Complain of a public class of the product whose name another one has."""
    first: dict[str, str] = {}
    for file in files:
        if not file.is_product or not file.is_python:
            continue
        for node in file.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                place = f"{file.path}:{node.lineno}"
                other = first.setdefault(node.name, place)
                if other != place:
                    yield file.at(
                        node,
                        f"class {node.name} is also in {other}: rename one, or make them one class",
                    )


WHOLE_RULES: tuple[WholeRule, ...] = (public_class_names_are_unique,)


def no_machine_path(file: SourceFile) -> Iterator[str]:
    for at, line in enumerate(file.text.splitlines(), 1):
        if MACHINE_PATH.search(line):
            yield f"{file.path}:{at}: a path of a particular machine"


def no_registry_host(file: SourceFile) -> Iterator[str]:
    for at, line in enumerate(file.text.splitlines(), 1):
        if REGISTRY_HOST.search(line):
            yield f"{file.path}:{at}: the machine chooses the package registry, not the project"


def is_strict_script(file: SourceFile) -> Iterator[str]:
    if not file.text.startswith("#!") or "bash" not in file.text.splitlines()[0]:
        return
    if "\nset -euo pipefail\n" not in file.text:
        yield f"{file.path}: a script starts with `set -euo pipefail`"
    if "--help" not in file.text:
        yield f"{file.path}: a script has --help"


TEXT_RULES: tuple[Rule, ...] = (no_machine_path, no_registry_host, is_strict_script)
