"""matrix-js-sdk with its Rust crypto: nothing that anybody may read is unreadable, as
`js/encryption.mjs` tells it, and `js/encryption_more.mjs`, and between two servers
`js/encryption_between.mjs`. Servers are killed at random moments: a story that fails has told its
STORY_SEED, with which it draws the same ones."""

from pathlib import Path

import pytest

from tests.helpers.neighbours import two_neighbours
from tests.helpers.real_server import RealServer
from tests.helpers.stories import tell

SECONDS = 600


def test_three_people_five_devices_and_a_server_that_is_killed(real_server: RealServer) -> None:
    tell("encryption.mjs", [real_server.url, "js-e2e"], SECONDS, [{"kill": real_server.kill}])
    real_server.wait_until_ready()


def test_codes_shared_history_and_a_dehydrated_device(real_server: RealServer) -> None:
    tell("encryption_more.mjs", [real_server.url, "js-more"], SECONDS)


@pytest.mark.parametrize("story", ["encryption", "encryption_more"])
def test_all_of_it_while_the_server_is_killed_again_and_again(
    real_server: RealServer, story: str
) -> None:
    tell(
        f"{story}.mjs",
        [real_server.url, f"js-killed-{story}", "kills"],
        SECONDS,
        [{"kill": real_server.kill}],
    )
    real_server.wait_until_ready()


def test_two_servers_and_outages_between(tmp_path: Path) -> None:
    with two_neighbours(tmp_path) as servers:
        deeds = [
            {"kill": each.kill_and_start, "stop": each.kill, "start": each.start}
            for each in servers
        ]
        tell(
            "encryption_between.mjs",
            [*(each.url for each in servers), "js-between"],
            SECONDS,
            deeds,
        )
