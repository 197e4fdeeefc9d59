"""matrix-js-sdk, the SDK of Element Web: presence, delayed events and other requirements of calls
(`js/presence.mjs`)."""

from tests.helpers.js_scripts import list_requests
from tests.helpers.real_server import RealServer


def test_clients_see_presence_and_that_a_user_left_a_call(real_server: RealServer) -> None:
    list_requests("presence.mjs", real_server.url, "there")
