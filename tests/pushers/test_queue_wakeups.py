"""Queues of pushers are woken in batches, and an error in one does not stop the others."""

from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from homeserver.services.pushers.queues import WAKES_PER_TURN, ChangedQueues, PusherQueue
from storage.push.pushers import PusherRow


def line(nid: int) -> PusherQueue:
    row = PusherRow(
        nid, "@a:b", "app", f"{nid}", "http", "", "", None, "en", b"{}", "", None, True, False, 0, 0
    )
    return PusherQueue(row, "https://push.example.com/")


def test_an_error_in_one_line_does_not_stop_the_others() -> None:
    """It holds in the first batch and in a later turn of the reactor."""
    clock = Clock()
    woken: list[int] = []
    broken = {0, WAKES_PER_TURN + 1}

    def wake(each: PusherQueue) -> None:
        woken.append(each.row.pusher_nid)
        if each.row.pusher_nid in broken:
            raise RuntimeError("a bug")

    lines = ChangedQueues(clock=clock, wake=wake)
    every = list(range(WAKES_PER_TURN * 5 // 2))
    for nid in every:
        lines.add(line(nid))
    with capturedLogs() as logged:
        lines.wake()
        assert woken == every[:WAKES_PER_TURN]
        clock.advance(0)
        clock.advance(0)
    assert woken == every
    assert {event["pusher_nid"] for event in logged if "log_failure" in event} == broken

    lines.add(line(0))
    broken.clear()
    lines.wake()
    assert woken == [*every, 0]
