"""Builds the events of our users from drafts (`event_drafts.py`), in memory.

The events form a chain: the first follows the forward extremities of the room head, and each
further event follows the previous one. Each event is authorized by the state before it.

Laws:
- A chain is built without a lock. When it is written, the write checks that the room head has not
  changed.
- The drafts of a request succeed or fail together. A failure leaves the chain as it was before the
  request.
- Our own events pass the same authorization rules as all others (`receipt_checks.py`). Their form,
  hash and signature are correct by construction. The first event of a chain follows all forward
  extremities, so the state before it is the room's current state. The auth events of each event are
  chosen from the state before it. Therefore one check replaces three checks of a received event: by
  its auth events, by the state before it, and by the current state. (If hostile servers give a room
  more than `MAX_PREV_EVENTS` extremities, a chain follows only that many. The others stay
  extremities until later chains follow them.)
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from secrets import token_urlsafe

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden
from federation.protocol.event_auth import auth_keys, check_auth
from federation.protocol.event_signing import build_event
from federation.protocol.events import (
    Event,
    StateKey,
    compute_reference_hash,
    encode_event_json,
    encode_pdu,
    load_event,
)
from federation.protocol.ids import EventID, UserID
from federation.protocol.policy_server import NAMING, find_naming
from federation.protocol.power_levels import PowerLevels, check_new_levels
from federation.protocol.redaction import redact
from federation.protocol.room_versions import EventFormat
from federation.protocol.signing import encode_base64
from federation.rooms.event_drafts import Draft
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.relations import read_relation
from federation.rooms.snapshot import CREATE, POWER_LEVELS, RoomSnapshot
from federation.rooms.state_effects import state_effect
from storage.events.events import EventFlag
from storage.persist.redactions import Redaction
from storage.persist.room_writer import NewEvent

MAX_DEPTH = 2**53 - 1
MAX_PREV_EVENTS = 20


class RoomBeforeEvent(msgspec.Struct, frozen=True):
    """The room before an event. Only `member_count` includes the event."""

    room_nid: int
    """0 for a room that is not written yet."""
    member_count: int
    """Joined members after the event."""
    levels: PowerLevels | None
    changed_members: Mapping[UserID, bool] = msgspec.field(default_factory=dict)
    """Members whose stored membership is outdated, and whether they are joined."""


class Classification(msgspec.Struct, frozen=True):
    """The push flags and push actions of an event. The layer that has the users' push rules
    computes them."""

    flags: int = 0
    """NOTIFIES and HIGHLIGHTS, if they apply."""
    outcomes: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Push actions of the local users for whom the flags do not apply."""
    thread_root: EventID | None = None


Classify = Callable[[Event, RoomBeforeEvent], Awaitable[Classification]]
GetPolicySignature = Callable[[int, Event, Event | None], Awaitable[Event]]
"""Returns our event with the signature of its room's policy server, if the room has one. The last
argument is the state event that names it."""


class DependsOnChain(Exception):
    """A draft depends on an event of this chain that is not written yet, or that the chain redacts.
    It waits for the next chain."""


