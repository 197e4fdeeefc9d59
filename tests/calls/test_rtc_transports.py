"""RTC transports for group calls. Proposal: MSC4143"""

from pathlib import Path

import pytest

from homeserver.config.load import ConfigError
from storage.engine.database import Database
from tests.helpers.room_actions import ok, refused
from tests.helpers.server import TestServer

PATHS = (
    "/_matrix/client/v1/rtc/transports",
    "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
)
LIVEKIT = {"type": "livekit", "livekit_service_url": "https://livekit.example.org"}
CONFIG = """
public_baseurl: https://matrix.example.org/
matrix_rtc: {transports: [{type: livekit, livekit_service_url: "https://livekit.example.org"}]}
"""


@pytest.mark.parametrize("path", PATHS)
def test_configured_transports_are_returned(
    tmp_path: Path, sqlite_database: Database, path: str
) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG)
    alice = server.register("alice")
    assert ok(alice.get(path)) == {"rtc_transports": [LIVEKIT]}
    assert refused(server.get(path)) == (401, "M_MISSING_TOKEN")
    assert server.get("/.well-known/matrix/client").json["org.matrix.msc4143.rtc_foci"] == [LIVEKIT]


def test_without_transports_the_list_is_empty(server: TestServer) -> None:
    assert ok(server.register("alice").get(PATHS[0])) == {"rtc_transports": []}
    assert (
        server.get("/_matrix/client/versions").json["unstable_features"]["org.matrix.msc4143"]
        is True
    )


@pytest.mark.parametrize("transport", ["{livekit_service_url: x}", "{type: livekit}", "{type: 1}"])
def test_invalid_transports_are_refused(
    tmp_path: Path, sqlite_database: Database, transport: str
) -> None:
    with pytest.raises(ConfigError, match=r"matrix_rtc\.transports"):
        TestServer(tmp_path, sqlite_database, f"matrix_rtc: {{transports: [{transport}]}}\n")
