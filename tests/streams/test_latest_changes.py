"""The log of the latest changes by key."""

from homeserver.services.streams.latest_changes import LatestChanges


def test_changed_keys_are_returned_latest_first() -> None:
    changes = LatestChanges[str](capacity=3, complete_from=10)
    for key, position in (("a", 11), ("b", 12), ("a", 13)):
        assert changes.record(key, position) is None
    assert list(changes.since(10)) == ["a", "b"]
    assert list(changes.since(12)) == ["a"]
    assert (changes.get("a"), changes.get("c"), "c" in changes) == (13, 0, False)


def test_an_eviction_raises_the_position_from_which_the_log_is_complete() -> None:
    changes = LatestChanges[str](capacity=2, complete_from=10)
    assert [changes.record(key, 11 + at) for at, key in enumerate("abcb")] == [
        None,
        None,
        "a",
        None,
    ]
    assert changes.complete_from == 11
    assert list(changes.items()) == [("c", 13), ("b", 14)]
