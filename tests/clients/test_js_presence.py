"""matrix-js-sdk, the SDK of Element Web: presence, delayed events and other requirements of calls
(`js/presence.mjs`)."""

from tests.helpers.js_scripts import run_script
from tests.helpers.real_server import RealServer

SECONDS = 300


def test_clients_see_presence_and_that_a_user_left_a_call(real_server: RealServer) -> None:
    assert run_script("presence.mjs", [real_server.url, "js-presence"], SECONDS)
