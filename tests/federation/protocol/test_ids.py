"""The grammar of identifiers: what is taken from others, and what this server gives out."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.errors import InvalidParam, InvalidUsername
from federation.protocol.ids import (
    ServerName,
    could_be_found,
    domain_of,
    host_of,
    is_compliant_user_id,
    is_ip_literal,
    is_namespaced,
    is_opaque_id,
    is_room_id,
    is_user_id,
    localpart_of,
    parse_device_id,
    parse_event_id,
    parse_key_id,
    parse_new_user_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
    registered_domain_of,
)

HASH = "XqxmpuIz2-GG_5RRvWqK-RYBVFhL5TnhF_xY-Mi0PRY"
LONG = "a" * 242


@pytest.mark.parametrize(
    "text",
    [
        "matrix.org",
        "matrix.org:8888",
        "1.2.3.4",
        "1.2.3.4:1234",
        "[1234:5678::abcd]",
        "[1234:5678::abcd]:5678",
        "[::ffff:1.2.3.4]",
        "localhost",
        "EXAMPLE.com",
        "xn--e1afmkfd.uz",
        "a" * 255,
    ],
)
def test_valid_server_names_are_accepted(text: str) -> None:
    assert parse_server_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "a b",
        "пример.uz",
        "a_b.com",
        "example.com:",
        "example.com:123456",
        "example.com:65536",
        "[::1]:99999",
        "example.com:8a",
        "example.com:٣",
        "example.com:80:80",
        "256.1.1.1",
        "[::1",
        "[]",
        "[1:2]",
        "[1.2.3.4]",
        "::1",
        "a" * 256,
        "example.com\n",
        "a/b",
    ],
)
def test_invalid_server_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidParam):
        parse_server_name(text)


@pytest.mark.parametrize(
    ("server", "can"),
    [
        ("example.com", True),
        ("example.com:8448", True),
        ("localhost", True),
        ("1.2.3.4", True),
        ("[::1]:8448", True),
        (f"{'x' * 63}.org", True),
        (f"{'x' * 64}.org", False),
        ("bad..name", False),
        (".org", False),
        ("example.org.", True),
        ("example.com:0", False),
        ("example.com:65535", True),
    ],
)
def test_servers_with_impossible_names_cannot_be_found(server: str, *, can: bool) -> None:
    assert could_be_found(parse_server_name(server)) == can


@pytest.mark.parametrize(
    ("server", "host", "literal"),
    [
        ("example.com", "example.com", False),
        ("example.com:8448", "example.com", False),
        ("1.2.3.4:8448", "1.2.3.4", True),
        ("[::1]", "[::1]", True),
        ("[::1]:8448", "[::1]", True),
        ("1.2.3.example", "1.2.3.example", False),
    ],
)
def test_hosts_and_ip_literals_are_recognized(server: str, host: str, literal: bool) -> None:
    assert (host_of(server), is_ip_literal(server)) == (host, literal)


@pytest.mark.parametrize(
    "text",
    [
        "@alice:example.com",
        "@:example.com",
        "@Алиса:example.com",
        "@a b\t!:1.2.3.4:80",
        "@a:[::1]",
        f"@{LONG}:example.com",
    ],
)
def test_current_and_historical_user_ids_are_accepted(text: str) -> None:
    assert parse_user_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "alice:example.com",
        "@alice",
        "@alice:",
        "@a\x00:example.com",
        "@a:b:c",
        f"@a{LONG}:example.com",
        "@\ud800:a.b",
        "@a:b:65536",
        "@" + "я" * 125 + ":b.uz",
    ],
)
def test_invalid_user_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidParam):
        parse_user_id(text)


@pytest.mark.parametrize(
    ("text", "compliant"), [("@a~B:x", True), ("@:x", False), ("@é:x", False), ("@a b:x", False)]
)
def test_user_ids_of_the_current_grammar_are_recognized(text: str, compliant: bool) -> None:
    assert is_compliant_user_id(text) is compliant


def test_ids_with_an_impossible_port_are_accepted() -> None:
    """All servers have to agree about an event, and the grammar has five digits."""
    assert is_user_id("@a:b:99999")
    assert is_room_id("!a:b:99999")
    assert not is_user_id("@a:b:100000")


def test_new_user_ids_follow_the_current_grammar() -> None:
    assert (
        parse_new_user_id("a.b_c=d-e/f+0", ServerName("example.com"))
        == "@a.b_c=d-e/f+0:example.com"
    )
    for localpart in ("", "Alice", "é", "a b", "a:b", "a" * 243):
        with pytest.raises(InvalidUsername):
            parse_new_user_id(localpart, ServerName("example.com"))


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_room_id, "!opaque:example.com"),
        (parse_room_id, "!" + HASH),
        (parse_room_id, "!Комната:example.com:80"),
        (parse_event_id, "$opaque:example.com"),
        (parse_event_id, "$" + HASH),
        (parse_event_id, "$RrGxF28UrHLmoASHndYb9Jb/1SFww2ptmtur9INS438"),
        (parse_room_alias, "#маҳалла:example.uz"),
        (parse_device_id, "Моё устройство"),
        (parse_key_id, "ed25519:a_xyz"),
        (parse_key_id, "signed_curve25519:AAAA-+/"),
    ],
)
def test_other_valid_identifiers_are_accepted(parse: Callable[[str], str], text: str) -> None:
    assert parse(text) == text


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (
            parse_room_id,
            [
                "",
                "!",
                "!opaque",
                "#a:b",
                "!a\0:b",
                "!" + HASH[:-1],
                "!" + HASH + "a",
                "!:",
                "!a:b c",
            ],
        ),
        (parse_event_id, ["", "$", "!a:b", "$" + "a" * 255, "$a\0", "$\udfff"]),
        (
            parse_room_alias,
            ["", "#", "#a", "a:b", "#a:b:c", "#" + "a" * 253 + ":b", "#a\0:b", "#a:b:99999"],
        ),
        (parse_device_id, ["", "a" * 256, "a\0"]),
        (
            parse_key_id,
            [
                "",
                "ed25519",
                "ed25519:",
                ":a",
                "ed25519:a b",
                'ed25519:a"',
                "ED:a",
                "a:" + "b" * 254,
            ],
        ),
    ],
)
def test_other_invalid_identifiers_are_refused(
    parse: Callable[[str], str], texts: list[str]
) -> None:
    for text in texts:
        with pytest.raises(InvalidParam):
            parse(text)


def test_common_grammars_are_checked() -> None:
    assert is_namespaced("m.room.name")
    assert is_namespaced("com.example-x_1")
    assert not any(map(is_namespaced, ["", "1a", "M.a", "a/b", "a" * 256, "a\n"]))
    assert is_opaque_id("aZ09-._~")
    assert not any(map(is_opaque_id, ["", "a/b", "a" * 256, "é"]))


def test_identifiers_have_localpart_and_domain() -> None:
    assert (localpart_of("@a:b:80"), domain_of("@a:b:80")) == ("a", "b:80")
    assert localpart_of("@:b") == ""
    with pytest.raises(InvalidParam):
        domain_of("!" + HASH)


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_any_text_is_an_identifier_or_raises_invalid_param(text: str) -> None:
    for sigil, parse in (
        ("@", parse_user_id),
        ("!", parse_room_id),
        ("$", parse_event_id),
        ("#", parse_room_alias),
    ):
        for candidate in (text, sigil + text, f"{sigil}{text}:example.com"):
            with suppress(InvalidParam):
                assert parse(candidate) == candidate


@pytest.mark.parametrize(
    ("server", "domain"),
    [
        ("example.org", "example.org"),
        ("Matrix.A.example.org:8448", "example.org"),
        ("matrix.example.co.uk", "example.co.uk"),
        ("example.co.uk", "example.co.uk"),
        ("matrix.example.uk", "example.uk"),
        ("co.uk", "co.uk"),
        ("localhost:8448", "localhost"),
        ("192.0.2.7:8448", "192.0.2.7"),
        ("[2001:db8::1]:8448", "[2001:db8::1]"),
    ],
)
def test_the_registrable_domain_of_a_server_is_found(server: str, domain: str) -> None:
    assert registered_domain_of(server) == domain
