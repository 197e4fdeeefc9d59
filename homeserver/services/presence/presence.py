"""Presence of local users, from what they do, and of remote users, from what their servers report.

Laws:
- Presence takes no position of the main sequence. A broadcast has a position of the ephemeral
  counter (see `broadcast`).
- A user without changes costs nothing but memory.
- A request for a user's presence gets the current value, even before it is broadcast.
- A status message is written before it is acknowledged; other changes are written in batches (see
  `active_users`).
- Nodes send each other the state of users with devices on them: on change, and every `RESEND`
  seconds. A note expires after `NOTE_LIFETIME` seconds, so the state of a dead node expires too.

spec: client-server-api#presence
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from federation.protocol.errors import Forbidden, InvalidParam, LimitExceeded
from federation.protocol.ids import ServerName, UserID, domain_of
from federation.rooms.memberships import Memberships
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.cluster.notify import NodeMessages
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.presence.active_users import PresenceTable, apply_stored
from homeserver.services.presence.broadcast import PresenceBroadcaster, Subscriber
from homeserver.services.presence.remote_users import PresenceUpdate, RemotePresenceCache
from homeserver.services.presence.states import (
    MAX_STATUS,
    DevicePresence,
    LocalPresence,
    PresenceTimes,
    PublishedPresence,
    RemotePresence,
    State,
)
from storage.engine.transaction import WriteTransaction

Mode = Literal[True, False, "untracked"]

KIND: Final = "presence"
REMOTE: Final = "remote_presence"
"""Kinds of notes to other nodes."""
RESEND: Final = 20.0
"""Seconds between two notes about the same state."""
NOTE_LIFETIME: Final = 50.0
"""Seconds for which a note is valid."""
STATUS_BETWEEN_NODES: Final = 1000
"""Characters of a remote user's status message that nodes send each other. Nodes read the status of
local users from the database."""


class PresenceNote(msgspec.Struct, frozen=True, array_like=True):
    """A note to other nodes: a local user's state with the devices on this node."""

    user_id: UserID
    state: State
    last_active: float | None
    has_new_status: bool = False
    chosen_device: str | None = None
    """The device for which the user has just chosen this state. It may sync with other nodes
    too."""


class RemotePresenceNote(msgspec.Struct, frozen=True, array_like=True):
    """A note to other nodes: a remote user's presence that this node received."""

    origin: ServerName
    update: PresenceUpdate


