"""Account data of a device is deleted with it. Proposal: MSC3890"""

from tests.helpers.logins import password_auth
from tests.helpers.room_actions import V3, ok, refused
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Rooms, sync

TYPE = "org.matrix.msc3890.local_notification_settings."


def test_settings_of_a_device_are_deleted_with_it(server: TestServer) -> None:
    alice = server.register("alice")
    body = password_auth("alice")
    phone = User(server, ok(server.post(f"{V3}/login", body)))
    rooms = Rooms()
    for user in (alice, phone):
        rooms.keep(user, TYPE + user.device_id, {"is_silenced": True})
    since = sync(alice)["next_batch"]
    ok(phone.post(f"{V3}/logout"))
    gone = f"{V3}/user/{alice.user_id}/account_data/{TYPE}{phone.device_id}"
    assert refused(alice.get(gone)) == (404, "M_NOT_FOUND")
    assert sync(alice, since)["account_data"]["events"] == [
        {"type": TYPE + phone.device_id, "content": {}}
    ]
    assert ok(alice.get(gone.replace(phone.device_id, alice.device_id))) == {"is_silenced": True}