class Chain:
    """Events built on one snapshot of a room."""

    def __init__(
        self,
        *,
        snapshot: RoomSnapshot,
        events: RoomEvents,
        identity: ServerIdentity,
        classify: Classify,
        further_flags: int = 0,
        get_policy_signature: GetPolicySignature | None = None,
    ) -> None:
        """`further_flags`: flags of all its events; `get_policy_signature`: gets the policy
        server's signature."""
        self._snapshot = snapshot
        self._events = events
        self._identity = identity
        self._classify = classify
        self._further_flags = further_flags
        self._get_policy_signature = get_policy_signature
        self._overlay: dict[StateKey, Event] = {}
        self._prev: Sequence[EventID] = [
            EventID(event_id) for _, event_id in snapshot.head.extremities
        ][:MAX_PREV_EVENTS]
        self._depth = snapshot.head.depth
        self._member_count = snapshot.head.joined_count
        self._changed_members: Mapping[UserID, bool] = {}
        self._known: dict[StateKey, StoredEvent] = {}
        self._room_id = snapshot.room_id
        self.built: list[Event] = []
        self.new: list[NewEvent] = []

    @property
    def extremities(self) -> list[EventID]:
        """The forward extremities once the chain is written. Those of the head that it could not
        name are among them."""
        unnamed = [
            EventID(event_id) for _, event_id in self._snapshot.head.extremities[MAX_PREV_EVENTS:]
        ]
        return [*unnamed, self.built[-1].event_id]

    async def add(self, drafts: Sequence[Draft], now_ms: int) -> list[Event | StoredEvent]:
        """Build the drafts of one request; for a draft that changes nothing, return the current
        event.

        Raises Forbidden and other errors of authorization, with the chain as before;
        DependsOnChain.
        """
        mark = (
            dict(self._overlay),
            self._prev,
            self._depth,
            self._member_count,
            self._changed_members,
            len(self.built),
        )
        try:
            return [await self._build(draft, now_ms) for draft in drafts]
        except BaseException:
            (
                self._overlay,
                self._prev,
                self._depth,
                self._member_count,
                self._changed_members,
                length,
            ) = mark
            del self.built[length:], self.new[length:]
            raise

    async def _build(self, draft: Draft, now_ms: int) -> Event | StoredEvent:
        version = self._snapshot.version
        if (draft.type, draft.state_key) == POWER_LEVELS:
            check_new_levels(draft.content)
        keys = auth_keys(version, draft.type, draft.sender, draft.state_key, draft.content)
        own_key = StateKey(draft.type, draft.state_key) if draft.state_key is not None else None
        state = await self._load(
            {*keys, CREATE, POWER_LEVELS} | ({own_key} if own_key is not None else set())
        )
        if (
            draft.unless_same
            and own_key is not None
            and own_key in state
            and state[own_key].content == draft.content
        ):
            return self._overlay.get(own_key) or self._known[own_key]
        event = await self._sign(
            draft, [state[key] for key in sorted(keys) if key in state], now_ms
        )
        create = event if event.type == CREATE.type else state.get(CREATE)
        if create is None:
            # this server is not in the room either: it only knows of an invite
            raise Forbidden("You are not in this room")
        check_auth(event, state, create=create)
        if draft.check is not None:
            for built in self.built:
                if built.redacts is not None:
                    raise DependsOnChain(built.redacts)  # the check may need the redacted event
            await draft.check(self.built)
        if self._get_policy_signature is not None:
            named = find_naming(await self._load(NAMING))
            event = await self._get_policy_signature(self._snapshot.room.room_nid, event, named)
        redaction = await self._redaction(event, state, create)
        await self._append(event, state, keys, draft, redaction)
        return event

    async def _load(self, keys: Collection[StateKey]) -> dict[StateKey, Event]:
        stored = await self._snapshot.state.load(key for key in keys if key not in self._overlay)
        self._known.update(stored)
        state = {key: event.event for key, event in stored.items()}
        state.update((key, self._overlay[key]) for key in keys if key in self._overlay)
        return state

    async def _sign(self, draft: Draft, auth_events: Sequence[Event], now_ms: int) -> Event:
        version, server = self._snapshot.version, self._identity.server_name
        event_id, references = None, None
        if version.event_format is EventFormat.V1:
            event_id = EventID(f"${token_urlsafe(18)}:{server}")
            references = {
                event.event_id: encode_base64(compute_reference_hash(version, event.pdu))
                for event in (*auth_events, *await self._prev_events())
            }
        return build_event(
            version,
            server,
            self._identity.key,
            room_id=None
            if version.room_id_is_create_hash and draft.type == CREATE.type
            else self._room_id,
            type=draft.type,
            sender=draft.sender,
            content=draft.content,
            state_key=draft.state_key,
            redacts=draft.redacts,
            sticky_ms=draft.sticky_ms,
            origin_server_ts=draft.origin_server_ts
            if draft.origin_server_ts is not None
            else now_ms,
            prev_events=self._prev,
            auth_events=[event.event_id for event in auth_events],
            depth=min(self._depth + 1, MAX_DEPTH),
            event_id=event_id,
            reference_hashes=references,
        )

    async def _prev_events(self) -> list[Event]:
        if self.built:
            return [self.built[-1]]
        nids = [nid for nid, _ in self._snapshot.head.extremities][:MAX_PREV_EVENTS]
        return [event.event for event in (await self._events.get_events(nids)).values()]

    async def _redaction(
        self, event: Event, state: Mapping[StateKey, Event], create: Event
    ) -> Redaction | None:
        """Return the effect of our redaction; None if its target is unknown, or redacted already.

        Raises Forbidden if the sender may not redact the target, or it is the create event.
        """
        target_id = event.redacts
        if target_id is None:
            return None
        if any(built.event_id == target_id for built in self.built):
            raise DependsOnChain(target_id)
        target = await self._events.get_event(self._snapshot.room.room_nid, target_id)
        if target is None or target.redacted_by is not None:
            return None
        levels = PowerLevels.of(self._snapshot.version, state.get(POWER_LEVELS), create)
        # stricter than other servers, which accept any user of the target's server as its sender
        if event.sender != target.event.sender and levels.user_level(event.sender) < levels.redact:
            raise Forbidden("You may not redact events of others in this room")
        if target.event.type == CREATE.type:
            raise Forbidden("The event that created the room cannot be redacted")
        return await make_redaction(self._snapshot, target, self._identity)

    def _get_flags(self, event: Event) -> int:
        """Return the flags of all events of the chain.

        A remote user who is removed gets the event even if they were only invited. Users whom a
        new room bans from its start do not get it.
        """
        target = event.state_key
        if (
            event.membership in ("leave", "ban")
            and target is not None
            and self._snapshot.head.extremities
            and not self._identity.is_local(target)
        ):
            return self._further_flags | EventFlag.TO_SEND
        return self._further_flags

    def _get_room_before(self, event: Event, state: Mapping[StateKey, Event]) -> RoomBeforeEvent:
        create = state.get(CREATE)
        levels = None
        if create is not None:
            levels = PowerLevels.of(self._snapshot.version, state.get(POWER_LEVELS), create)
        member_count = self._member_count
        if event.membership is not None and event.state_key is not None:
            member_count += count_joins(event, state.get(event.key))
        return RoomBeforeEvent(
            self._snapshot.room.room_nid, member_count, levels, self._changed_members
        )

    async def _append(
        self,
        event: Event,
        state: Mapping[StateKey, Event],
        keys: Collection[StateKey],
        draft: Draft,
        redaction: Redaction | None,
    ) -> None:
        room_before = self._get_room_before(event, state)
        classification = await self._classify(event, room_before)
        auth_stored = [
            self._known[key].nid for key in keys if key in state and key not in self._overlay
        ]
        auth_built = [self._overlay[key].event_id for key in keys if key in self._overlay]
        self.new.append(
            NewEvent(
                event_id=event.event_id,
                pdu=encode_pdu(event),
                depth=event.depth,
                type=event.type,
                state_key=event.state_key,
                sender=event.sender,
                origin_server_ts=event.origin_server_ts,
                flags=EventFlag.TIMELINE
                | self._get_flags(event)
                | classification.flags
                | (EventFlag.HAS_PUSH_ACTIONS if classification.outcomes else 0),
                prev_events=self._prev,
                auth_nids=auth_stored,
                auth_ids=auth_built,
                effect=state_effect(event, self._identity),
                redacts=event.redacts,
                redaction=redaction,
                sent_transaction=draft.sent,
                push_actions=classification.outcomes,
                thread_root=classification.thread_root,
                relation=read_relation(event),
                sticky_ms=event.sticky_ms,
            )
        )
        self.built.append(event)
        self._room_id = event.room_id  # a create event may define the room ID
        if event.state_key is not None:
            self._overlay[event.key] = event
            if event.membership is not None:
                self._changed_members = {
                    **self._changed_members,
                    UserID(event.state_key): event.membership == "join",
                }
        self._member_count = room_before.member_count
        self._prev = [event.event_id]
        self._depth = event.depth


def count_joins(event: Event, before: Event | None) -> int:
    """Return by how much a membership event changes the joined members; `before`: the event that
    it replaces."""
    was_joined = before is not None and before.membership == "join"
    return (event.membership == "join") - was_joined


async def make_redaction(
    snapshot: RoomSnapshot, target: StoredEvent, identity: ServerIdentity
) -> Redaction:
    """Return a redacted event, and the effect of its redaction on the tables beside the state."""
    event = target.event
    pruned_pdu = encode_event_json(event.version, redact(event.version, event.pdu))
    effect = None
    if event.state_key is not None:
        current = await snapshot.state.get(event.key)
        if current is not None and current.nid == target.nid:
            pruned = load_event(event.version, event.event_id, event.room_id, pruned_pdu)
            effect = state_effect(pruned, identity)
    return Redaction(target.nid, pruned_pdu, effect)
