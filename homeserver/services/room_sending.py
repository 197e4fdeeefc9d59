"""Sending events: messages, state, redactions; each request at most once.

spec: client-server-api#sending-events-to-a-room
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from federation.protocol.errors import BadAlias, BadJson, Forbidden, InvalidParam
from federation.protocol.events import StateKey
from federation.protocol.ids import EventID, RoomID, is_event_id, is_room_alias
from federation.rooms.drafts import Draft
from federation.rooms.engine import RoomEngine
from homeserver.http.endpoint import Requester
from storage.aliases import AliasStore
from storage.sent_transactions import AlreadySent, SentTransaction

MAX_TXN_ID: Final = 255
CANONICAL_ALIAS: Final = StateKey("m.room.canonical_alias", "")
NOT_FOR_CLIENTS: Final = frozenset({"m.room.create"})


class RoomSending:
    """Adds what clients send to rooms."""

    def __init__(self, engine: RoomEngine, aliases: AliasStore) -> None:
        self._engine = engine
        self._aliases = aliases

    async def do_send(
        self,
        caller: Requester,
        room_id: RoomID,
        type: str,
        content: Mapping[str, Any],
        txn_id: str,
        origin_server_ts: int | None,
    ) -> msgspec.Raw:
        """Send an event that is no state; the answer, the same for a repeated request. Raises Forbidden, NotFound."""
        redacts = None
        if type == "m.room.redaction":
            target = content.get("redacts")
            if not isinstance(target, str) or not is_event_id(target):
                raise BadJson("A redaction names its target in content.redacts")
            redacts = EventID(target)
        sent = _name(caller, f"send/{room_id}/{type}", txn_id)
        draft = Draft(type, caller.user_id, content, None, redacts, _timestamp(caller, origin_server_ts), sent)
        return await self._send(room_id, draft)

    async def do_redact(
        self, caller: Requester, room_id: RoomID, target: EventID, reason: str | None, txn_id: str
    ) -> msgspec.Raw:
        """Redact an event. Raises Forbidden, NotFound."""
        content: dict[str, Any] = {} if reason is None else {"reason": reason}
        snapshot = await self._engine.get_snapshot(room_id)
        if snapshot.version.redacts_in_content:
            content["redacts"] = target
        sent = _name(caller, f"redact/{room_id}/{target}", txn_id)
        return await self._send(room_id, Draft("m.room.redaction", caller.user_id, content, None, target, None, sent))

    async def do_set_state(
        self,
        caller: Requester,
        room_id: RoomID,
        type: str,
        state_key: str,
        content: Mapping[str, Any],
        origin_server_ts: int | None,
    ) -> EventID:
        """Set a state entry; the event that it has, an older one where nothing changes. Raises Forbidden, NotFound."""
        if type in NOT_FOR_CLIENTS:
            raise Forbidden(f"{type} cannot be sent into a room that exists")
        if type == "m.room.member" and content.get("membership") == "join" and state_key != caller.user_id:
            raise Forbidden("You cannot make others join")
        if type == "m.room.canonical_alias":
            await self._check_aliases(room_id, content)
        draft = Draft(
            type,
            caller.user_id,
            content,
            state_key,
            origin_server_ts=_timestamp(caller, origin_server_ts),
            unless_same=True,
        )
        return (await self._engine.send(room_id, [draft]))[0].event.event_id

    async def _send(self, room_id: RoomID, draft: Draft) -> msgspec.Raw:
        try:
            (event,) = await self._engine.send(room_id, [draft])
        except AlreadySent as earlier:
            return msgspec.Raw(earlier.response)
        return msgspec.Raw(b'{"event_id":"%s"}' % event.event.event_id.encode())

    async def _check_aliases(self, room_id: RoomID, content: Mapping[str, Any]) -> None:
        """Aliases that are new in the event have to point to the room. spec: client-server-api#mroomcanonical_alias"""
        alias, others = content.get("alias"), content.get("alt_aliases") or []
        if not isinstance(others, list) or not all(isinstance(name, str) for name in (*others, alias or "")):
            raise BadJson("alias is an alias, alt_aliases a list of aliases")
        named = {name for name in (*others, alias) if name}
        for name in named:
            if not is_room_alias(name):
                raise InvalidParam(f"{name!r} is not a room alias")
        snapshot = await self._engine.get_snapshot(room_id)
        present = await snapshot.state.get(CANONICAL_ALIAS)
        before = set() if present is None else _named(present.event.content)
        rows = await self._aliases.get_aliases(named - before)
        wrong = [name for name in named - before if name not in rows or rows[name].room_nid != snapshot.room.room_nid]
        if wrong:
            raise BadAlias(f"These aliases do not point to this room: {', '.join(sorted(map(str, wrong)))}")


def _named(content: Mapping[str, Any]) -> set[str]:
    others = content.get("alt_aliases")
    names = [content.get("alias"), *(others if isinstance(others, list) else [])]
    return {name for name in names if isinstance(name, str)}


def _name(caller: Requester, scope: str, txn_id: str) -> SentTransaction:
    if len(txn_id) > MAX_TXN_ID:
        raise InvalidParam(f"A transaction id has at most {MAX_TXN_ID} characters")
    return SentTransaction(caller.user_id, caller.device_id or "", scope, txn_id)


def _timestamp(caller: Requester, ts: int | None) -> int | None:
    if ts is None:
        return None
    if caller.appservice_id is None:
        raise Forbidden("Only application services may say when an event was sent")
    if not 0 <= ts < 2**53:
        raise InvalidParam("ts is a time in milliseconds since 1970")
    return ts
