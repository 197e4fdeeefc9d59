"""Each rule finds what it forbids, and accepts similar code."""

from pathlib import PurePosixPath

import pytest

from tests.layout import rules
from tests.layout.rules import PYTHON_RULES, TEXT_RULES, Rule, SourceFile

DOC = '"""What it is for."""\n'

TEN = ", ".join(f"a{number}" for number in range(10))


def violations(rule: Rule, text: str, path: str = "homeserver/services/rooms.py") -> list[str]:
    return list(rule(SourceFile(PurePosixPath(path), text)))


BAD: list[tuple[Rule, str, str]] = [
    (rules.no_import_in_a_function, "def f():\n    import os\n", "homeserver/app.py"),
    (
        rules.no_import_in_a_function,
        "class A:\n    async def f(self):\n        from os import path\n",
        "tests/test_x.py",
    ),
    (
        rules.no_hidden_import,
        'from importlib import import_module\nimport_module("os")\n',
        "homeserver/services/a.py",
    ),
    (rules.no_hidden_import, 'import importlib\nimportlib.import_module("os")\n', "storage/a.py"),
    (rules.no_hidden_import, '__import__("os")\n', "federation/rooms/a.py"),
    (
        rules.no_type_checking_import,
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import os\n",
        "storage/a.py",
    ),
    (
        rules.no_type_checking_import,
        "import typing\nif typing.TYPE_CHECKING:\n    import os\n",
        "storage/a.py",
    ),
    (rules.no_sql_outside_storage, 'q = "SELECT a FROM b"\n', "homeserver/services/a.py"),
    (
        rules.no_sql_outside_storage,
        'q = f"UPDATE {x} b"\nr = "DELETE FROM events WHERE x"\n',
        "federation/rooms/a.py",
    ),
    (
        rules.no_sql_outside_storage,
        'q = """\n  INSERT INTO\n a VALUES (1)"""\n',
        "homeserver/client/a.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        'if room_version == "11":\n    x()\n',
        "federation/rooms/a.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        'y = version.identifier not in ("1", "2")\n',
        "homeserver/client/a.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        "y = rules is V12\n",
        "federation/protocol/event_auth.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        "y = rules in (V1, V2) or version in {V3}\n",
        "federation/rooms/a.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        'match version:\n    case "12":\n        x()\n',
        "federation/rooms/a.py",
    ),
    (rules.no_vague_name, DOC, "homeserver/utils.py"),
    (rules.no_vague_name, DOC, "federation/common/ids.py"),
    (rules.no_vague_name, DOC, "homeserver/helpers/ids.py"),
    (rules.has_docstring, "import os\n", "storage/a.py"),
    (rules.is_not_too_long, "x = 1\n" * 601, "storage/a.py"),
    (rules.no_mock, "from unittest.mock import Mock\n", "tests/a.py"),
    (rules.no_mock, "import unittest.mock\n", "tests/a.py"),
    (rules.no_mock, "from unittest import mock\n", "tests/a.py"),
    (rules.tests_are_functions, "import unittest\n", "tests/a.py"),
    (
        rules.tests_are_functions,
        "from twisted.trial.unittest import SynchronousTestCase\n",
        "tests/a.py",
    ),
    (rules.tests_are_functions, "TestMachine = Machine.TestCase\n", "tests/a.py"),
    (rules.no_asyncio, "import asyncio\n", "homeserver/a.py"),
    (
        rules.no_asyncio,
        "from twisted.internet.defer import inlineCallbacks\n",
        "homeserver/a.py",
    ),
    (rules.no_global_state, "x = 1\ndef f():\n    global x\n    x = 2\n", "homeserver/a.py"),
    (rules.values_are_structs, "from dataclasses import dataclass\n", "storage/a.py"),
    (
        rules.no_untracked_callable,
        "class A(msgspec.Struct, gc=False):\n    call: Callable[[], None]\n",
        "homeserver/a.py",
    ),
    (
        rules.constructors_are_small,
        f"class A:\n    def __init__(self, {TEN}, b):\n        self.b = b\n",
        "homeserver/a.py",
    ),
    (
        rules.constructors_are_small,
        "class A:\n    # More than ten:\n"
        f"    def __init__(self, {TEN}, *, b):\n        self.b = b\n",
        "storage/a.py",
    ),
    (
        rules.constructors_take_keywords,
        "class A(Generic[K]):\n    def __init__(self, a, *, b):\n        self.a = a\n",
        "federation/peers/a.py",
    ),
    (
        rules.docstrings_name_parameters,
        'def f(self, a):\n    """Return it. `a`, `b`: the sides."""\n    return a\n',
        "homeserver/a.py",
    ),
    (rules.no_eviction_by_hand, "from collections import Counter, OrderedDict\n", "storage/a.py"),
    (rules.no_eviction_by_hand, "x = collections.OrderedDict()\n", "federation/a.py"),
    (rules.no_eviction_by_hand, "from cachetools import LRUCache\n", "federation/a.py"),
    (rules.no_eviction_by_hand, "import cachetools.func\n", "homeserver/a.py"),
    (rules.no_eviction_by_hand, "self._known.popitem(last=False)\n", "homeserver/a.py"),
    (rules.no_eviction_by_hand, "del self._a[next(iter(self._a))]\n", "homeserver/a.py"),
    (rules.no_eviction_by_hand, "a.b.pop(next(iter(a.b)), None)\n", "homeserver/a.py"),
    (
        rules.tests_name_a_subject,
        "def test_what_is_revoked_is_refused():\n    pass\n",
        "tests/login/test_a.py",
    ),
    (
        rules.tests_name_a_subject,
        "async def test_it_is_refused_on_every_node():\n    pass\n",
        "tests/login/test_a.py",
    ),
    (
        rules.tests_reach_no_private_names,
        "def test_a():\n    assert not server.app.outbox._store\n",
        "tests/email/test_a.py",
    ),
    (
        rules.tests_reach_no_private_names,
        'def test_a(monkeypatch):\n    monkeypatch.setattr(module, "_MAX", 3)  # private:\n',
        "tests/email/test_a.py",
    ),
    (
        rules.tests_reach_no_private_names,
        "from storage.engine.writer import Writer, _Batch\n",
        "tests/helpers/a.py",
    ),
    (
        rules.tests_reach_no_private_names,
        "def find(self: Finder) -> None:\n    self._drop()\n",
        "tests/sync/test_a.py",
    ),
    (
        rules.tests_import_no_test_module,
        "from tests.rooms.test_sending import say\n",
        "tests/sync/test_a.py",
    ),
    (
        rules.tests_import_no_test_module,
        "from tests.rooms import test_sending as sending\n",
        "tests/helpers/a.py",
    ),
    (
        rules.tests_import_no_test_module,
        "import tests.rooms.test_sending\n",
        "tests/sync/conftest.py",
    ),
    (
        rules.tests_import_no_test_module,
        "from .test_sending import say\n",
        "tests/rooms/test_a.py",
    ),
    (rules.no_stub, "def f():\n    raise NotImplementedError\n", "storage/a.py"),
    (rules.no_stub, 'def f():\n    raise NotImplementedError("later")\n', "homeserver/a.py"),
    (rules.no_machine_path, "cd /" + "work/main\n", "scripts/run"),
    (rules.no_machine_path, "see /" + "home/me/notes\n", "docs/a.md"),
    (rules.no_registry_host, "pip install -i https://pypi" + ".org/simple x\n", "scripts/run"),
    (rules.is_strict_script, "#!/usr/bin/env bash\necho --help\n", "scripts/run"),
    (rules.is_strict_script, "#!/usr/bin/env bash\nset -euo pipefail\n", "scripts/run"),
]

