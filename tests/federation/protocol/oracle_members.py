"""The rules for m.room.member, transcribed from the pages. Part of the oracle in
`tests/federation/protocol/oracle_auth.py`."""

import base64

from canonicaljson import encode_canonical_json
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from tests.federation.protocol.oracle_question import (
    Allow,
    Json,
    Question,
    Reject,
    domain,
    is_user_id,
)


def member_rule(q: Question, n: str) -> None:
    """Versions 1 to 6."""
    if q.type != "m.room.member":
        return
    member_form(q, f"{n}.1")
    membership = q.content["membership"]
    if membership == "join":
        join_rule(q, f"{n}.2", ["invite"])
    if membership == "invite":
        invite_rule(q, f"{n}.3")
    if membership == "leave":
        leave_rule(q, f"{n}.4", ["invite", "join"])
    if membership == "ban":
        ban_rule(q, f"{n}.5")
    raise Reject(f"{n}.6")


def member_rule_v7(q: Question, n: str) -> None:
    if q.type != "m.room.member":
        return
    member_form(q, f"{n}.1")
    membership = q.content["membership"]
    if membership == "join":
        join_rule(q, f"{n}.2", ["invite", "knock"])
    if membership == "invite":
        invite_rule(q, f"{n}.3")
    if membership == "leave":
        leave_rule(q, f"{n}.4", ["invite", "join", "knock"])
    if membership == "ban":
        ban_rule(q, f"{n}.5")
    if membership == "knock":
        knock_rule(q, f"{n}.6", ["knock"])
    raise Reject(f"{n}.7")


def member_rule_v8(q: Question, n: str) -> None:
    member_rule_restricted(q, n, ["restricted"], ["knock"])


def member_rule_v10(q: Question, n: str) -> None:
    member_rule_restricted(q, n, ["restricted", "knock_restricted"], ["knock", "knock_restricted"])


def member_rule_restricted(q: Question, n: str, restricted: list[str], knocking: list[str]) -> None:
    if q.type != "m.room.member":
        return
    member_form(q, f"{n}.1")
    if "join_authorised_via_users_server" in q.content:
        user = q.content["join_authorised_via_users_server"]
        if not is_user_id(user) or domain(user) not in q.signed_by:
            raise Reject(f"{n}.2.1")
    membership = q.content["membership"]
    if membership == "join":
        join_rule_v8(q, f"{n}.3", restricted)
    if membership == "invite":
        invite_rule(q, f"{n}.4")
    if membership == "leave":
        leave_rule(q, f"{n}.5", ["invite", "join", "knock"])
    if membership == "ban":
        ban_rule(q, f"{n}.6")
    if membership == "knock":
        knock_rule(q, f"{n}.7", knocking)
    raise Reject(f"{n}.8")


def member_form(q: Question, n: str) -> None:
    if "state_key" not in q.event or "membership" not in q.content:
        raise Reject(n)


def join_start(q: Question, n: str) -> None:
    if list(q.prev_events) == [q.create_id] and q.target == q.numbers.creator(q.create):
        raise Allow
    if q.sender != q.target:
        raise Reject(f"{n}.2")
    if q.membership(q.sender) == "ban":
        raise Reject(f"{n}.3")


def join_rule(q: Question, n: str, invite_rules: list[str]) -> None:
    join_start(q, n)
    if q.join_rule() in invite_rules and q.membership(q.sender) in ("invite", "join"):
        raise Allow
    if q.join_rule() == "public":
        raise Allow
    raise Reject(f"{n}.6")


def join_rule_v8(q: Question, n: str, restricted: list[str]) -> None:
    join_start(q, n)
    if q.join_rule() in ("invite", "knock") and q.membership(q.sender) in ("invite", "join"):
        raise Allow
    if q.join_rule() in restricted:
        if q.membership(q.sender) in ("join", "invite"):
            raise Allow
        user = q.content.get("join_authorised_via_users_server")
        if user is None or q.power(user) < q.invite_level() or q.membership(user) != "join":
            raise Reject(f"{n}.5.2")
        raise Allow
    if q.join_rule() == "public":
        raise Allow
    raise Reject(f"{n}.7")


def invite_rule(q: Question, n: str) -> None:
    if "third_party_invite" in q.content:
        third_party_invite_rule(q, f"{n}.1")
    if q.membership(q.sender) != "join":
        raise Reject(f"{n}.2")
    if q.membership(q.target) in ("join", "ban"):
        raise Reject(f"{n}.3")
    if q.power(q.sender) >= q.invite_level():
        raise Allow
    raise Reject(f"{n}.5")


def third_party_invite_rule(q: Question, n: str) -> None:
    if q.membership(q.target) == "ban":
        raise Reject(f"{n}.1")
    invite = q.content["third_party_invite"]
    if not isinstance(invite, dict) or "signed" not in invite:
        raise Reject(f"{n}.2")
    signed = invite["signed"]
    if not isinstance(signed, dict) or "mxid" not in signed or "token" not in signed:
        raise Reject(f"{n}.3")
    if signed["mxid"] != q.target:
        raise Reject(f"{n}.4")
    token = signed["token"]
    origin = q.current("m.room.third_party_invite", token) if isinstance(token, str) else None
    if origin is None:
        raise Reject(f"{n}.5")
    if origin["sender"] != q.sender:
        raise Reject(f"{n}.6")
    keys = []
    if "public_key" in origin["content"]:
        keys.append(origin["content"]["public_key"])
    for entry in origin["content"].get("public_keys", []):
        keys.append(entry["public_key"])
    for of_server in signed.get("signatures", {}).values():
        for signature in of_server.values():
            if any(verifies(signed, signature, key) for key in keys):
                raise Allow
    raise Reject(f"{n}.8")


def verifies(signed: Json, signature: str, key: str) -> bool:
    message = {
        name: value for name, value in signed.items() if name not in ("signatures", "unsigned")
    }
    try:
        VerifyKey(base64.b64decode(key + "==")).verify(
            encode_canonical_json(message), base64.b64decode(signature + "==")
        )
    except (CryptoError, ValueError, TypeError):
        return False
    return True


def leave_rule(q: Question, n: str, memberships: list[str]) -> None:
    if q.sender == q.target:
        if q.membership(q.sender) in memberships:
            raise Allow
        raise Reject(f"{n}.1")
    if q.membership(q.sender) != "join":
        raise Reject(f"{n}.2")
    if q.membership(q.target) == "ban" and q.power(q.sender) < q.ban_level():
        raise Reject(f"{n}.3")
    if q.power(q.sender) >= q.kick_level() and q.power(q.target) < q.power(q.sender):
        raise Allow
    raise Reject(f"{n}.5")


def ban_rule(q: Question, n: str) -> None:
    if q.membership(q.sender) != "join":
        raise Reject(f"{n}.1")
    if q.power(q.sender) >= q.ban_level() and q.power(q.target) < q.power(q.sender):
        raise Allow
    raise Reject(f"{n}.3")


def knock_rule(q: Question, n: str, rules: list[str]) -> None:
    if q.join_rule() not in rules:
        raise Reject(f"{n}.1")
    if q.sender != q.target:
        raise Reject(f"{n}.2")
    if q.membership(q.sender) not in ("ban", "invite", "join"):
        raise Allow
    raise Reject(f"{n}.4")
