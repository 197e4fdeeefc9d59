"""Redaction: removes the content of an event, and decides whether a redaction event may do that.

A redaction keeps the fields that authorization needs. Signatures and, from room version 3 on, the
event id are computed from the redacted event. So the redacted copy has the same event id as the
complete event, and the same signatures, which stay valid.

`unsigned` is always removed. When a redacted event is shown to a client, other code adds a new
`unsigned` with `redacted_because`.

spec: rooms/v1#redactions … rooms/v12#redactions
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from federation.protocol.room_versions import RedactionRules, RoomVersion

_KEPT_ALWAYS: Final = frozenset(
    {
        "auth_events",
        "content",
        "depth",
        "event_id",
        "hashes",
        "origin_server_ts",
        "prev_events",
        "room_id",
        "sender",
        "signatures",
        "state_key",
        "type",
    }
)
_KEPT_BEFORE_V11: Final = _KEPT_ALWAYS | {"membership", "origin", "prev_state"}

_POWER_LEVELS: Final = (
    "ban",
    "events",
    "events_default",
    "kick",
    "redact",
    "state_default",
    "users",
    "users_default",
)

Content = Mapping[str, Any]


def redact(version: RoomVersion, pdu: Mapping[str, Any]) -> dict[str, Any]:
    """The redacted copy of a PDU. Its parts are shared with the original, which is left as it is.

    Never raises, whatever the values are. Redacting twice is redacting once.
    """
    rules = version.redaction
    kept = _KEPT_BEFORE_V11 if rules.keeps_origin_membership_prev_state else _KEPT_ALWAYS
    redacted = {key: value for key, value in pdu.items() if key in kept}
    redacted["content"] = redact_content(version, pdu.get("type"), pdu.get("content"))
    return redacted


def redact_content(version: RoomVersion, event_type: object, content: object) -> dict[str, Any]:
    """Return the redacted content: `{}` for most event types, and for content that is no object."""
    keep = _KEEPERS.get(event_type) if isinstance(event_type, str) else None
    return (
        keep(version.redaction, content)
        if keep is not None and isinstance(content, Mapping)
        else {}
    )


def may_redact(
    version: RoomVersion,
    *,
    redacter: str,
    target_sender: str,
    sender_level: float,
    redact_level: int,
) -> bool:
    """Whether an accepted redaction is applied to its target, both being in the same room.

    From version 3 on authorization lets every redaction in, and this decides: who has the level to
    redact may, and so may users of the server that the target came from. In versions 1 and 2
    authorization has decided already. `sender_level` is infinite for the creators of rooms that
    privilege them. spec: rooms/v3#handling-redactions
    """
    if version.redaction_event_authorised or sender_level >= redact_level:
        return True
    return redacter.partition(":")[2] == target_sender.partition(":")[2]


def _member(rules: RedactionRules, content: Content) -> dict[str, Any]:
    kept = _only(content, ("membership",))
    if rules.keeps_join_authorised_via:
        kept |= _only(content, ("join_authorised_via_users_server",))
    if rules.keeps_third_party_signed:
        invite = content.get("third_party_invite")
        if isinstance(invite, Mapping) and "signed" in invite:
            kept["third_party_invite"] = {"signed": invite["signed"]}
    return kept


def _create(rules: RedactionRules, content: Content) -> dict[str, Any]:
    return dict(content) if rules.keeps_whole_create_content else _only(content, ("creator",))


def _join_rules(rules: RedactionRules, content: Content) -> dict[str, Any]:
    return _only(content, ("join_rule", "allow") if rules.keeps_join_rule_allow else ("join_rule",))


def _power_levels(rules: RedactionRules, content: Content) -> dict[str, Any]:
    return _only(content, (*_POWER_LEVELS, "invite") if rules.keeps_invite_level else _POWER_LEVELS)


def _aliases(rules: RedactionRules, content: Content) -> dict[str, Any]:
    return _only(content, ("aliases",)) if rules.keeps_aliases else {}


def _history_visibility(_rules: RedactionRules, content: Content) -> dict[str, Any]:
    return _only(content, ("history_visibility",))


def _redaction(rules: RedactionRules, content: Content) -> dict[str, Any]:
    return _only(content, ("redacts",)) if rules.keeps_redacts_in_content else {}


def _only(content: Content, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}


_KEEPERS: Final[Mapping[str, Callable[[RedactionRules, Content], dict[str, Any]]]] = {
    "m.room.aliases": _aliases,
    "m.room.create": _create,
    "m.room.history_visibility": _history_visibility,
    "m.room.join_rules": _join_rules,
    "m.room.member": _member,
    "m.room.power_levels": _power_levels,
    "m.room.redaction": _redaction,
}