GOOD: list[tuple[Rule, str, str]] = [
    (rules.no_import_in_a_function, "import os\ndef f():\n    return os\n", "homeserver/app.py"),
    (
        rules.no_hidden_import,
        'from importlib import import_module\nimport_module("os")\n',
        "homeserver/wiring/a.py",
    ),
    (
        rules.no_hidden_import,
        'from importlib import import_module\nimport_module("os")\n',
        "homeserver/services/plugins/hooks.py",
    ),
    (rules.no_type_checking_import, "from typing import Any\n", "homeserver/app.py"),
    (rules.no_sql_outside_storage, 'q = "SELECT a FROM b"\n', "storage/rooms/rooms.py"),
    (
        rules.no_sql_outside_storage,
        'text = "Select a room from the list; update it"\n',
        "homeserver/client/a.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        'if kind == "11" or version == other:\n    x()\n',
        "homeserver/client/a.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        'x = version == "11"\n',
        "federation/protocol/room_versions.py",
    ),
    (
        rules.no_comparison_of_room_versions,
        "x = version.event_format is EventFormat.V1\n",
        "federation/rooms/a.py",
    ),
    (rules.no_vague_name, DOC, "tests/helpers/clock.py"),
    (rules.has_docstring, "", "homeserver/__init__.py"),
    (rules.has_docstring, DOC, "homeserver/a.py"),
    (rules.is_not_too_long, "x = 1\n" * 600, "storage/a.py"),
    (rules.no_mock, "from tests.helpers import server\n", "tests/a.py"),
    (rules.no_asyncio, "from twisted.internet.defer import Deferred\n", "homeserver/a.py"),
    (rules.no_asyncio, "import asyncio\n", "tests/clients/test_a.py"),
    (rules.values_are_structs, "from dataclasses import dataclass\n", "homeserver/config/a.py"),
    (
        rules.no_untracked_callable,
        "class A(msgspec.Struct):\n    call: Callable[[], None]\n",
        "homeserver/a.py",
    ),
    (
        rules.constructors_are_small,
        f"class A:\n    def __init__(self, {TEN}):\n        self.a = a1\n",
        "homeserver/a.py",
    ),
    (
        rules.constructors_are_small,
        "class A:\n    # More than ten: these are the fields of an event.\n"
        f"    def __init__(self, {TEN}, b):\n        self.b = b\n",
        "federation/a.py",
    ),
    (
        rules.constructors_take_keywords,
        "class A:\n    def __init__(self, a):\n        self.a = a\n"
        "class B:\n    def __init__(self, *, a, b):\n        self.a = b\n"
        "class C(MatrixError):\n    def __init__(self, text, status):\n        self.text = text\n",
        "storage/a.py",
    ),
    (
        rules.docstrings_name_parameters,
        'def f(a, *, b):\n    """Return it. `a`, `b`: the sides. `True`: an example."""\n',
        "homeserver/a.py",
    ),
    (
        rules.no_eviction_by_hand,
        "from collections import Counter, deque\nfrom storage.cache import LRU\n"
        "x = a.popitem()\nfirst = next(iter(a))\ndel a[next(iter(b))]\na.pop(next(iter(b)))\n",
        "homeserver/a.py",
    ),
    (
        rules.no_eviction_by_hand,
        "from collections import OrderedDict\nx.popitem(last=False)\ndel x[next(iter(x))]\n",
        "storage/cache.py",
    ),
    (rules.no_eviction_by_hand, "from collections import OrderedDict\n", "tests/helpers/a.py"),
    (
        rules.tests_name_a_subject,
        "def test_a_revoked_token_is_refused_on_every_node():\n    pass\n"
        "def test_items_of_a_list_are_counted():\n    pass\n",
        "tests/login/test_a.py",
    ),
    (
        rules.tests_reach_no_private_names,
        "def test_a():\n    assert not outbox._store  # private: no endpoint shows the queue\n"
        "    # private: the thread waits between these two statements\n    worker._lock = Lock()\n",
        "tests/email/test_a.py",
    ),
    (
        rules.tests_reach_no_private_names,
        "class Client(SyncClient):\n    def read(self, other):\n        self._check()\n"
        "        super()._check()\n        return other._answers\n"
        "    def __init__(self):\n        self._answers = url._replace(path=here.__path__)\n",
        "tests/sync/test_a.py",
    ),
    (rules.tests_reach_no_private_names, "outbox._store = store\n", "homeserver/email/a.py"),
    (
        rules.tests_import_no_test_module,
        "from tests.helpers.room_actions import say\nfrom cryptography.test_vectors import load\n",
        "tests/sync/test_a.py",
    ),
    (rules.no_stub, "def f():\n    raise ValueError\n", "storage/a.py"),
    (rules.no_machine_path, "cd https://example.org/home/page; ls ./work/x\n", "scripts/run"),
    (rules.is_strict_script, "#!/usr/bin/env bash\nset -euo pipefail\n# --help\n", "scripts/run"),
]


