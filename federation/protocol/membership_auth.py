"""Checks whether a change of membership is allowed: the authorization rule for m.room.member, in
every room version.

If a user has no membership event in the room's state, their membership counts as `leave`. If the
room has no join rule, the rule `invite` applies.

spec: rooms/v1#authorisation-rules 5, rooms/v7#authorisation-rules 4, rooms/v8#authorisation-rules
4, rooms/v12#authorisation-rules 5
"""

import base64
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec
from nacl.bindings import crypto_sign_BYTES, crypto_sign_PUBLICKEYBYTES
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from federation.protocol.auth_rules import AuthError, Rule
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import BadJson
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import is_user_id
from federation.protocol.power_levels import PowerLevels

MEMBER: Final = "m.room.member"
JOIN_RULES: Final = StateKey("m.room.join_rules", "")

_MOST_VERIFICATIONS: Final = 256
"""Pairs of signature and key that are tried for one third-party invite, which takes about 15 ms.
Usual invites have one or two."""

_TO_STANDARD_ALPHABET: Final = str.maketrans("-_", "+/")


class Situation(msgspec.Struct, frozen=True):
    """The input of a decision about a membership: the arguments of `event_auth.check_auth`."""

    state: Mapping[StateKey, Event]
    create: Event
    levels: PowerLevels
    signed_by: Collection[str] | None

    def membership(self, user_id: str) -> str:
        return membership_of(self.state, user_id)

    @property
    def join_rule(self) -> object:
        event = self.state.get(JOIN_RULES)
        return "invite" if event is None else event.content.get("join_rule", "invite")


def membership_of(state: Mapping[StateKey, Event], user_id: str) -> str:
    """The user's membership in that state: `leave` if it has none."""
    event = state.get(StateKey(MEMBER, user_id))
    return (event.membership if event is not None else None) or "leave"


def check_membership(event: Event, situation: Situation) -> None:
    """Raises `AuthError` unless the room's state allows this m.room.member event."""
    version = event.version
    content = event.content
    target = event.state_key
    if target is None or "membership" not in content:
        raise AuthError(version, Rule.MEMBER_FORM)
    if version.restricted_joins and "join_authorised_via_users_server" in content:
        _check_authoriser_signature(
            event, content["join_authorised_via_users_server"], situation.signed_by
        )
    membership = event.membership
    if membership == "join":
        _check_join(event, target, situation)
    elif membership == "invite":
        _check_invite(event, target, situation)
    elif membership == "leave":
        _check_leave(event, target, situation)
    elif membership == "ban":
        _check_ban(event, target, situation)
    elif membership == "knock" and version.knocking:
        _check_knock(event, target, situation)
    else:
        raise AuthError(version, Rule.MEMBERSHIP_UNKNOWN)


def _check_authoriser_signature(
    event: Event, authoriser: object, signed_by: Collection[str] | None
) -> None:
    named = isinstance(authoriser, str) and is_user_id(authoriser)
    if not named or (signed_by is not None and str(authoriser).partition(":")[2] not in signed_by):
        raise AuthError(event.version, Rule.MEMBER_AUTHORISER_SIGNATURE)


def _check_join(event: Event, target: str, situation: Situation) -> None:
    version = event.version
    if tuple(event.prev_events) == (situation.create.event_id,) and target == _first_member(
        situation.create
    ):
        return
    if event.sender != target:
        raise AuthError(version, Rule.JOIN_OF_ANOTHER)
    membership = situation.membership(target)
    if membership == "ban":
        raise AuthError(version, Rule.JOIN_BANNED)
    rule = situation.join_rule
    if rule == "invite" or (rule == "knock" and version.knocking):
        if membership in ("invite", "join"):
            return
    elif (rule == "restricted" and version.restricted_joins) or (
        rule == "knock_restricted" and version.knock_restricted
    ):
        if membership in ("invite", "join"):
            return
        authoriser = event.content.get("join_authorised_via_users_server")
        if (
            not isinstance(authoriser, str)
            or situation.levels.user_level(authoriser) < situation.levels.invite
            or situation.membership(authoriser) != "join"
        ):
            raise AuthError(version, Rule.JOIN_AUTHORISER)
        return
    elif rule == "public":
        return
    raise AuthError(version, Rule.JOIN_RULE)


def _first_member(create: Event) -> object:
    """Return the user who may join first. Additional creators may not."""
    return create.sender if create.version.creator_is_sender else create.content.get("creator")


def _check_invite(event: Event, target: str, situation: Situation) -> None:
    version = event.version
    if "third_party_invite" in event.content:
        _check_third_party_invite(event, target, situation)
        return
    if situation.membership(event.sender) != "join":
        raise AuthError(version, Rule.INVITE_SENDER)
    if situation.membership(target) in ("join", "ban"):
        raise AuthError(version, Rule.INVITE_TARGET)
    if situation.levels.user_level(event.sender) < situation.levels.invite:
        raise AuthError(version, Rule.INVITE_LEVEL)


