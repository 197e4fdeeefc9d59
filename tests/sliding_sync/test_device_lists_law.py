"""Sliding sync returns the same device lists as /sync. The model is that of
`tests/encryption/test_device_lists_law.py`; the client has a connection for encryption, and loses
some responses."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from homeserver.services.streams import recent_changes
from tests.helpers.device_list_model import NAMES, ROOMS, Action, DeviceListModel
from tests.helpers.sliding_client import SlidingClient

EXTENSIONS = {"e2ee": {"enabled": True}, "to_device": {"enabled": True}}

actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "leave", "sync"] * 4
            + ["encrypt", "device", "kick", "messages", "rename", "lose"] * 2
            + ["forget", "restart"]
        ),
        st.integers(0, len(NAMES) - 1),
        st.integers(0, ROOMS - 1),
    ),
    min_size=4,
    max_size=30,
)


class SlidingDeviceListModel(DeviceListModel):
    """The model with users of sliding sync."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.clients: list[SlidingClient] = []
        super().__init__(folder, template)

    def check(self, who: int) -> None:
        """Check the changes that a sync returns: all in one response, as to-device messages have a
        token of their own."""
        before, lists = set(self.known[who]), self._sync(who)["device_lists"]
        changed, left = set(lists["changed"]), set(lists["left"])
        assert not changed & left
        self.known[who] = (before | changed - {self.people[who].user_id}) - left
        self.devices[who] -= changed | left
        now, received = self.sharing(who), (NAMES[who], before, lists)
        assert self.known[who] == now, (received, now)
        assert not self.devices[who] & now, (received, now)
        assert changed <= now | {self.people[who].user_id}, (received, now)
        assert left == before - now, (received, now)

    def _sync(self, who: int, since: str | None = None) -> Any:
        """Do one sync. `since` is the client's token; the first response has no lists."""
        if who == len(self.clients):
            self.clients.append(
                SlidingClient(self.people[who], "encryption", extensions=EXTENSIONS)
            )
            return {"next_batch": self.clients[who].sync()["pos"]}
        return self.clients[who].sync()["extensions"]["e2ee"]

    def _do_lose(self, who: int, _where: int) -> None:
        """Lose a response: the client sends the same `pos` again, perhaps after other changes."""
        client = self.clients[who]
        pos = client.pos
        client.sync()
        client.pos = pos


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions, st.sampled_from([recent_changes.MAX_CHANGES, 20]))
def test_clients_of_sliding_sync_know_which_devices_to_query(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, steps: list[Action], kept: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_changes, "MAX_CHANGES", kept)
        model = SlidingDeviceListModel(tmp_path_factory.mktemp("server"), sqlite_template)
        try:
            for step in steps:
                model.do(step)
            for who in range(len(NAMES)):
                model.check(who)
        finally:
            model.close()