@pytest.mark.parametrize(("rule", "text", "path"), BAD)
def test_a_rule_finds_violations(rule: Rule, text: str, path: str) -> None:
    assert violations(rule, text, path)


@pytest.mark.parametrize(("rule", "text", "path"), GOOD)
def test_a_rule_accepts_similar_code(rule: Rule, text: str, path: str) -> None:
    assert violations(rule, text, path) == []


def test_every_rule_has_a_bad_example() -> None:
    assert {rule for rule, _text, _path in BAD} == {*PYTHON_RULES, *TEXT_RULES}


def test_a_second_public_class_of_the_same_name_is_found() -> None:
    def files(*texts: tuple[str, str]) -> list[SourceFile]:
        return [SourceFile(PurePosixPath(path), text) for path, text in texts]

    found = list(
        rules.public_class_names_are_unique(
            files(
                ("federation/peers/a.py", "class Queue:\n    pass\n"),
                ("storage/b.py", "import c\nclass Queue(c.D):\n    pass\n"),
            )
        )
    )
    assert found == [
        "storage/b.py:2: class Queue is also in federation/peers/a.py:1: "
        "rename one, or make them one class"
    ]
    assert not list(
        rules.public_class_names_are_unique(
            files(
                ("federation/peers/a.py", "class Queue:\n    class Item:\n        pass\n"),
                ("homeserver/a.py", "class _Queue:\n    class Item:\n        pass\n"),
                ("homeserver/b.py", "class _Queue:\n    pass\nclass Item:\n    pass\n"),
                ("homeserver/c.js", "class Queue { }"),
                ("tests/rooms/test_queue.py", "class Queue:\n    pass\n"),
            )
        )
    )
