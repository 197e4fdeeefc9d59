"""The to-device cache: equal contents are stored once, and the size is bounded."""

import tracemalloc

import pytest

from homeserver.services.sync import to_device_cache
from homeserver.services.sync.to_device_cache import (
    MAX_BYTES,
    MAX_UNSORTED,
    ToDeviceCache,
    make_messages,
)
from storage.encryption.to_device import ToDeviceAdded
from storage.engine.streams import Change, Streams, Topic


def test_contents_are_stored_once_and_bounded() -> None:
    streams = Streams()
    recent = ToDeviceCache(streams=streams)
    contents = [b'"%b"' % (b"%d" % number * 50_000) for number in range(10, 400)]
    tracemalloc.start()
    try:
        for position, content in enumerate(contents, 1):
            added = ToDeviceAdded(position, b'{"content":', [("@a:example.org", "D", 1)], [content])
            streams.publish(
                [Change(position, Topic.TO_DEVICE, user_ids=("@a:example.org",), detail=added)],
                position,
            )
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1 << 20, "in addition to the contents, which existed before"
    assert recent.since(("@a:example.org", "D"), 0) is None
    found = recent.since(("@a:example.org", "D"), len(contents) - 100)
    assert found is not None
    assert [message.content for message in make_messages(found)] == [
        b'{"content":%b}' % content for content in contents[-100:]
    ]
    last = [
        (at, found)
        for at in range(len(contents))
        if (found := recent.since(("@a:example.org", "D"), at)) is not None
    ]
    assert sum(len(message.content) for message in make_messages(last[0][1])) <= MAX_BYTES + 100_000


def test_acknowledged_positions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device never gets a message again that it acknowledged, however many others did; evicted
    positions are read from the database."""
    monkeypatch.setattr(to_device_cache, "MAX_DROPPED", 10)
    streams = Streams()
    recent = ToDeviceCache(streams=streams)
    devices = [("@a:example.org", f"D{number}") for number in range(30)]
    for round_ in range(3):
        recipients = [(user_id, device_id, 1) for user_id, device_id in devices]
        added = ToDeviceAdded(1 + 30 * round_, b"", recipients, [b"1"] * 30)
        streams.publish(
            [Change(added.last, Topic.TO_DEVICE, user_ids=("@a:example.org",), detail=added)],
            added.last,
        )
        for number, device in enumerate(devices):
            mine = recent.since(device, 0)
            assert mine is None or mine[-1][0] == added.first + number
            recent.drop(device, 1 << 40)
            assert not recent.since(device, 0)
    assert recent.since(devices[0], streams.current()) == []
    added = ToDeviceAdded(91, b"", [("@a:example.org", "D0", 1)], [b"2"])
    streams.publish([Change(91, Topic.TO_DEVICE, user_ids=("@a:example.org",), detail=added)], 91)
    assert [position for position, _, _ in recent.since(devices[0], 90) or ()] == [91], (
        "no token of a later time hides it"
    )


def test_a_message_after_all_floors_outlives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many floors, no message that goes with them is taken for one that was
    never sent."""
    monkeypatch.setattr(to_device_cache, "MAX_DROPPED", 4)
    streams = Streams()
    recent = ToDeviceCache(streams=streams)
    streams.publish([], 10)
    added = ToDeviceAdded(11, b"", [("@a:example.org", "D", 1)], [b"1"])
    streams.publish([Change(11, Topic.TO_DEVICE, user_ids=("@a:example.org",), detail=added)], 11)
    for number in range(20):
        recent.drop(("@b:example.org", f"D{number}"), 10)
        found = recent.since(("@a:example.org", "D"), 10)
        assert found is None or [position for position, _, _ in found] == [11]


def test_unsorted_messages_are_found_and_evicted_in_order() -> None:
    """A few at once, by many requests, while nobody reads: they are found in order, and the oldest
    are evicted first, as if each had been read at once."""
    streams, others = Streams(), Streams()
    lazy, eager = (
        ToDeviceCache(streams=streams, max_bytes=2500),
        ToDeviceCache(streams=others, max_bytes=2500),
    )
    devices = [("@a:example.org", "D"), ("@a:example.org", "E"), ("@b:example.org", "D")]
    position = 1
    for number in range(5 * MAX_UNSORTED):
        to = [(*device, 1) for device in devices[: 1 + number % 3]]
        added = ToDeviceAdded(position, b"", to, [b"%d" % number * 10] * len(to))
        position += len(to)
        for each in (streams, others):
            each.publish(
                [Change(added.last, Topic.TO_DEVICE, user_ids=("@a:example.org",), detail=added)],
                added.last,
            )
        assert eager.since(devices[0], added.last) == []
        if number % 50 == 49:
            for device in devices:
                found = [lazy.since(device, after) for after in range(position)]
                assert found == [eager.since(device, after) for after in range(position)]
                assert any(found)
                assert found[-1] == []
