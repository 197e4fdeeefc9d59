"""To-device messages and sync tokens that the server never issued."""

from pathlib import Path

from storage.encryption.to_device import MIN_LOGGED
from tests.helpers.encrypted_rooms import numbers_in
from tests.helpers.keys import V3, sync
from tests.helpers.logins import another_device
from tests.helpers.server import TestServer


def test_a_token_from_the_future_hides_no_later_messages(server: TestServer) -> None:
    """A client can invent a token; later messages must not be skipped because of its position."""
    alice, bob = server.register("alice"), server.register("bob")
    others = [another_device(bob).device_id for _ in range(MIN_LOGGED)]
    since = sync(bob)["next_batch"]

    def send(number: int) -> None:
        messages = {
            bob.user_id: {device_id: {"n": number} for device_id in (bob.device_id, *others)}
        }
        assert alice.put(f"{V3}/sendToDevice/m.test/{number}", {"messages": messages}).status == 200

    for number in range(0, 4, 2):
        send(number)
        assert numbers_in(sync(bob, f"{since}~99999999999999999")) == []
        since = sync(bob)["next_batch"]
        send(number + 1)
        assert numbers_in(sync(bob, since)) == [number + 1]
        restarted = TestServer(
            Path(server.config.folder), server.app.database, seed=5, now=server.clock.seconds()
        )
        bob.server = restarted
        assert numbers_in(sync(bob, since)) == [number + 1], "not in the database"
        bob.server = server
