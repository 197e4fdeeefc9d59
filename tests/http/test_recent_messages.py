"""Messages to devices in memory: contents are kept once, and are bounded."""

import tracemalloc

from homeserver.services.sync.recent_messages import MOST_BYTES, RecentMessages
from storage.streams import Change, Streams, Topic
from storage.to_device import NewMessages


def test_contents_are_kept_once_and_no_more_than_fit() -> None:
    streams = Streams()
    recent = RecentMessages(streams)
    contents = [b'"%b"' % (b"%d" % number * 50_000) for number in range(10, 400)]
    tracemalloc.start()
    try:
        for position, content in enumerate(contents, 1):
            news = NewMessages(position, b'{"content":', [("@a:example.org", "D", 1)], [content])
            streams.publish([Change(position, Topic.TO_DEVICE, user_ids=("@a:example.org",), detail=news)], position)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1 << 20, "beside the contents themselves, which were there before"
    assert recent.since(("@a:example.org", "D"), 0) is None
    found = recent.since(("@a:example.org", "D"), len(contents) - 100)
    assert found is not None
    assert [message.content for message in found] == [b'{"content":%b}' % content for content in contents[-100:]]
    last = [
        (at, found) for at in range(len(contents)) if (found := recent.since(("@a:example.org", "D"), at)) is not None
    ]
    assert sum(len(message.content) for message in last[0][1]) <= MOST_BYTES + 100_000
