"""A client of the example endpoints."""

import pytest

from federation.protocol.errors import UnknownToken
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from tests.helpers.http import Client, FakeTokens, client_for
from tests.http import endpoints
from tests.http.endpoints import Bell

ALICE = Requester(UserID("@alice:example.org"), DeviceID("A"), 1)


def _as(name: str, **marks: bool) -> Requester:
    return Requester(UserID(f"@{name}:example.org"), DeviceID("D"), 2, **marks)  # type: ignore[arg-type]


TOKENS = FakeTokens(
    {
        "alice": ALICE,
        "bob": _as("bob"),
        "guest": _as("guest", is_guest=True),
        "admin": _as("admin", is_admin=True),
        "locked": _as("locked", is_locked=True),
        "suspended": _as("suspended", is_suspended=True),
        "free": _as("free", rate_limited=False),
        "old": UnknownToken(soft_logout=True),
    }
)


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def client(bell: Bell) -> Client:
    return client_for([endpoints], {Bell: bell}, tokens=TOKENS)
