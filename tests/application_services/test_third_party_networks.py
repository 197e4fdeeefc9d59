"""Without application services there are no third-party networks. spec:
client-server-api#third-party-networks"""

import pytest

from tests.helpers.room_actions import V3, ok, refused
from tests.helpers.server import TestServer


def test_the_list_of_third_party_networks_is_empty(server: TestServer) -> None:
    alice = server.register("alice")
    assert ok(alice.get(f"{V3}/thirdparty/protocols")) == {}
    for path in (
        "protocol/irc",
        "location/irc?channel=x",
        "user/irc",
        "location?alias=%23a:b.org",
        "user?userid=@a:b.org",
    ):
        assert refused(alice.get(f"{V3}/thirdparty/{path}")) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "errcode"),
    [
        ("location", "M_MISSING_PARAM"),
        ("user", "M_MISSING_PARAM"),
        ("location?alias=x", "M_INVALID_PARAM"),
        ("user?userid=x", "M_INVALID_PARAM"),
    ],
)
def test_invalid_requests_are_refused(server: TestServer, path: str, errcode: str) -> None:
    assert refused(server.register("alice").get(f"{V3}/thirdparty/{path}")) == (400, errcode)
    assert refused(server.get(f"{V3}/thirdparty/{path}")) == (401, "M_MISSING_TOKEN")
