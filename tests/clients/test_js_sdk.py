"""matrix-js-sdk, the SDK of Element Web: two users and a room (`js/story.mjs`)."""

import pytest

from tests.helpers.js_scripts import list_requests, sync_forms
from tests.helpers.real_server import RealServer


@pytest.mark.parametrize("form", ["v3", "sliding"])
@pytest.mark.parametrize("threads", ["false", "true"])
def test_two_users_talk_in_a_room(real_server: RealServer, threads: str, form: str) -> None:
    requests = list_requests("story.mjs", real_server.url, f"js-{form}-{threads}", threads, form)
    assert sync_forms(requests) == {form}
