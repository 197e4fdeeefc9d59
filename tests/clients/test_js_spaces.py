"""matrix-js-sdk, the SDK of Element Web: spaces, upgrades and room discovery (`js/spaces.mjs`)."""

import pytest

from tests.helpers.js_scripts import list_requests, sync_forms
from tests.helpers.real_server import RealServer


@pytest.mark.parametrize("form", ["v3", "sliding"])
def test_a_client_sees_a_space_and_its_rooms(real_server: RealServer, form: str) -> None:
    requests = list_requests("spaces.mjs", real_server.url, f"around-{form}", form)
    assert sync_forms(requests) == {form}
