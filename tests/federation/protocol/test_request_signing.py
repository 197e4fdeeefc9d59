"""The X-Matrix header: made in the oldest form, read by RFC 9110, believed only if all fits."""

from typing import Any

import msgspec
import pytest
import signedjson.sign
from hypothesis import given, settings
from hypothesis import strategies as st
from signedjson.key import decode_signing_key_base64

from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import Unauthorized
from federation.protocol.ids import ServerName
from federation.protocol.request_signing import (
    MAX_HEADER_CHARS,
    check_request,
    encode_request,
    make_authorization,
    parse_authorization,
)
from federation.protocol.signing import SigningKey
from tests.federation.protocol.strategies import json_values
from tests.federation.protocol.vectors import cases, load, signing_key

KEY = signing_key()
CASES = cases("signing", "request_signing")
THERE = ServerName("other.example")


def arguments(case: Any) -> dict[str, Any]:
    return {name: case[name] for name in ("method", "uri", "destination", "content")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["uri"])
def test_worked_examples_are_signed(case: Any) -> None:
    assert encode_request(**arguments(case), origin=case["origin"]).decode() == case["signed_bytes"]
    header = make_authorization(KEY, **arguments(case), origin=case["origin"])
    assert header == case["authorization_header"]
    claimed = parse_authorization(header)
    assert (claimed.origin, claimed.destination, claimed.key_id) == ("domain", THERE, "ed25519:1")
    assert claimed.signature == case["signature"]
    check_request(claimed, KEY.public_key, **arguments(case))


def test_a_canonical_body_is_signed_unchanged() -> None:
    case = CASES[1]
    raw = msgspec.Raw(encode_canonical(case["content"]))
    claimed = parse_authorization(case["authorization_header"])
    check_request(claimed, KEY.public_key, **{**arguments(case), "content": raw})


@settings(max_examples=50)
@given(json_values.filter(lambda value: value is not None), st.text("/?=&%2aé", max_size=10))
def test_the_signed_bytes_equal_the_signedjson_package(content: Any, uri: str) -> None:
    request = {"method": "PUT", "uri": uri, "origin": "a", "destination": "b", "content": content}
    key = decode_signing_key_base64("ed25519", "1", load("signing", "signing_key")["seed_base64"])
    theirs = signedjson.sign.sign_json(dict(request), "a", key)["signatures"]["a"]["ed25519:1"]
    assert KEY.sign(encode_request(**request)) == theirs


@pytest.mark.parametrize(
    "change",
    [
        {"method": "POST"},
        {"uri": "/_matrix/federation/v1/send/1234?x= y"},
        {"content": None},
        {"content": {}},
        {"destination": "third.example"},
    ],
)
def test_a_changed_request_is_refused(change: dict[str, Any]) -> None:
    claimed = parse_authorization(CASES[1]["authorization_header"])
    with pytest.raises(Unauthorized):
        check_request(claimed, KEY.public_key, **{**arguments(CASES[1]), **change})


def test_another_key_is_refused() -> None:
    claimed = parse_authorization(CASES[0]["authorization_header"])
    with pytest.raises(Unauthorized):
        check_request(claimed, SigningKey("1", b"1" * 32).public_key, **arguments(CASES[0]))


def test_a_signature_without_a_destination_is_accepted() -> None:
    message = encode_request(method="GET", uri="/x", origin="a.b", destination=None, content=None)
    assert message == b'{"method":"GET","origin":"a.b","uri":"/x"}'
    claimed = parse_authorization(f'X-Matrix origin=a.b,key="ed25519:1",sig="{KEY.sign(message)}"')
    assert claimed.destination is None
    check_request(claimed, KEY.public_key, method="GET", uri="/x", destination=THERE, content=None)


@pytest.mark.parametrize(
    "header",
    [
        'X-Matrix origin="a.b:80",destination="c.d",key="ed25519:1",sig="A/+"',
        'x-matrix   ORIGIN="a.b:80" ,\t destination=c.d, key=ed25519:1,sig="A/+"',
        r'X-Matrix sig="A\/+",key="ed\25519:1",origin=a.b:80,destination="c.d"',
        'X-Matrix origin="a.b:80",destination="c.d",key="ed25519:1",unknown="é, \\" =",sig="A/+"',
    ],
)
def test_the_forms_of_rfc_9110_are_read(header: str) -> None:
    claimed = parse_authorization(header)
    assert (claimed.origin, claimed.destination) == ("a.b:80", "c.d")
    assert (claimed.key_id, claimed.signature) == ("ed25519:1", "A/+")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "Bearer abc",
        'X-Matrixorigin="a",key="e:1",sig="A"',
        'X-Matrix origin="a",key="e:1"',
        'X-Matrix origin="a",sig="A"',
        'X-Matrix key="e:1",sig="A"',
        'X-Matrix origin="a",origin="b",key="e:1",sig="A"',
        'X-Matrix origin="a",Origin="a",key="e:1",sig="A"',
        'X-Matrix origin="a" key="e:1",sig="A"',
        'X-Matrix origin="a",,key="e:1",sig="A"',
        'X-Matrix origin="a",key="e:1",sig="A",',
        'X-Matrix origin="a",key="e:1",sig="A',
        'X-Matrix origin="a",key="e:1",sig=A/B',
        'X-Matrix origin ="a",key="e:1",sig="A"',
        'X-Matrix origin="a b",key="e:1",sig="A"',
        'X-Matrix origin="a",key="e",sig="A"',
        'X-Matrix origin="a",destination="",key="e:1",sig="A"',
        'X-Matrix origin="a\n",key="e:1",sig="A"',
        'X-Matrix origin="a",key="e:1",sig="' + "A" * MAX_HEADER_CHARS + '"',
    ],
)
def test_other_header_forms_are_refused(header: str) -> None:
    with pytest.raises(Unauthorized):
        parse_authorization(header)


@settings(max_examples=100)
@given(st.text(max_size=30) | st.text('origin="a,b\\ \t=:', max_size=60))
def test_any_header_is_a_signature_or_unauthorized(text: str) -> None:
    with pytest.raises(Unauthorized):
        parse_authorization("X-Matrix " + text)
