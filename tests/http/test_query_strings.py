"""Fast and slow parsing of query strings give the same arguments."""

from typing import Any, Literal

from hypothesis import example, given
from hypothesis import strategies as st

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.parameters import CACHED_FIELDS, MAX_CACHED_FIELD, bind, find_fields


@endpoint("GET", "/read", auth=Auth.USER)
async def get_read(
    caller: Requester,
    *,
    since: str | None = None,
    timeout: int = 0,
    full: bool = False,
    mode: Literal["a", "b"] | None = None,
    user: UserID | None = None,
) -> Any:
    """Declare the parameters of typical queries."""


READER = bind(get_read.__dict__["__endpoint__"]).query
FIELDS = st.tuples(
    st.sampled_from(
        ["since", "timeout", "full", "mode", "user", "other", "", "sin%63e", "timeout+"]
    ),
    st.sampled_from(["", "="]),
    st.sampled_from(
        [
            "",
            "0",
            "30000",
            "-1",
            "999999",
            "1_0",
            "9" * 17,
            "true",
            "a",
            "@a:b",
            "%40a%3Ab",
            "s1=2",
            "a b",
        ]
    )
    | st.text("a09=+%&é\0", max_size=6),
)


def outcome(read: Any) -> dict[str, object] | str:
    arguments: dict[str, object] = {}
    try:
        read(arguments)
    except InvalidParam:
        return "refused"
    return arguments


@given(st.lists(FIELDS, max_size=5).map(lambda fields: "&".join(map("".join, fields)).encode()))
@example(b"timeout=1&timeout=many")
@example(b"timeout=many&timeout=1")
@example(b"full=true&&=&mode=b&mode=c")
@example(b"since=%ff")
@example(b"since=\0")
@example(b"since=%00")
@example(b"other=%ff")
@example(b"sin%63e=1&since=2")
@example(b"since=a%26timeout%3Dmany+b&%74imeout=%31")
@example(b"since=1" + b"&" * 200)
def test_fast_and_slow_parsing_agree(query: bytes) -> None:
    for _ in range(2):  # the second time from the cache
        fast = outcome(lambda arguments: READER.read(query, arguments))
    assert fast == outcome(lambda arguments: READER.read_fields(find_fields(query), arguments))


def test_the_first_value_counts_and_unknown_fields_are_ignored() -> None:
    query = b"other=1&timeout=30000&since=a=b&timeout=many&user=@a:b&full=true"
    assert outcome(lambda arguments: READER.read(query, arguments)) == {
        "timeout": 30000,
        "since": "a=b",
        "user": "@a:b",
        "full": True,
    }


def test_repeated_fields_are_cached_and_changing_ones_are_not() -> None:
    reader = bind(get_read.__dict__["__endpoint__"]).query
    for number in range(3 * CACHED_FIELDS):
        reader.read(
            f"since={number}&timeout=30000&full=true&mode=a&other=%20&access_token=%20".encode(), {}
        )
    assert set(reader.cached) == {"timeout=30000", "full=true", "mode=a"}
    for number in range(3 * CACHED_FIELDS):
        reader.read(f"since=%20{number}".encode(), {})
        assert len(reader.cached) <= CACHED_FIELDS
    reader.read(b"since=%20" + b"a" * MAX_CACHED_FIELD, {})
    assert not any(len(each) > MAX_CACHED_FIELD for each in reader.cached)
