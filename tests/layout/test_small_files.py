"""A small file with a single importer is part of it, or stays for a reason."""

from pathlib import PurePosixPath

import pytest

from tests.layout.rules import SourceFile
from tests.layout.small_files import SMALL, small_files_have_a_reason

KEYRING = "federation/peers/keyring.py"


def complaints(
    importers: dict[str, str], path: str = KEYRING, lines: int = 20, reason: str = ""
) -> list[str]:
    """Check one file and its importers, each with its line of import."""
    files = {path: "x = 1\n" * lines, **{name: f"{text}\n" for name, text in importers.items()}}
    return list(
        small_files_have_a_reason(
            [SourceFile(PurePosixPath(name), text) for name, text in files.items()],
            {path: reason} if reason else {},
        )
    )


@pytest.mark.parametrize(
    ("path", "importer", "text"),
    [
        (KEYRING, "federation/peers/notary.py", "from federation.peers.keyring import A"),
        (KEYRING, "federation/peers/notary.py", "from federation.peers import keyring"),
        (KEYRING, "federation/peers/notary.py", "import federation.peers.keyring as keys"),
        (
            "homeserver/services/rooms/history.py",
            "homeserver/wiring/sync.py",
            "from homeserver.services.rooms.history import A",
        ),
        (
            "homeserver/config/colours.py",
            "homeserver/config/pages.py",
            "from homeserver.config.colours import A",
        ),
        (
            "homeserver/wiring/limits.py",
            "homeserver/wiring/accounts.py",
            "from homeserver.wiring.limits import A",
        ),
    ],
)
def test_a_small_file_with_one_importer_is_found(path: str, importer: str, text: str) -> None:
    [found] = complaints({importer: text}, path)
    assert found.startswith(f"{path}: fewer than 80 lines, and only {importer} imports it")


@pytest.mark.parametrize(
    ("path", "importer", "text"),
    [
        (
            "storage/engine/server_lock.py",
            "homeserver/commands/setup.py",
            "from storage.engine.server_lock import A",
        ),
        (
            "homeserver/client/tags.py",
            "homeserver/wiring/endpoints.py",
            "from homeserver.client import tags",
        ),
        (
            "homeserver/config/push.py",
            "homeserver/config/configuration.py",
            "from homeserver.config.push import A",
        ),
        ("homeserver/wiring/terms.py", "homeserver/app.py", "import homeserver.wiring.terms"),
        (
            "federation/protocol/ids.py",
            "federation/protocol/events.py",
            "import federation.protocol.ids",
        ),
    ],
)
def test_a_general_rule_keeps_a_small_file(path: str, importer: str, text: str) -> None:
    assert complaints({importer: text}, path) == []


def test_other_files_are_accepted() -> None:
    by_one = {"federation/peers/notary.py": "from federation.peers.keyring import A, B"}
    by_two = {**by_one, "federation/peers/federation_policy.py": "import federation.peers.keyring"}
    same_word = {**by_one, "storage/federation/keyring.py": "x = 1"}

    assert complaints(by_one, lines=SMALL) == []
    assert complaints(by_two) == []
    assert complaints(same_word) == []
    assert complaints({"tests/peers/test_keyring.py": "import federation.peers.keyring"}) == []
    assert complaints(by_one, reason="the word of the specification") == []


def test_a_reason_that_no_file_needs_is_found() -> None:
    by_one = {"federation/peers/notary.py": "from federation.peers.keyring import A"}

    needless = [f"{KEYRING}: needs no reason in tests/layout/small_files.py"]
    assert complaints({}, reason="an old one") == needless
    assert complaints(by_one, lines=SMALL, reason="an old one") == needless
