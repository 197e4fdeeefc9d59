"""matrix-js-sdk, the SDK of Element Web: two users and a room (`js/messaging.mjs`)."""

import pytest

from tests.helpers.js_scripts import run_script, used_sync_modes
from tests.helpers.real_server import RealServer

SECONDS = 300


@pytest.mark.parametrize("sync_mode", ["v3", "sliding"])
@pytest.mark.parametrize("thread_support", ["false", "true"])
def test_two_users_exchange_messages_in_a_room(
    real_server: RealServer, thread_support: str, sync_mode: str
) -> None:
    prefix = f"js-{sync_mode}-{thread_support}"
    requests = run_script(
        "messaging.mjs", [real_server.url, prefix, thread_support, sync_mode], SECONDS
    )
    assert used_sync_modes(requests) == {sync_mode}