class Presence:
    """Reads and changes presence. For the reactor thread."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        table: PresenceTable,
        remote: RemotePresenceCache,
        broadcaster: PresenceBroadcaster,
        memberships: Memberships,
        limiter: RateLimiter,
        server_name: ServerName,
        times: PresenceTimes,
        mode: Mode,
        messages: NodeMessages | None,
    ) -> None:
        """`mode`: False disables presence, "untracked" limits it to remote users. `messages`: sends
        notes to other nodes; None on a single node."""
        self._clock = clock
        self.table = table
        self._remote = remote
        self.broadcaster = broadcaster
        self._memberships = memberships
        self._limiter = limiter
        self._server_name = server_name
        self._times = times
        self.is_on = mode is not False
        self._tracks = mode is True
        self._messages = messages
        self._resending = LoopingCall(self._resend_notes)
        self._resending.clock = clock
        if messages is not None and self._tracks:
            messages.subscribe(KIND, PresenceNote, self._on_note)
        if messages is not None and self.is_on:
            messages.subscribe(REMOTE, RemotePresenceNote, self._on_remote_note)

    # local users

    def start_sync(self, caller: Requester, wanted: State | None) -> None:
        """Record that a device starts a sync with a state (None: unchanged). `leave` has to
        follow."""
        if self._tracks:
            self._update_device(caller, wanted, is_new_choice=False).open_syncs += 1

    def end_sync(self, caller: Requester) -> None:
        """Record that a sync of the device ended."""
        person = self.table.local_users.get(caller.user_id)
        device = person.devices.get(caller.device_id or "") if person is not None else None
        if person is not None and device is not None:
            device.open_syncs = device.open_syncs - 1 if device.open_syncs else 0
            device.last_sync_end = self._clock.seconds()
            moment = device.last_sync_end + self._times.grace
            if not device.open_syncs and (person.timer is None or moment < person.timer_at):
                self._check_at(person, moment)

    def record_activity(self, caller: Requester) -> None:
        """Record that the user was active now. spec: client-server-api#last-active-ago"""
        person = self.table.local_users.get(caller.user_id)
        if person is None:
            return
        person.last_active = self._clock.seconds()
        device = person.devices.get(caller.device_id or "")
        if device is not None and device.requested == "unavailable":
            device.requested = "online"
        if not person.published.currently_active:
            self._on_change(person)

    async def do_set(
        self, caller: Requester, user_id: UserID, state: State, status_msg: str | None
    ) -> None:
        """Set the caller's state and status message. Raises Forbidden, InvalidParam."""
        if user_id != caller.user_id:
            raise Forbidden("You can only set your own presence")
        if status_msg is not None and (len(status_msg) > MAX_STATUS or "\0" in status_msg):
            raise InvalidParam(f"status_msg may have at most {MAX_STATUS} characters, no NUL")
        if not self._tracks:
            return
        status_msg = status_msg or None
        known = await self.table.get_stored(user_id)
        if status_msg != (None if known is None else known.status_msg):
            await self.table.do_write_status(user_id, state, status_msg)
            self._send_new_status(user_id)
        device = self._update_device(caller, state, is_new_choice=True)
        device.last_sync_end = self._clock.seconds()
        person = self.table.local_users[user_id]
        person.status_msg, person.is_loaded = status_msg, True
        person.last_active = device.last_sync_end
        self._on_change(person)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Set a deactivated user offline and delete the stored state."""
        self.table.remove(txn, user_id)
        txn.after_commit(lambda: self._remove(UserID(user_id)))

    # reading

    async def get_status(self, caller: Requester, user_id: UserID) -> dict[str, object]:
        """Return a user's current presence. Raises Forbidden if the user shares no room with the
        caller."""
        if user_id != caller.user_id and not await self.shares_room(caller.user_id, user_id):
            raise Forbidden("You share no room with this user")
        if not self.is_on:
            return {"presence": "offline"}
        person = self.table.find(user_id)
        if person is None:
            person = LocalPresence(user_id)
        if (
            isinstance(person, LocalPresence)
            and not person.is_loaded
            and domain_of(user_id) == self._server_name
        ):
            row = await self.table.get_stored(user_id)
            if row is not None and not person.is_loaded:
                apply_stored(person, row)
        return self.build_content(person, person.current(self._clock.seconds(), self._times))

    async def shares_room(self, user_id: UserID, other: UserID) -> bool:
        """Return whether both users are joined to a common room."""
        mine, theirs = (
            await self._memberships.of_user(user_id),
            await self._memberships.of_user(other),
        )
        few, many = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
        return any(
            row.membership == "join" and nid in many and many[nid].membership == "join"
            for nid, row in few.items()
        )

    def build_content(
        self, person: LocalPresence | RemotePresence, shown: PublishedPresence
    ) -> dict[str, object]:
        """Return the content of an m.presence event, as of now."""
        content: dict[str, object] = {"presence": shown.state}
        if person.last_active is not None:
            content["last_active_ago"] = max(
                0, round((self._clock.seconds() - person.last_active) * 1000)
            )
        if shown.state == "online":
            content["currently_active"] = shown.currently_active
        if shown.status_msg is not None:
            content["status_msg"] = shown.status_msg
        return content

    # other servers

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call the subscriber with all later changes of local users, in batches."""
        self.broadcaster.subscribe(subscriber)

    def receive(self, origin: ServerName, updates: Sequence[PresenceUpdate]) -> None:
        """Take updates of another server, and ignore those about users of other servers."""
        if not self.is_on:
            return
        for user_id in self._remote.receive(origin, updates):
            self.broadcaster.mark_changed(user_id)
        if self._messages is not None:
            for update in updates:
                status = (
                    None if update.status_msg is None else update.status_msg[:STATUS_BETWEEN_NODES]
                )
                note = RemotePresenceNote(
                    origin, msgspec.structs.replace(update, status_msg=status)
                )
                self._messages.queue(REMOTE, update.user_id, note)

    async def do_expire_remote(self, limit: int) -> int:
        """Mark at most `limit` remote users without recent updates as offline. Return their
        number."""
        expired = self._remote.expire(limit)
        for user_id in expired:
            self.broadcaster.mark_changed(user_id)
        return len(expired)

    # start and stop

    async def start(self) -> None:
        """Restore the presence from before the restart."""
        if self._tracks:
            for person in await self.table.start():
                self._on_change(person)
            if self._messages is not None and not self._resending.running:
                self._resending.start(RESEND)

    async def stop(self) -> None:
        """Write pending changes and stop."""
        if self._resending.running:
            self._resending.stop()
        await self.table.stop()

    # other nodes

    def _on_note(self, node: int, note: PresenceNote) -> None:
        """Apply a note of another node. Raises nothing."""
        now = self._clock.seconds()
        person = self.table.local_users.get(note.user_id)
        if note.chosen_device is not None:
            if person is not None and note.chosen_device in person.devices:
                person.devices[note.chosen_device].requested = note.state
                self._on_change(person)
            return
        if person is None:
            if note.state == "offline" and not note.has_new_status:
                return
            person = self.table.local_users[note.user_id] = LocalPresence(note.user_id)
        if note.has_new_status:
            person.status_msg, person.is_loaded = None, False
        elif note.state == "offline":
            person.other_nodes.pop(node, None)
        else:
            # present until the note expires
            person.other_nodes[node] = DevicePresence(
                note.state, 0, now + NOTE_LIFETIME - self._times.grace
            )
        if note.last_active is not None and note.last_active > (person.last_active or 0.0):
            person.last_active = person.sent_last_active = min(note.last_active, now)
        self._on_change(person)

    def _on_remote_note(self, _node: int, note: RemotePresenceNote) -> None:
        for user_id in self._remote.receive(note.origin, [note.update]):
            self.broadcaster.mark_changed(user_id)

    def _send_note(self, person: LocalPresence, *, resend: bool) -> None:
        state = person.local_state(self._clock.seconds(), self._times)
        if self._messages is not None and (resend or state != person.sent_state):
            person.sent_state, person.sent_last_active = state, person.last_active
            self._messages.queue(
                KIND, person.user_id, PresenceNote(person.user_id, state, person.last_active)
            )

    def _resend_notes(self) -> None:
        for person in self.table.local_users.values():
            if person.sent_state != "offline" or person.last_active != person.sent_last_active:
                self._send_note(person, resend=True)

    def _send_new_status(self, user_id: UserID) -> None:
        if self._messages is not None:
            self._messages.queue(
                KIND,
                (user_id, "status"),
                PresenceNote(user_id, "offline", None, has_new_status=True),
            )

    # internals

    def _update_device(
        self, caller: Requester, wanted: State | None, *, is_new_choice: bool
    ) -> DevicePresence:
        """Return the caller's device, with the requested state applied."""
        person = self.table.local_users.get(caller.user_id)
        if person is None:
            person = self.table.local_users[caller.user_id] = LocalPresence(caller.user_id)
        key = caller.device_id or ""
        device = person.devices.get(key)
        if device is None:
            device = person.devices[key] = DevicePresence(
                wanted or "online", 0, self._clock.seconds()
            )
            if device.requested == "online" and person.published.state == "offline":
                person.last_active = device.last_sync_end
        elif (
            wanted is None
            or wanted == device.requested
            or not (is_new_choice or self._may_choose(caller))
        ):
            return device
        else:
            device.requested = wanted
            if wanted == "online":
                person.last_active = self._clock.seconds()
        self._on_change(person)
        if wanted is not None and self._messages is not None:
            note = PresenceNote(caller.user_id, wanted, None, chosen_device=key)
            self._messages.queue(KIND, (caller.user_id, key), note)
        return device

    def _may_choose(self, caller: Requester) -> bool:
        """Return whether a new state in /sync counts. Beyond the rate limit it is ignored, not
        refused."""
        if not caller.rate_limited:
            return True
        try:
            self._limiter.check(Limit.PRESENCE, caller.user_id)
        except LimitExceeded:
            return False
        return True

    def _on_change(self, person: LocalPresence) -> None:
        """Process a possible change: send notes, schedule a broadcast and the next check."""
        now = self._clock.seconds()
        self._send_note(person, resend=False)
        if not person.is_loaded or person.current(now, self._times) != person.published:
            self.broadcaster.mark_changed(person.user_id)
        moment = person.next_change(now, self._times)
        if moment is not None:
            self._check_at(person, moment)

    def _check_at(self, person: LocalPresence, moment: float) -> None:
        """Schedule a check no later than `moment`."""
        if person.timer is not None:
            if person.timer_at <= moment:
                return
            person.timer.cancel()
        person.timer_at = moment
        person.timer = self._clock.callLater(
            max(0.0, moment - self._clock.seconds()), self._check, person
        )

    def _check(self, person: LocalPresence) -> None:
        person.timer = None
        person.remove_absent_devices(self._clock.seconds(), self._times)
        self._on_change(person)
        self.table.evict_idle(person.user_id)

    def _remove(self, user_id: UserID) -> None:
        person = self.table.local_users.get(user_id)
        if person is not None:
            person.devices.clear()
            person.status_msg, person.last_active, person.is_stored = None, None, False
            self._on_change(person)
        self._send_new_status(user_id)
