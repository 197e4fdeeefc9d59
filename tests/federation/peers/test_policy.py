"""The federation policy: lists of names and patterns, simulation, disabled federation, changed
rules."""

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import provider

from federation.peers.federation_policy import (
    FederationPolicy,
    InvalidPattern,
    ServerPatterns,
    make_rules,
)
from federation.protocol.errors import Forbidden
from federation.protocol.ids import ServerName
from homeserver.config.load import ConfigError
from homeserver.wiring.federation_peers import read_policy_rules
from tests.helpers.network import Network

HERE, NORTH, SOUTH = (
    ServerName("here.example"),
    ServerName("north.example"),
    ServerName("south.example"),
)


def allows(
    name: str, allowed: list[str] | None, denied: tuple[str, ...] = (), *, enabled: bool = True
) -> bool:
    return FederationPolicy(
        own=HERE, rules=make_rules(allowed, denied, enabled=enabled), seconds=lambda: 0.0
    ).allows(ServerName(name))


@pytest.mark.parametrize(
    ("patterns", "names", "others"),
    [
        (
            ["a.example"],
            ["a.example", "A.Example"],
            ["b.a.example", "a.example:80", "xa.example", "a-example"],
        ),
        (["a.example:80"], ["a.example:80"], ["a.example"]),
        (
            ["*.a.example"],
            ["b.a.example", "c.b.A.example"],
            ["a.example", "b.a.example.evil", "b.a-example"],
        ),
        (["s?.example"], ["s1.example"], ["s.example", "s12.example"]),
        (["*"], ["a.example", "1.2.3.4:80", "[::1]"], []),
        (
            ["/s[0-9]+[.]example/"],
            ["s1.example", "S12.EXAMPLE"],
            ["s.example", "xs1.example", "s1.examples"],
        ),
        (["/a|b/", "c"], ["a", "b", "c"], ["ab", "bc"]),
        (["[::1]:80"], ["[::1]:80"], ["[::1]"]),
        ([], [], ["a.example", ""]),
    ],
)
def test_patterns_match_server_names(
    patterns: list[str], names: list[str], others: list[str]
) -> None:
    found = ServerPatterns(patterns)
    assert [name for name in names + others if found.match(name)] == names


def test_a_denied_server_is_denied_with_any_port_though_another_rule_allows_it() -> None:
    denied = ("evil.example", "*.evil.example")
    for name in (
        "evil.example",
        "EVIL.example",
        "evil.example:8449",
        "a.evil.example:1",
        "evil.example.",
        "evil.example.:1",
    ):
        assert not allows(name, None, denied)
        assert not allows(name, [name], denied)
    assert allows("good.example", None, denied)


def test_our_own_name_is_always_allowed() -> None:
    assert allows(HERE, [])
    assert allows(HERE, None, ("*",))
    assert allows(HERE, None, enabled=False)
    assert not allows(NORTH, None, enabled=False)


@pytest.mark.parametrize("pattern", ["/(/", "/[/"])
def test_an_invalid_expression_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidPattern):
        ServerPatterns([pattern])


def test_a_simulation_refuses_nothing_and_names_each_server_once_an_hour() -> None:
    clock = Clock()
    policy = FederationPolicy(
        own=HERE, rules=make_rules([NORTH], is_simulation=True), seconds=clock.seconds
    )
    named: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "would refuse" in str(event.get("log_format")):
            named.append(str(event["server"]))

    globalLogPublisher.addObserver(observe)
    try:
        for _ in range(3):
            policy.check_origin(SOUTH)
            policy.check_destination(NORTH)
        assert named == [SOUTH]
        clock.advance(3600)
        policy.check_destination(SOUTH)
        assert named == [SOUTH, SOUTH]
    finally:
        globalLogPublisher.removeObserver(observe)


async def test_rules_change_while_the_server_runs(network: Network) -> None:
    north = network.add(NORTH)
    network.add(SOUTH)
    policy, requests = north.app.peers.policy, north.app.peers.requests
    path = "/_matrix/federation/v1/version"
    assert await requests.get(SOUTH, path, signed=False)
    policy.change(make_rules(["east.example"]))
    with pytest.raises(Forbidden, match=r"does not allow federation with south\.example"):
        await requests.get(SOUTH, path, signed=False)
    policy.change(read_policy_rules(north.config.federation))
    assert await requests.get(SOUTH, path, signed=False)


async def test_with_federation_off_all_servers_are_denied(network: Network) -> None:
    off = network.add(NORTH, "federation: {enabled: false}\n")
    south = network.add(SOUTH)
    with pytest.raises(Forbidden):
        await off.app.peers.requests.get(SOUTH, "/_matrix/federation/v1/version")
    for path in (
        "/_matrix/federation/v1/version",
        "/_matrix/key/v2/server",
        f"/_matrix/key/v2/query/{SOUTH}",
    ):
        assert off.get(path).json["errcode"] == "M_UNRECOGNIZED"
        assert south.get(path).status == 200
    assert off.get("/_matrix/client/versions").status == 200


def test_an_invalid_pattern_is_a_configuration_error(network: Network) -> None:
    with pytest.raises(
        ConfigError, match=r"federation_domain_blacklist.*no valid regular expression"
    ):
        network.add(NORTH, 'federation_domain_blacklist: ["/(/"]\n')
