"""`device_lists` against a plain model.

Users join and leave rooms at random, encryption is turned on, devices change, the server restarts
and keeps many changes in memory or few. Messages pile up for devices, so that responses end before
the current position. A client that syncs now and then must get every user in `changed` of whom the
model says so, and exactly the right users in `left`.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from homeserver.services.streams import recent_changes
from tests.helpers.device_list_model import NAMES, ROOMS, Action, DeviceListModel

V3 = "/_matrix/client/v3"

actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "leave"] * 5
            + ["sync"] * 4
            + ["encrypt", "device", "kick", "messages", "rename", "look"] * 2
            + ["forget", "restart"]
        ),
        st.integers(0, len(NAMES) - 1),
        st.integers(0, ROOMS - 1),
    ),
    min_size=4,
    max_size=30,
)


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions, st.sampled_from([recent_changes.MAX_CHANGES, 20]))
@example(
    [("join", 0, 0), *[("messages", 0, 0)] * 2, ("leave", 0, 0), ("encrypt", 0, 0)], 20_000
)  # neither did they here, though the first response ends before the user left
@example(
    [("join", 0, 0), ("sync", 0, 0), ("encrypt", 0, 0), ("leave", 0, 0)], 20
)  # they never shared an encrypted room
def test_clients_know_which_devices_to_query(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, steps: list[Action], kept: int
) -> None:
    live_through(tmp_path_factory.mktemp("server"), sqlite_template, steps, kept)


ALICE, BOB, CAROL = range(3)


@pytest.mark.parametrize(
    "moves",
    [
        pytest.param([("join", CAROL, 0), ("rename", CAROL, 0)], id="who_came_has_another_name"),
        pytest.param(
            [("join", CAROL, 0), ("leave", CAROL, 0), ("join", CAROL, 0)], id="who_came_comes_again"
        ),
        pytest.param(
            [("join", BOB, 0), ("rename", BOB, 0)], id="who_syncs_came_and_has_another_name"
        ),
        pytest.param(
            [("leave", BOB, 0), ("leave", ALICE, 0), ("join", BOB, 0)],
            id="who_syncs_was_away_while_another_left",
        ),
        pytest.param([("leave", ALICE, 0), ("leave", BOB, 0)], id="who_syncs_left_after_another"),
        pytest.param(
            [("leave", ALICE, 0), ("join", ALICE, 0), ("leave", ALICE, 0)],
            id="who_left_leaves_again",
        ),
    ],
)
@pytest.mark.parametrize("forgetting", ["nothing", "restart", "little memory"])
@pytest.mark.parametrize("number", [1, 2])
def test_device_list_changes_arrive_while_messages_are_pending(
    tmp_path: Path, sqlite_template: Path, moves: list[Action], forgetting: str, number: int
) -> None:
    """The first response ends within the messages: after some of the changes, before the others."""
    steps: list[Action] = [("join", ALICE, 0), ("encrypt", 0, 0)]
    if moves[0] != ("join", BOB, 0):
        steps.append(("join", BOB, 0))
    steps += [
        ("sync", BOB, 0),
        ("messages", BOB, 0),
        *moves[:number],
        ("messages", BOB, 0),
        *moves[number:],
    ]
    if forgetting == "restart":
        steps.append(("restart", 0, 0))
    live_through(
        tmp_path,
        sqlite_template,
        steps,
        20 if forgetting == "little memory" else recent_changes.MAX_CHANGES,
    )


@pytest.mark.parametrize("leaver", [ALICE, BOB])
@pytest.mark.parametrize("kept", [recent_changes.MAX_CHANGES, 20])
@pytest.mark.parametrize("change", ["device", "encrypt"])
def test_a_changed_user_who_was_away_between_two_responses_is_in_changed(
    tmp_path: Path, sqlite_template: Path, leaver: int, kept: int, change: str
) -> None:
    """When the response that ends after the change is made, the room is not shared; for the next
    one it was always shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_changes, "MAX_CHANGES", kept)
        model = DeviceListModel(tmp_path, sqlite_template)
        for step in [
            ("join", ALICE, 0),
            ("join", BOB, 0),
            *([("encrypt", 0, 0)] if change == "device" else []),
        ]:
            model.do(step)
        for step in [
            ("sync", BOB, 0),
            (change, ALICE, 0),
            *[("messages", BOB, 0)] * 2,
            ("leave", leaver, 0),
        ]:
            model.do(step)
        bob, alice, token = model.people[BOB], model.people[ALICE].user_id, model.since[BOB]
        first = bob.get(f"{V3}/sync?since={token}").json
        model.do(("join", leaver, 0))
        second = bob.get(f"{V3}/sync?since={first['next_batch']}").json
        received = [answer["device_lists"]["changed"] for answer in (first, second)]
        assert alice in received[0] + received[1], received
        model.close()


def live_through(folder: Path, template: Path, steps: list[Action], kept: int) -> None:
    """`kept`: the minimum number of changes that the server keeps in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_changes, "MAX_CHANGES", kept)
        model = DeviceListModel(folder, template)
        try:
            for step in steps:
                model.do(step)
            for who in range(len(NAMES)):
                model.check(who)
        finally:
            model.close()
