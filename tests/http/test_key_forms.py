"""What clients may send as keys, and how many are left when many were given out."""

import pytest

from homeserver.services.device_keys import COUNTED_AT_ONCE
from tests.helpers.keys import V3, claim, one_time_keys, sync, upload
from tests.helpers.server import TestServer, User


@pytest.fixture
def alice(server: TestServer) -> User:
    return server.register("alice")


@pytest.fixture
def bob(server: TestServer) -> User:
    return server.register("bob")


@pytest.mark.parametrize("field", ["one_time_keys", "fallback_keys", "org.matrix.msc2732.fallback_keys"])
@pytest.mark.parametrize(
    ("keys", "errcode"),
    [
        (b"null", "M_BAD_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b'{"a:b":1}', "M_BAD_JSON"),
        (b'{"a:b":"\xff"}', "M_NOT_JSON"),
        (b'{"a:b":' + b'{"a":' * 101 + b"1" + b"}" * 102, "M_BAD_JSON"),
        (b'{"no name":"a"}', "M_INVALID_PARAM"),
        (b"{" + b",".join(b'"a:%d":"a"' % number for number in range(1001)) + b"}", "M_INVALID_PARAM"),
    ],
)
def test_what_are_no_keys_is_refused(server: TestServer, alice: User, field: str, keys: bytes, errcode: str) -> None:
    answer = server.client.request(
        "POST", f"{V3}/keys/upload", token=alice.token, body=b'{"%b":%b}' % (field.encode(), keys)
    )
    assert (answer.status, answer.errcode) == (400, errcode)


@pytest.mark.parametrize("field", ["one_time_keys", "fallback_keys", "org.matrix.msc2732.fallback_keys"])
def test_it_is_said_where_something_of_another_form_is(alice: User, field: str) -> None:
    answer = alice.post(f"{V3}/keys/upload", {field: {"a:b": 1}})
    assert answer.json["error"].startswith(f"{field}: ")


def test_a_key_may_have_what_is_unusual_in_it(alice: User, bob: User) -> None:
    key = {"key": "k", "b": [1, {"z": 2, "a": None}], "a": 3}
    upload(alice, one_time_keys={"signed_curve25519:a": key})
    assert claim(bob, alice) == {"signed_curve25519:a": key}


def test_claims_are_counted_down_however_many_there_were_since_somebody_asked(alice: User, bob: User) -> None:
    upload(alice, one_time_keys=one_time_keys(*(f"a{number}" for number in range(90))))
    since = sync(alice)["next_batch"]
    for claimed in (COUNTED_AT_ONCE + 3, 2):
        for _ in range(claimed):
            claim(bob, alice)
        left = sync(alice, since)["device_one_time_keys_count"]
    assert left == {"signed_curve25519": 90 - COUNTED_AT_ONCE - 5}
    claim(bob, alice)
    assert upload(alice, one_time_keys=one_time_keys("b")) == {"signed_curve25519": 90 - COUNTED_AT_ONCE - 5}
    assert sync(alice, since)["device_one_time_keys_count"] == {"signed_curve25519": 90 - COUNTED_AT_ONCE - 5}
