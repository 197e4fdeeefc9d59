"""The cache of users' devices: it is bounded, and holds no state that was not announced."""

from homeserver.services.devices.device_cache import DeviceCache
from storage.engine.streams import Change, Streams, Topic

DEVICES = {"D": ("@a:example.org", "D", 1)}


def test_made_up_user_ids_do_not_fill_the_memory() -> None:
    known = DeviceCache(streams=Streams(), capacity=100)
    for number in range(50):
        known.add({f"@{number}{'x' * 4000}:example.org": {}}, known.version)
    kept = sum(
        known.find({f"@{number}{'x' * 4000}:example.org"}) is not None for number in range(50)
    )
    assert 1 <= kept <= 5, "about 20,000 bytes, as for 100 devices"
    for number in range(200):
        known.add({f"@{number}:example.org": DEVICES}, known.version)
    kept = sum(known.find({f"@{number}:example.org"}) is not None for number in range(200))
    assert kept == 50
    assert known.find({"@199:example.org"}) is not None, "the oldest are evicted"


def test_a_result_that_a_change_overtakes_is_not_cached() -> None:
    streams = Streams()
    known = DeviceCache(streams=streams)
    changes = known.version
    streams.publish([Change(1, Topic.DEVICE, user_id="@a:example.org")], 1)
    known.add({"@a:example.org": DEVICES}, changes)
    assert known.find({"@a:example.org"}) is None
    changes = known.version
    known.add({"@a:example.org": DEVICES}, changes)
    found = known.find({"@a:example.org"})
    assert found is not None
    assert found.upto == 1
    streams.advance_to(5)
    assert known.find({"@a:example.org"}) is None, "another process wrote"
    known.add({"@a:example.org": DEVICES}, changes)
    assert known.find({"@a:example.org"}) is None
