"""Sends joins, leaves and knocks to servers in a room, and invites to the invitee's server.

This module checks only the form of a response. Callers verify the events in it before they use
them.

spec: server-server-api#joining-rooms, server-server-api#inviting-to-a-room,
server-server-api#leaving-rooms-rejecting-invites, server-server-api#knocking-rooms
"""

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.client import FederationClient, Query, RefusedByRemote, make_path
from federation.peers.response_splitter import MAX_REST_BYTES, split_lists
from federation.protocol.errors import RemoteError
from federation.protocol.events import Event, encode_pdu
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS, EventFormat, RoomVersion
from federation.remote.events import MAX_STATE_EVENTS
from federation.remote.large_responses import ANSWER_SECONDS, LargeResponseSlots

Action = Literal["join", "leave", "knock"]
INVITE_SECONDS: Final = 20
"""Time for the invitee's server, as the inviting user waits for it. It is long enough for a server
that first asks others about the room."""
_PAIR: Final = re.compile(rb"\s*\[\s*\d+\s*,")
_OLD_ENDPOINT: Final = frozenset({400, 404, 405})
"""Statuses of servers that do not know version 2 of an endpoint."""


class UnknownRoomVersion(RemoteError):
    """The room has a version that this server does not support."""

    def __init__(self, destination: str, version: str) -> None:
        super().__init__(destination, f"the room has the version {version!r}", retryable=False)
        self.version = version


class MembershipTemplate(msgspec.Struct, frozen=True):
    """A template of a membership event from a server in the room. We complete and sign it."""

    version: RoomVersion
    event: Mapping[str, Any]


class JoinedState(msgspec.Struct, frozen=True):
    """The state before a join, its auth chain, and the join event as the other server returned it.

    The events are parsed later, one by one, because there may be a hundred thousand.
    """

    state: Sequence[msgspec.Raw]
    auth_chain: Sequence[msgspec.Raw]
    event: dict[str, Any] | None = None
    members_omitted: bool = False
    """Whether the state lacks most memberships."""
    servers_in_room: Sequence[str] = ()


class _OtherFields(msgspec.Struct):
    """The fields of a join response outside the lists of events."""

    event: dict[str, Any] | None = None
    members_omitted: bool = False
    servers_in_room: list[str] = []


