"""Invites remote users, and receives invites of local users from other servers.

The invited user's server signs the invite before it is added to the room.

In a room that does not federate, remote users cannot be invited, because they could neither join
nor decline.

spec: server-server-api#inviting-to-a-room, client-server-api#third-party-invites
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from federation.peers.client import RefusedByRemote, is_no_answer
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    InvalidParam,
    MatrixError,
    NotFound,
    OtherServerFailed,
    RemoteError,
)
from federation.protocol.event_signing import is_event_signed_by, sign_event
from federation.protocol.events import Event, StateKey, parse_event
from federation.protocol.ids import (
    EventID,
    KeyID,
    RoomID,
    ServerName,
    UserID,
    domain_of,
    is_room_id,
    is_user_id,
)
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.stripped_state import (
    CREATE,
    federation_form,
    strip_event,
    stripped_state_keys,
)
from federation.remote.membership import MembershipClient
from federation.rooms.build import Chain, Classify
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.joins.make_send import check_membership_event, check_origin_signed
from federation.rooms.joins.out_of_room import OutOfRoomMemberships
from federation.rooms.joins.stripped_rooms import read_invite_state
from federation.rooms.membership_templates import MEMBER
from federation.rooms.receipt_checks import SHOWN
from federation.rooms.receive.check_sources import CheckServices
from federation.rooms.receive.receiver import Receiver
from federation.rooms.server_fallback import merge_errors
from federation.rooms.server_in_room import ServerInRoom
from federation.rooms.snapshot import RoomSnapshot

GetKeys = Callable[[ServerName, Collection[KeyID], int], Awaitable[Mapping[KeyID, bytes]]]
MAX_SIGNATURES: Final = 20
MAX_THIRD_PARTY_INVITES: Final = 20
"""Third-party invites of one address; the others are ignored."""
MAX_SERVERS: Final = 3
"""Servers that are asked about the invites of one address, since anybody may claim one."""
MAX_WAIT: Final = 5.0
"""Seconds that an invite waits for its auth events if the invited user is still joined here."""
POLL_SECONDS: Final = 0.25


class StoredThirdPartyInvite(msgspec.Struct, frozen=True):
    """A third-party invite, which was sent to an address, in the form that an identity server
    sends."""

    mxid: str
    room_id: str
    sender: str
    signed: dict[str, Any]


class BoundAddress(msgspec.Struct, frozen=True):
    """An address that now belongs to a user, with the third-party invites that were sent to it."""

    mxid: str
    medium: str = ""
    address: str = ""
    invites: tuple[StoredThirdPartyInvite, ...] = ()


class _ThirdPartyInvite(msgspec.Struct, frozen=True):
    sender: UserID
    content: Mapping[str, Any]


class _InvalidThirdPartyInvite(Exception):
    """A third-party invite could not be turned into an invite."""


class InviteeChecks(Protocol):
    """Decides whether our users may be invited. The layer that has their settings implements it."""

    async def check_may_be_invited(self, target: UserID, inviter: UserID, room_id: RoomID) -> None:
        """Raises Forbidden, InviteBlocked, NotFound, LimitExceeded."""
        ...

    def count_claim(self, ip: str) -> AbstractContextManager[None]:
        """Count a claimed third-party invite against an IP address while it is checked; keep the
        count if it is false. Entering raises LimitExceeded."""
        ...


class ServerReachability(Protocol):
    """Records which servers can be reached. The federation sender implements it."""

    def is_unresponsive(self, server: ServerName) -> bool:
        """Return whether the server was unreachable, or did not answer, a moment ago."""
        ...

    def record_activity(self, server: ServerName) -> None:
        """Record that the server answered."""
        ...

    def record_no_answer(self, server: ServerName, sent_at: float) -> None:
        """Record that a request got no answer. `sent_at`: its time in seconds of the clock."""
        ...


class Invitations:
    """Sends and receives invites. Use this class only on the reactor thread."""

    _log = Logger()

    # More than ten: an invite is built, signed by two servers, checked and stored.
    def __init__(
        self,
        *,
        remote: MembershipClient,
        engine: RoomEngine,
        events: RoomEvents,
        server_in_room: ServerInRoom,
        receiver: Receiver,
        out_of_room: OutOfRoomMemberships,
        invite_policy: InviteeChecks,
        reachability: ServerReachability,
        services: CheckServices,
        get_keys: GetKeys,
        classify: Classify,
        identity: ServerIdentity,
        clock: IReactorTime,
        now_ms: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._remote = remote
        self._engine = engine
        self._events = events
        self._server_in_room = server_in_room
        self._receiver = receiver
        self._outside = out_of_room
        self._invite_policy = invite_policy
        self._reachability = reachability
        self._services = services
        self._get_keys = get_keys
        self._classify = classify
        self._identity = identity
        self._now_ms = now_ms

    async def do_invite(
        self,
        room_id: RoomID,
        sender: UserID,
        target: UserID,
        content: Mapping[str, Any],
        *,
        ask_unreachable: bool = False,
    ) -> EventID:
        """Invite a remote user into a room that we are in. Return the invite, new or existing.

        A server that was unreachable a moment ago is not asked, unless `ask_unreachable`: then no
        client waits, and nobody would retry. Raises NotFound, Forbidden, InviteBlocked,
        UnsupportedRoomVersion, OtherServerFailed, StateIncomplete.
        """
        snapshot = await self._engine.get_complete(room_id)
        create = await snapshot.create_event()
        if _excludes(target, create.sender, create.content):
            raise Forbidden("This room is only for users of this server")
        chain = Chain(
            snapshot=snapshot, events=self._events, identity=self._identity, classify=self._classify
        )
        draft = Draft(MEMBER, sender, content, target, unless_same=True)
        (built,) = await chain.add([draft], self._now_ms())
        if isinstance(built, StoredEvent):
            return built.event.event_id
        built = await self._engine.add_policy_signature(snapshot, built)
        keys = stripped_state_keys(sender)
        state = await snapshot.state.load(keys)
        server = domain_of(target)
        if not ask_unreachable and self._reachability.is_unresponsive(server):
            raise OtherServerFailed(
                f"{target} was not invited, because {server} could not be reached a moment ago: "
                "try again later"
            )
        answer = await self._request_signature(
            server, target, built, federation_form(state[key].event for key in keys if key in state)
        )
        event = await self._countersigned(built, server, answer)
        (outcome,) = await self._receiver.receive(room_id, [event.pdu], broadcast=True)
        if not outcome.was_known and outcome.verdict not in SHOWN:
            raise outcome.error or Forbidden("The room does not allow this invite any more")
        return event.event_id

    async def _request_signature(
        self, server: ServerName, target: UserID, built: Event, room_state: Iterable[msgspec.Raw]
    ) -> Mapping[str, Any]:
        """Return the invite with the signature of the invited user's server. Raises MatrixError."""
        sent_at = self._clock.seconds()
        try:
            answer = await self._remote.invite(server, built, room_state)
        except RemoteError as error:
            if is_no_answer(error):
                self._reachability.record_no_answer(server, sent_at)
                raise OtherServerFailed(
                    f"{target} was not invited, because {server} did not answer: try again later "
                    f"({error.reason})"
                ) from error
            if isinstance(error, RefusedByRemote):
                self._reachability.record_activity(server)
                if error.errcode == "M_NOT_FOUND":
                    raise NotFound(f"{server} does not have a user {target}") from error
            raise merge_errors([error]) from error
        self._reachability.record_activity(server)
        return answer

    async def do_exchange(
        self, origin: ServerName, room_id: RoomID, partial_event: Mapping[str, Any]
    ) -> None:
        """Turn a third-party invite into an invite of a remote user.

        The user has proved that they own the address. Raises NotFound,
        Forbidden, InvalidParam, OtherServerFailed.

        spec: server-server-api#put_matrixfederationv1exchange_third_party_inviteroomid
        """
        snapshot = await self._server_in_room.get_for(origin, room_id)
        target = partial_event.get("state_key")
        content = partial_event.get("content")
        if (
            not isinstance(target, str)
            or not is_user_id(target)
            or partial_event.get("type") != MEMBER
            or not isinstance(content, Mapping)
            or content.get("membership") != "invite"
        ):
            raise InvalidParam("The body is not a third-party invite")
        if partial_event.get("room_id") != room_id:
            raise InvalidParam("The invite is to another room")
        if domain_of(target) != origin:
            raise Forbidden(f"The invite is not for a user of {origin}")
        third_party_invite = await self._find_third_party_invite(snapshot, content)
        if partial_event.get("sender") != third_party_invite.sender:
            raise Forbidden("The sender of the invite is not the one who promised it")
        await self.do_invite(
            room_id, third_party_invite.sender, UserID(target), third_party_invite.content
        )

    async def do_accept_third_party_invites(
        self, target: UserID, address: BoundAddress, ip: str
    ) -> None:
        """Turn the third-party invites of an address into invites of the local user that owns it.

        Failures are logged, because the identity server that calls this can do nothing about them.
        They count against its IP address `ip`. Raises NotFound; LimitExceeded if not all invites
        were checked. spec: server-server-api#put_matrixfederationv13pidonbind
        """
        if not self._identity.is_local(target):
            raise NotFound("The user is not a user of this server")
        servers: set[ServerName] = set()
        for invite in address.invites[:MAX_THIRD_PARTY_INVITES]:
            if (
                invite.mxid != target
                or not is_user_id(invite.sender)
                or not is_room_id(invite.room_id)
            ):
                continue
            server = domain_of(UserID(invite.sender))
            if server not in servers and len(servers) == MAX_SERVERS:
                continue
            servers.add(server)
            try:
                with self._invite_policy.count_claim(ip):
                    await self._claim(target, invite)
            except _InvalidThirdPartyInvite as error:
                self._log.info("an invite promised to an address is dropped: {error}", error=error)

    async def _claim(self, target: UserID, invite: StoredThirdPartyInvite) -> None:
        """Check one third-party invite and send the invite. Raises _InvalidThirdPartyInvite."""
        try:
            await self._accept_third_party_invite(target, invite)
        except (MatrixError, RemoteError) as error:
            raise _InvalidThirdPartyInvite(str(error)) from error

    async def _accept_third_party_invite(
        self, target: UserID, invite: StoredThirdPartyInvite
    ) -> None:
        """Send the invite, or ask the inviter's server to. Raises MatrixError, RemoteError."""
        room_id = RoomID(invite.room_id)
        content = {
            "membership": "invite",
            "third_party_invite": {"display_name": "", "signed": dict(invite.signed)},
        }
        if not self._identity.is_local(UserID(invite.sender)):
            event = {
                "type": MEMBER,
                "room_id": room_id,
                "sender": invite.sender,
                "state_key": target,
                "content": content,
            }
            await self._remote.exchange_third_party_invite(domain_of(invite.sender), room_id, event)
            return
        third_party_invite = await self._find_third_party_invite(
            await self._engine.get_snapshot(room_id), content
        )
        # checked last: it counts as an invite of the user, and anybody may claim one
        await self._invite_policy.check_may_be_invited(target, third_party_invite.sender, room_id)
        await self._engine.send(
            room_id,
            [
                Draft(
                    MEMBER,
                    third_party_invite.sender,
                    third_party_invite.content,
                    target,
                    unless_same=True,
                )
            ],
        )

    async def _find_third_party_invite(
        self, snapshot: RoomSnapshot, content: object
    ) -> "_ThirdPartyInvite":
        """Return the sender of the third-party invite and the content of the invite.

        The room's rules check the proof when the invite is sent. Raises Forbidden, InvalidParam.
        """
        invite = content.get("third_party_invite") if isinstance(content, Mapping) else None
        signed = invite.get("signed") if isinstance(invite, Mapping) else None
        token = signed.get("token") if isinstance(signed, Mapping) else None
        if not isinstance(signed, Mapping) or not isinstance(token, str):
            raise InvalidParam("The body is not a third-party invite")
        third_party_invite = await snapshot.state.get(StateKey("m.room.third_party_invite", token))
        if third_party_invite is None or not self._identity.is_local(
            third_party_invite.event.sender
        ):
            raise Forbidden("There is no open invite to this address")
        display_name = third_party_invite.event.content.get("display_name")
        proof = {
            "display_name": display_name if isinstance(display_name, str) else "",
            "signed": dict(signed),
        }
        return _ThirdPartyInvite(
            third_party_invite.event.sender, {"membership": "invite", "third_party_invite": proof}
        )

    async def do_receive(
        self,
        origin: ServerName,
        room_id: RoomID,
        event_id: EventID,
        version_id: str,
        pdu: Mapping[str, Any],
        state: object,
    ) -> Mapping[str, Any]:
        """Receive an invite of one of our users; return the event with our signature.

        `state`: the stripped state that the other server sent. Raises IncompatibleRoomVersion,
        InvalidParam, BadEvent, NotFound, Forbidden (also by the room's server ACL), InviteBlocked,
        LimitExceeded.
        """
        version = ROOM_VERSIONS.get(version_id)
        if version is None:
            raise IncompatibleRoomVersion(
                "This server does not support the room's version", room_version=version_id
            )
        event = parse_event(version, pdu)
        if event.event_id != event_id:
            raise InvalidParam("The event has another id than the path")
        check_membership_event(event, room_id, "invite")
        target = UserID(event.state_key or "")
        if not is_user_id(target) or not self._identity.is_local(target):
            raise InvalidParam("The event does not invite a user of this server")
        if domain_of(event.sender) != origin:
            raise InvalidParam(f"The sender of the event is not a user of {origin}")
        await check_origin_signed(event, self._services.get_signers)
        snapshot = await self._server_in_room.find_for(origin, room_id)
        stripped = [
            strip_event(event),
            *await read_invite_state(self._services, version, room_id, state),
        ]
        if any(
            state_event["type"] == CREATE.type
            and _excludes(target, state_event["sender"], state_event["content"])
            for state_event in stripped
        ):
            raise Forbidden("This room is only for users of the server that created it")
        await self._invite_policy.check_may_be_invited(target, event.sender, room_id)
        signed = sign_event(version, event.pdu, self._identity.server_name, self._identity.key)
        event = parse_event(version, signed, event_id=event.event_id)
        if snapshot is not None and await self._receive_in_room(event, origin):
            return event.pdu
        if not await self._outside.store(event, origin, stripped):
            raise Forbidden(f"{target} is in the room already")
        return event.pdu

    async def _receive_in_room(self, event: Event, origin: ServerName) -> bool:
        """Receive an invite into a room that we are in. Return False if we are in it no more.

        Earlier events may be on their way. If they remove the invited user, we may no longer be in
        the room afterwards, and nobody would send us the invite again. So we wait for them.
        """
        until = self._clock.seconds() + MAX_WAIT
        while True:
            (outcome,) = await self._receiver.receive(event.room_id, [event.pdu])
            if outcome.verdict is not None and outcome.verdict not in SHOWN:
                raise outcome.error or Forbidden("The room does not allow this invite")
            if (
                not outcome.missing_auth
                or self._clock.seconds() >= until
                or not await self._is_joined(event)
            ):
                return True
            await deferLater(self._clock, POLL_SECONDS)
            if await self._server_in_room.find_for(origin, event.room_id) is None:
                return False

    async def _is_joined(self, event: Event) -> bool:
        """Return whether the invited user is still joined in the state that we know."""
        member = await (await self._engine.get_snapshot(event.room_id)).state.get(
            StateKey(MEMBER, event.state_key or "")
        )
        return member is not None and member.event.membership == "join"

    async def _countersigned(
        self, event: Event, server: ServerName, answer: Mapping[str, Any]
    ) -> Event:
        """Return our event with the other server's signature. Raises OtherServerFailed."""
        signatures = answer.get("signatures")
        theirs = signatures.get(server) if isinstance(signatures, Mapping) else None
        if not isinstance(theirs, Mapping) or len(theirs) > MAX_SIGNATURES:
            raise OtherServerFailed(f"{server} did not sign the invite")
        try:
            signed = parse_event(
                event.version,
                {**event.pdu, "signatures": {**event.pdu["signatures"], server: dict(theirs)}},
                event_id=event.event_id,
            )
            keys = await self._get_keys(
                server, [KeyID(key_id) for key_id in theirs], event.origin_server_ts
            )
            is_signed = is_event_signed_by(signed, server, keys)
        except MatrixError as error:
            raise OtherServerFailed(f"{server} did not sign the invite: {error.text}") from error
        if not is_signed:
            raise OtherServerFailed(f"{server} did not sign the invite")
        return signed


def _excludes(target: UserID, creator: UserID, creation: Mapping[str, Any]) -> bool:
    """Return whether the room does not federate and the user is of another server than its creator.

    spec: rooms/v11#authorisation-rules
    """
    return creation.get("m.federate") is False and domain_of(creator) != domain_of(target)
