"""Server discovery: from a server name to hosts and ports."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.discovery import (
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    Hop,
    Route,
    Service,
    order_services,
    read_well_known,
    route_by_name,
    route_by_services,
    well_known_seconds,
)
from federation.protocol.ids import ServerName


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("1.2.3.4", Route("1.2.3.4", "1.2.3.4", (Hop("1.2.3.4", 8448),))),
        ("1.2.3.4:5", Route("1.2.3.4:5", "1.2.3.4", (Hop("1.2.3.4", 5),))),
        ("[2001:db8::1]", Route("[2001:db8::1]", "2001:db8::1", (Hop("2001:db8::1", 8448),))),
        ("[2001:db8::1]:5", Route("[2001:db8::1]:5", "2001:db8::1", (Hop("2001:db8::1", 5),))),
        (
            "matrix.example:443",
            Route("matrix.example:443", "matrix.example", (Hop("matrix.example", 443),)),
        ),
        ("matrix.example", None),
    ],
)
def test_names_with_a_port_or_an_address_need_no_lookup(name: str, route: Route | None) -> None:
    assert route_by_name(ServerName(name)) == route


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"m.server": "matrix.example:443"}', "matrix.example:443"),
        (b'{"m.server": "[::1]", "more": 1}', "[::1]"),
        (b'{"m.server": "https://matrix.example"}', None),
        (b'{"m.server": "matrix.example:0"}', None),
        (b'{"m.server": "matrix.example:65536"}', None),
        (b'{"m.server": ""}', None),
        (b'{"m.server": null}', None),
        (b'["m.server"]', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_well_known_files_are_parsed(body: bytes, name: str | None) -> None:
    assert read_well_known(body) == name


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 24 * 3600),
        ({"cache-control": "public, max-age=7200"}, 7200),
        ({"cache-control": "max-age=7200", "expires": "Thu, 01 Jan 1970 00:00:00 GMT"}, 7200),
        ({"cache-control": "s-maxage=7200"}, 24 * 3600),
        ({"cache-control": "no-store"}, SHORTEST_SECONDS),
        ({"cache-control": "max-age=0"}, SHORTEST_SECONDS),
        ({"cache-control": "max-age=99999999"}, LONGEST_SECONDS),
        ({"expires": "Thu, 01 Jan 1970 03:00:00 GMT"}, 3 * 3600 - 1000),
        ({"expires": "Thu, 01 Jan 1970 00:00:00 GMT"}, SHORTEST_SECONDS),
        ({"expires": "0"}, SHORTEST_SECONDS),
        ({"expires": "Fri, 31 Dec 10000 23:59:59 GMT"}, SHORTEST_SECONDS),
    ],
)
def test_the_cache_time_of_a_well_known_file_is_bounded(
    headers: dict[str, str], seconds: float
) -> None:
    assert well_known_seconds(headers, now=1000.0) == seconds


SERVICES = st.lists(
    st.builds(
        Service, st.integers(0, 3), st.integers(0, 5), st.sampled_from("abcdef"), st.just(8448)
    ),
    max_size=6,
)


@settings(max_examples=100)
@given(SERVICES, st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6))
def test_srv_records_are_tried_by_priority(services: list[Service], draws: list[float]) -> None:
    ordered = order_services(services, draws)
    key = lambda each: (each.priority, each.weight, each.host)  # noqa: E731
    assert sorted(ordered, key=key) == sorted(services, key=key)
    assert [each.priority for each in ordered] == sorted(each.priority for each in services)


def test_srv_records_of_equal_priority_are_chosen_by_weight() -> None:
    services = [Service(1, 1, "light", 1), Service(1, 3, "heavy", 1), Service(1, 0, "none", 1)]
    first = [order_services(services, [step / 100, 0, 0])[0].host for step in range(100)]
    assert (first.count("light"), first.count("heavy"), first.count("none")) == (25, 75, 0)


def test_the_certificate_is_for_the_delegated_name_not_the_srv_target() -> None:
    route = route_by_services("matrix.example", [Service(1, 1, "machine.example", 5)], [0.0])
    assert route == Route("matrix.example", "matrix.example", (Hop("machine.example", 5),))