class MembershipClient:
    """Sends membership requests."""

    def __init__(
        self, *, requests: FederationClient, states: LargeResponseSlots, clock: IReactorTime
    ) -> None:
        """`states`: the slots for large states."""
        self._requests = requests
        self._states = states
        self._clock = clock

    async def make(
        self, server: ServerName, action: Action, room_id: RoomID, user_id: UserID
    ) -> MembershipTemplate:
        """Return a template for the user's new membership.

        Raises RemoteError, UnknownRoomVersion, Forbidden (the policy).
        """
        versions: Query = (
            () if action == "leave" else [("ver", version) for version in ROOM_VERSIONS]
        )
        path = make_path(f"/_matrix/federation/v1/make_{action}/{{}}/{{}}", room_id, user_id)
        answer = await self._requests.get(server, path, versions)
        named = answer.get("room_version", "1")
        version = ROOM_VERSIONS.get(named) if isinstance(named, str) else None
        if version is None:
            raise UnknownRoomVersion(server, str(named)[:100])
        event = answer.get("event")
        if not isinstance(event, dict):
            raise RemoteError(server, "the template is no event", retryable=False)
        content = event.get("content")
        if (
            event.get("type") != "m.room.member"
            or event.get("room_id") != room_id
            or event.get("sender") != user_id
            or event.get("state_key") != user_id
            or not isinstance(content, dict)
            or content.get("membership") != action
        ):
            raise RemoteError(
                server, "the template is for another room, user or membership", retryable=False
            )
        return MembershipTemplate(version, event)

    @asynccontextmanager
    async def send_join(
        self, server: ServerName, event: Event, *, omit_members: bool
    ) -> AsyncIterator[JoinedState]:
        """Join the room by a signed join. Hold the slot of a large response in the context.

        `omit_members`: the server may leave out most memberships. Raises RemoteError,
        Forbidden (the policy).
        """

        async def ask(max_bytes: int) -> JoinedState:  # a repeated join has no further effect
            return await self._send_join(server, event, max_bytes, omit_members=omit_members)

        async with self._states.read(server, ask) as joined:
            yield joined

    async def _send_join(
        self, server: ServerName, event: Event, max_bytes: int, *, omit_members: bool
    ) -> JoinedState:
        arguments = (event.room_id, event.event_id)
        body = msgspec.Raw(encode_pdu(event))
        query = [("omit_members", "true")] if omit_members else []
        try:
            path = make_path("/_matrix/federation/v2/send_join/{}/{}", *arguments)
            answer = await self._requests.put_bytes(
                server, path, body, query, seconds=ANSWER_SECONDS, max_bytes=max_bytes
            )
        except RefusedByRemote as refusal:
            if not _is_old(refusal, event):
                raise
            path = make_path("/_matrix/federation/v1/send_join/{}/{}", *arguments)
            answer = await self._requests.put_bytes(
                server, path, body, seconds=ANSWER_SECONDS, max_bytes=max_bytes
            )
            answer = _object_in_pair(answer)
        try:
            # the list of servers may be long
            lists = await split_lists(
                answer,
                ("state", "auth_chain"),
                MAX_STATE_EVENTS,
                self._clock,
                max_object_bytes=MAX_REST_BYTES,
            )
            other = msgspec.json.decode(lists.rest, type=_OtherFields)
        except (ValueError, RecursionError) as error:
            raise RemoteError(
                server, f"the answer to the join has an unexpected form: {error}", retryable=False
            ) from error
        return JoinedState(
            lists.lists["state"],
            lists.lists["auth_chain"],
            other.event,
            other.members_omitted,
            other.servers_in_room,
        )

    async def send_leave(self, server: ServerName, event: Event) -> None:
        """Leave the room, or decline an invite. Raises RemoteError, Forbidden (the policy)."""
        arguments = (event.room_id, event.event_id)
        body = msgspec.Raw(encode_pdu(event))
        try:
            await self._requests.put(
                server, make_path("/_matrix/federation/v2/send_leave/{}/{}", *arguments), body
            )
        except RefusedByRemote as refusal:
            if not _is_old(refusal, event):
                raise
            await self._requests.put(
                server, make_path("/_matrix/federation/v1/send_leave/{}/{}", *arguments), body
            )

    async def send_knock(self, server: ServerName, event: Event) -> object:
        """Knock, and return the stripped state. Raises RemoteError, Forbidden (the policy)."""
        path = make_path("/_matrix/federation/v1/send_knock/{}/{}", event.room_id, event.event_id)
        answer = await self._requests.put(server, path, msgspec.Raw(encode_pdu(event)))
        if not isinstance(answer, dict):
            raise RemoteError(server, "the answer is no object", retryable=False)
        return answer.get("knock_room_state", [])

    async def exchange_third_party_invite(
        self, server: ServerName, room_id: RoomID, event: Mapping[str, Any]
    ) -> None:
        """Request the invite for a third-party invite; `event` is a partial event.

        Raises RemoteError, Forbidden (the policy).
        """
        await self._requests.put(
            server,
            make_path("/_matrix/federation/v1/exchange_third_party_invite/{}", room_id),
            event,
        )

    async def invite(
        self, server: ServerName, event: Event, room_state: Iterable[msgspec.Raw]
    ) -> Mapping[str, Any]:
        """Have the invitee's server sign an invite, and return the signed event.

        Raises RemoteError, Forbidden (the policy).
        """
        arguments = (event.room_id, event.event_id)
        body = {
            "event": event.pdu,
            "room_version": event.version.identifier,
            "invite_room_state": [msgspec.json.decode(each) for each in room_state],
        }
        try:
            path = make_path("/_matrix/federation/v2/invite/{}/{}", *arguments)
            answer = await self._requests.put(server, path, body, seconds=INVITE_SECONDS)
        except RefusedByRemote as refusal:
            # version 1 does not state the room version
            if (
                refusal.status not in _OLD_ENDPOINT
                or event.version.event_format is not EventFormat.V1
            ):
                raise
            old = {**event.pdu, "unsigned": {"invite_room_state": body["invite_room_state"]}}
            path = make_path("/_matrix/federation/v1/invite/{}/{}", *arguments)
            answer = _second(
                server, await self._requests.put(server, path, old, seconds=INVITE_SECONDS)
            )
        signed = answer.get("event") if isinstance(answer, dict) else None
        if not isinstance(signed, dict):
            raise RemoteError(server, "the answer holds no event", retryable=False)
        return signed


def _object_in_pair(body: bytes) -> bytes:
    """Return the object in `[200, {…}]`, the form of version 1.

    Other bodies stay unchanged, and are refused by the parser.
    """
    begins = _PAIR.match(body)
    return body if begins is None else body[begins.end() : max(body.rfind(b"]"), begins.end())]


def _is_old(refusal: RefusedByRemote, event: Event) -> bool:
    """Return whether to try version 1 of an endpoint: only the oldest servers lack version 2."""
    if refusal.status not in _OLD_ENDPOINT:
        return False
    return refusal.errcode == "M_UNRECOGNIZED" or (
        refusal.errcode == "M_UNKNOWN" and event.version.event_format is EventFormat.V1
    )


def _second(server: ServerName, answer: object) -> Any:
    """Return the object in the response `[200, …]` of a version 1 endpoint."""
    if not isinstance(answer, list) or len(answer) != 2:
        raise RemoteError(server, "the answer is no pair", retryable=False)
    return answer[1]
