"""Contents of to-device messages are stored as they came if every client can read them; otherwise
they are encoded again or refused."""

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.canonical_json import MAX_SENT_DEPTH
from federation.protocol.errors import BadJson, NotJson
from homeserver.services.encryption.to_device_content import check_contents
from tests.helpers.keys import V3, sync
from tests.helpers.server import TestServer

OLM = {
    "algorithm": "m.olm.v1.curve25519-aes-sha2",
    "sender_key": "5QOXXTEUyBVtzXaMfTUVOBX79EPOKoIaAuxGRHw8Blo",
    "ciphertext": {"9Q+Aw1s9": {"type": 0, "body": "AwpxLk4YI3E6e41e5+/1e9"}},
}
PIECES = [
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"1",
        b"-",
        b".",
        b"e",
        b"E",
        b"t",
        b"\0",
        b"\n",
        b" ",
        b"\x1f",
        b"null",
        b"+",
        b"0",
    ),
    *(
        b"\xc3\xa9",
        b"\xff",
        b"\\u",
        b"\\ud800",
        b"\\udc00",
        b"\\ud83d\\ude00",
        b"\\",
        b"d8",
        b"\xed\xa0\x80",
        b"\xc0\x80",
    ),
    *(b"1e999", b"-1E+400", b"1.0e-5", b"9" * 400, b": 9e9999", b':1"x":1e999'),
]
BODIES = [
    json.dumps(
        {"content": {**OLM, "n": 2.5, "z": -3e4, "u": None, "t": True, "s": '\u20ac\\"'}},
        ensure_ascii=escaped,
        separators=using,
    )
    for escaped in (False, True)
    for using in ((",", ":"), (", ", ": "))
]

_read_body = msgspec.json.Decoder(dict[str, msgspec.Raw])


def strictly(content: bytes) -> dict[str, Any]:
    """Decode as every client does. Raises ValueError."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    def keep(number: str) -> float:
        found = float(number)
        if found in (float("inf"), -float("inf")):
            raise ValueError(f"{number} is too large")
        return found

    value = json.loads(content.decode(), parse_constant=refuse, parse_float=keep)
    assert isinstance(value, dict)
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogate
    return value


@given(st.integers(0, 2**64))
def test_accepted_contents_can_be_decoded(seed: int) -> None:
    random = Random(seed)
    body = bytearray(random.choice(BODIES).encode())
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(body))
        match random.randrange(3):
            case 0:
                del body[at : at + random.randint(1, 3)]
            case 1:
                body[at:at] = random.choice(PIECES)
            case _:
                body[at : at + 1] = random.choice(PIECES)
    try:
        came = _read_body.decode(bytes(body))
    except (ValueError, RecursionError):
        return
    try:
        found = check_contents(list(came.values()))
    except (BadJson, NotJson):
        return
    for content in found:
        strictly(content)


def test_plain_contents_are_stored_unchanged() -> None:
    plain = json.dumps(OLM).encode()
    assert check_contents([msgspec.Raw(plain)] * 3) == [plain] * 3
    other = '{"methods": ["m.sas.v1"], "é": 1.5e3}'.encode()
    assert check_contents([msgspec.Raw(plain), msgspec.Raw(other)]) == [
        plain,
        '{"methods":["m.sas.v1"],"é":1500.0}'.encode(),
    ]


@pytest.mark.parametrize(
    ("content", "errcode"),
    [
        (b'{"x":1e999}', "M_BAD_JSON"),
        (b'{"x": -1E400}', "M_BAD_JSON"),
        (b'{"x":[1e999]}', "M_BAD_JSON"),
        (b'{"x":"\xff"}', "M_NOT_JSON"),
        (b'{"\xed\xa0\x80":1}', "M_NOT_JSON"),
        (b'{"x":"\\ud800"}', "M_NOT_JSON"),
        (b'{"x":"\n"}', "M_NOT_JSON"),
        (b'"text"', "M_BAD_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b"null", "M_BAD_JSON"),
        *(
            (b'{"x":' * depth + b"1" + b"}" * depth, "M_BAD_JSON")
            for depth in (MAX_SENT_DEPTH + 1, 5000)
        ),
        (b'{"x":' + b"[" * MAX_SENT_DEPTH + b"]" * MAX_SENT_DEPTH + b"}", "M_BAD_JSON"),
    ],
)
def test_unreadable_messages_are_refused(server: TestServer, content: bytes, errcode: str) -> None:
    """The complete request is refused, for local and remote users, and for existing and missing
    devices."""
    alice, bob = server.register("alice"), server.register("bob")
    good = json.dumps(OLM).encode()
    for user, device in (
        (bob.user_id, bob.device_id),
        (bob.user_id, "NONE"),
        ("@far:elsewhere.example", "D"),
    ):
        own = b'"%b":{"%b":%b}' % (alice.user_id.encode(), alice.device_id.encode(), good)
        body = b'{"messages":{%b,"%b":{"%b":%b}}}' % (own, user.encode(), device.encode(), content)
        answer = server.put(
            f"{V3}/sendToDevice/m.test/{user[1:4]}{device}", body=body, token=alice.token
        )
        assert (answer.status, answer.errcode) == (400, errcode), answer.body
    assert sync(alice)["to_device"]["events"] == sync(bob)["to_device"]["events"] == []


def test_a_message_arrives_as_it_was_sent(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    contents: list[dict[str, Any]] = [
        OLM,
        {},
        {"methods": ["m.sas.v1"], "n": 1e300, "é": "\U0001f600"},
        {"i": -(2**53)},
        {"x": {"y": {}}},
        {"wide": {str(number): {} for number in range(500)}},
        json.loads('{"x":' * MAX_SENT_DEPTH + "1" + "}" * MAX_SENT_DEPTH),
    ]
    for number, content in enumerate(contents):
        body = {"messages": {bob.user_id: {bob.device_id: content}}}
        assert alice.put(f"{V3}/sendToDevice/m.test/{number}", body).status == 200
    assert [event["content"] for event in sync(bob)["to_device"]["events"]] == contents
