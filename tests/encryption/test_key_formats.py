"""Valid and invalid forms of uploaded keys, and counts after many claims."""

from secrets import token_hex

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.keys import V3, claim, one_time_keys, sync, upload
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient


@pytest.mark.parametrize(
    "field", ["one_time_keys", "fallback_keys", "org.matrix.msc2732.fallback_keys"]
)
@pytest.mark.parametrize(
    ("keys", "errcode"),
    [
        (b"null", "M_BAD_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b'{"a:b":1}', "M_BAD_JSON"),
        (b'{"a:b":"\xff"}', "M_NOT_JSON"),
        (b'{"a:b":' + b'{"a":' * 101 + b"1" + b"}" * 102, "M_BAD_JSON"),
        (b'{"no name":"a"}', "M_INVALID_PARAM"),
        (
            b"{" + b",".join(b'"a:%d":"a"' % number for number in range(1001)) + b"}",
            "M_INVALID_PARAM",
        ),
    ],
)
def test_malformed_keys_are_refused(
    server: TestServer, alice: User, field: str, keys: bytes, errcode: str
) -> None:
    answer = server.client.request(
        "POST", f"{V3}/keys/upload", token=alice.token, body=b'{"%b":%b}' % (field.encode(), keys)
    )
    assert (answer.status, answer.errcode) == (400, errcode)


@pytest.mark.parametrize(
    "field", ["one_time_keys", "fallback_keys", "org.matrix.msc2732.fallback_keys"]
)
def test_an_error_names_the_malformed_field(alice: User, field: str) -> None:
    answer = alice.post(f"{V3}/keys/upload", {field: {"a:b": 1}})
    assert answer.json["error"].startswith(f"{field}: ")


def test_a_key_may_contain_unusual_values(alice: User, bob: User) -> None:
    key = {"key": "k", "b": [1, {"z": 2, "a": None}], "a": 3}
    upload(alice, one_time_keys={"signed_curve25519:a": key})
    assert claim(bob, alice) == {"signed_curve25519:a": key}


def test_any_number_of_claims_since_the_last_read_is_counted_down(alice: User, bob: User) -> None:
    upload(alice, one_time_keys=one_time_keys(*(f"a{number}" for number in range(90))))
    since = sync(alice)["next_batch"]
    for claimed in (35, 2):
        for _ in range(claimed):
            claim(bob, alice)
        left = sync(alice, since)["device_one_time_keys_count"]
    assert left == {"signed_curve25519": 53}
    claim(bob, alice)
    assert upload(alice, one_time_keys=one_time_keys("b")) == {"signed_curve25519": 53}
    assert sync(alice, since)["device_one_time_keys_count"] == {"signed_curve25519": 53}


ASKS = ["sync", "sync on", "sliding sync"]
claimed_or_asked = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.lists(st.integers(0, 2), unique=True, min_size=1)),
        st.tuples(
            st.sampled_from(["upload", "fallback", "rename", *ASKS]),
            st.integers(0, 2).map(lambda at: [at]),
        ),
    ),
    max_size=30,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(claimed_or_asked)
def test_each_device_gets_its_own_count_after_claims_and_reads_of_others(
    server: TestServer, steps: list[tuple[str, list[int]]]
) -> None:
    users = [server.register(f"u{token_hex(8)}") for _ in range(3)]
    sliding = [SlidingClient(user, extensions={"e2ee": {"enabled": True}}) for user in users]
    since: list[str | None] = [None] * 3
    left, unused = [0] * 3, [False] * 3
    have_fallback: set[int] = set()
    for step, whom in [*steps, *((asks, [at]) for asks in ASKS for at in range(3))]:
        at, user = whom[0], users[whom[0]]
        match step:
            case "claim":
                devices = {
                    users[each].user_id: {users[each].device_id: "signed_curve25519"}
                    for each in whom
                }
                given_out = (
                    users[0]
                    .post(f"{V3}/keys/claim", {"one_time_keys": devices})
                    .json["one_time_keys"]
                )
                assert given_out.keys() == {
                    users[each].user_id for each in whom if left[each] or each in have_fallback
                }
                unused = [
                    each and not (at in whom and not left[at]) for at, each in enumerate(unused)
                ]
                left = [
                    max(0, number - 1) if at in whom else number for at, number in enumerate(left)
                ]
            case "upload":
                left[at] += 2
                received = upload(user, one_time_keys=one_time_keys(token_hex(8), token_hex(8)))
                assert received == {"signed_curve25519": left[at]}
            case "fallback":
                have_fallback.add(at)
                unused[at] = True
                upload(user, fallback_keys=one_time_keys(token_hex(8)))
            case "rename":
                user.put(f"{V3}/devices/{user.device_id}", {"display_name": token_hex(8)})
            case _:
                if step == "sliding sync":
                    received = sliding[at].sync()["extensions"]["e2ee"]
                else:
                    received = sync(user, since[at] if step == "sync on" else None)
                    since[at] = received["next_batch"]
                assert received["device_one_time_keys_count"] == {"signed_curve25519": left[at]}
                assert (
                    received["device_unused_fallback_key_types"]
                    == ["signed_curve25519"] * unused[at]
                )
