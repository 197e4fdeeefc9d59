"""Hypothesis strategies for JSON, as a hostile server would write it, and for PDUs."""

from typing import Any

from hypothesis import strategies as st

from federation.protocol.canonical_json import MAX_SAFE_INTEGER

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
safe_integers = st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
strict_scalars = st.none() | st.booleans() | safe_integers | texts
scalars = (
    strict_scalars | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=15,
    )


json_values = nested(scalars)
strict_values = nested(strict_scalars)
strict_objects = st.dictionaries(texts, strict_values, max_size=4)

HASH = "0123456789abcdefghijABCDEFGHIJ0123456789-_A"
EVENT_TYPES = (
    "m.room.aliases",
    "m.room.create",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.member",
    "m.room.message",
    "m.room.power_levels",
    "m.room.redaction",
)
CONTENT_KEYS = (
    "aliases",
    "allow",
    "ban",
    "creator",
    "history_visibility",
    "invite",
    "join_authorised_via_users_server",
    "join_rule",
    "membership",
    "redacts",
    "third_party_invite",
    "users",
)
contents = st.dictionaries(
    st.sampled_from(CONTENT_KEYS) | texts, strict_values | strict_objects, max_size=6
)

# Fields that are right, wrong or strange, so that many PDUs pass and each check is met.
hostile_pdus = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(EVENT_TYPES) | json_values,
        "sender": st.sampled_from(["@alice:example.com", "@:example.com", "alice"]) | json_values,
        "room_id": st.sampled_from(["!r:example.com", "!" + HASH]) | json_values,
        "event_id": st.just("$e:example.com") | json_values,
        "state_key": texts | json_values,
        "content": contents | json_values,
        "depth": st.integers(0, 9) | json_values,
        "origin_server_ts": st.just(1) | json_values,
        "prev_events": st.just([])
        | st.lists(st.just("$" + HASH) | st.just(["$a:b", {}]) | json_values, max_size=3),
        "auth_events": st.just([]) | json_values,
        "hashes": st.just({"sha256": ""}) | json_values,
        "signatures": st.just({"example.com": {"ed25519:1": ""}}) | json_values,
        "unsigned": json_values,
        "redacts": texts | json_values,
    },
)


_types = st.sampled_from(EVENT_TYPES)
_depths = st.integers(0, 2**53 - 1)
_further_fields = st.dictionaries(
    st.sampled_from(["membership", "origin", "prev_state", "x.y", "redacts"]), texts
)
_state_keys = st.text("abc@:.", max_size=10)


@st.composite
def pdus(draw: st.DrawFn) -> dict[str, Any]:
    """Well-formed PDUs of room versions 3 to 11."""
    pdu: dict[str, Any] = {
        "type": draw(_types),
        "sender": "@alice:example.com",
        "room_id": "!room:example.com",
        "content": draw(contents),
        "depth": draw(_depths),
        "origin_server_ts": draw(safe_integers),
        "prev_events": ["$" + HASH],
        "auth_events": [],
        "hashes": {"sha256": "x"},
        "signatures": {},
    }
    pdu |= draw(_further_fields)
    if draw(st.booleans()):
        pdu["state_key"] = draw(_state_keys)
    return pdu