def _check_third_party_invite(event: Event, target: str, situation: Situation) -> None:
    version = event.version
    if situation.membership(target) == "ban":
        raise AuthError(version, Rule.THIRD_PARTY_BANNED)
    invite = event.content["third_party_invite"]
    if not isinstance(invite, Mapping) or "signed" not in invite:
        raise AuthError(version, Rule.THIRD_PARTY_SIGNED)
    signed = invite["signed"]
    if not isinstance(signed, Mapping) or "mxid" not in signed or "token" not in signed:
        raise AuthError(version, Rule.THIRD_PARTY_FIELDS)
    if signed["mxid"] != target:
        raise AuthError(version, Rule.THIRD_PARTY_USER)
    token = signed["token"]
    origin = (
        situation.state.get(StateKey("m.room.third_party_invite", token))
        if isinstance(token, str)
        else None
    )
    if origin is None:
        raise AuthError(version, Rule.THIRD_PARTY_TOKEN)
    if origin.sender != event.sender:
        raise AuthError(version, Rule.THIRD_PARTY_SENDER)
    if not _is_signed_by_any(signed, origin.content):
        raise AuthError(version, Rule.THIRD_PARTY_SIGNATURE)


def _is_signed_by_any(signed: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Whether any signature on it was made by any of the keys in the content of an
    m.room.third_party_invite.

    Who signed, and the names of the keys, play no part. spec:
    client-server-api#mroomthird_party_invite
    """
    try:
        message = encode_canonical(
            {key: value for key, value in signed.items() if key not in ("signatures", "unsigned")}
        )
    except BadJson:
        return False
    pairs = ((signature, key) for key in _public_keys(keys) for signature in _signatures(signed))
    return any(
        _verifies(message, signature, key) for signature, key in islice(pairs, _MOST_VERIFICATIONS)
    )


def _public_keys(content: Mapping[str, Any]) -> Iterator[bytes]:
    listed = content.get("public_keys")
    further = listed if isinstance(listed, list | tuple) else ()
    for key in (
        content.get("public_key"),
        *(item.get("public_key") for item in further if isinstance(item, Mapping)),
    ):
        decoded = _decode_base64(key)
        if len(decoded) == crypto_sign_PUBLICKEYBYTES:
            yield decoded


def _signatures(signed: Mapping[str, Any]) -> Iterator[bytes]:
    by_server = signed.get("signatures")
    for by_key in by_server.values() if isinstance(by_server, Mapping) else ():
        for signature in by_key.values() if isinstance(by_key, Mapping) else ():
            decoded = _decode_base64(signature)
            if len(decoded) == crypto_sign_BYTES:
                yield decoded


def _decode_base64(value: object) -> bytes:
    """Both alphabets, padded or not, since identity servers differ; empty for what is no base64."""
    if not isinstance(value, str):
        return b""
    digits = value.rstrip("=").translate(_TO_STANDARD_ALPHABET)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4))
    except ValueError:
        return b""


def _verifies(message: bytes, signature: bytes, key: bytes) -> bool:
    try:
        VerifyKey(key).verify(message, signature)
    except CryptoError:
        return False
    return True


def _check_leave(event: Event, target: str, situation: Situation) -> None:
    version = event.version
    if event.sender == target:
        may_leave = ("invite", "join", "knock") if version.knocking else ("invite", "join")
        if situation.membership(target) not in may_leave:
            raise AuthError(version, Rule.LEAVE_SELF)
        return
    if situation.membership(event.sender) != "join":
        raise AuthError(version, Rule.LEAVE_SENDER)
    sender_level = situation.levels.user_level(event.sender)
    if situation.membership(target) == "ban" and sender_level < situation.levels.ban:
        raise AuthError(version, Rule.UNBAN_LEVEL)
    if sender_level < situation.levels.kick or situation.levels.user_level(target) >= sender_level:
        raise AuthError(version, Rule.KICK_LEVEL)


def _check_ban(event: Event, target: str, situation: Situation) -> None:
    version = event.version
    if situation.membership(event.sender) != "join":
        raise AuthError(version, Rule.BAN_SENDER)
    sender_level = situation.levels.user_level(event.sender)
    if sender_level < situation.levels.ban or situation.levels.user_level(target) >= sender_level:
        raise AuthError(version, Rule.BAN_LEVEL)


def _check_knock(event: Event, target: str, situation: Situation) -> None:
    version = event.version
    rule = situation.join_rule
    if rule != "knock" and not (rule == "knock_restricted" and version.knock_restricted):
        raise AuthError(version, Rule.KNOCK_RULE)
    if event.sender != target:
        raise AuthError(version, Rule.KNOCK_FOR_ANOTHER)
    if situation.membership(target) in ("ban", "invite", "join"):
        raise AuthError(version, Rule.KNOCK_MEMBERSHIP)
