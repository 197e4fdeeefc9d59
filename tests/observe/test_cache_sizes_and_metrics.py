"""Configured sizes of caches, and their metrics."""

import re
from pathlib import Path

from homeserver.config.memory import CacheOptions, MemoryOptions
from homeserver.config.option import Size
from homeserver.wiring.cache_sizes import CacheSizes
from storage.engine.database import Database
from tests.helpers.room_actions import all_texts, create, messages, redact, say
from tests.helpers.server import TestServer

LISTENER = """
enable_metrics: true
listeners: [{port: 8008, type: http, resources: [{names: [client, metrics]}]}]
"""


def test_the_global_factor_scales_all_caches() -> None:
    default, twice = (
        CacheSizes(MemoryOptions()),
        CacheSizes(MemoryOptions(caches=CacheOptions(global_factor=1.0))),
    )
    assert (default.events, default.rooms) == (51_200, 20_000)
    assert {name: getattr(twice, name) for name in vars(default)} == {
        name: size * 2 for name, size in vars(default).items()
    }
    assert CacheSizes(MemoryOptions(event_cache_size=Size(10 << 10))).events == 5120
    assert CacheSizes(MemoryOptions(caches=CacheOptions(global_factor=0.01))).rooms == 400


def test_event_cache_size_bounds_the_cached_events(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, "event_cache_size: 100\n")
    alice = server.register("alice")
    room_id = create(alice)
    for number in range(150):
        say(alice, room_id, str(number))
    assert len(messages(alice, room_id, "b", limit=200)["chunk"]) > 150
    assert len(server.app.rooms.events) == 100


def test_large_events_count_for_several(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "event_cache_size: 100\n")
    alice = server.register("alice")
    room_id = create(alice)
    large = [str(number) * 30_000 for number in range(1, 10)]
    for text in large:
        say(alice, room_id, text)
    assert all_texts(alice, room_id) == large
    assert 0 < server.app.rooms.events.weight <= 100 * 4096
    for number in range(150):
        say(alice, room_id, str(number))
    assert len(server.app.rooms.events) == 100
    redact(alice, room_id, say(alice, room_id, "oops"))
    assert all_texts(alice, room_id)[:9] == large


def test_metrics_count_hits_and_misses(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, LISTENER)
    alice = server.register("alice")
    say(alice, create(alice), "hello")
    text = server.get("/metrics").body.decode()
    for cache in (
        "events",
        "rooms",
        "memberships",
        "timelines",
        "room_servers",
        "state_responses",
        "encrypted_rooms",
        "unread_counts",
        "push_rules",
        "ignored_users",
        "published_keys",
        "key_counts",
        "access_tokens",
        "devices",
        "filters",
        "receipts",
        "account_data",
    ):
        for line in (
            f'mahalla_cache_lookups_total{{cache="{cache}",outcome="hit"}}',
            f'mahalla_cache_lookups_total{{cache="{cache}",outcome="miss"}}',
            f'mahalla_cache_entries{{cache="{cache}"}}',
        ):
            assert line in text
    assert 'mahalla_cache_entries{cache="rooms"} 1.0' in text
    weight = server.app.rooms.events.weight
    assert 0 < weight <= len(server.app.rooms.events) * 8192
    assert f'mahalla_cache_bytes{{cache="events"}} {weight:.1f}' in text
    assert 'mahalla_cache_entries{cache="access_tokens"} 1.0' in text
    in_bytes = set(re.findall(r'mahalla_cache_bytes\{cache="(\w+)"', text))
    assert in_bytes == {
        "events",
        "state_responses",
        "ignored_users",
        "filters",
        "account_data",
    }
    hits = text.partition('mahalla_cache_lookups_total{cache="rooms",outcome="hit"} ')[2].partition(
        "\n"
    )[0]
    assert float(hits) > 0
