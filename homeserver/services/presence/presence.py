"""Tracks presence. The presence of local users follows from their requests; remote users have the
presence that their servers report.

Laws:
- A change of presence has no position in the stream. A broadcast has an ephemeral position
  (`broadcast.py`).
- A user whose presence does not change causes no database write and no broadcast. With several
  nodes, only the messages about the user are repeated (see below).
- A request for a user's presence gets the current value, even before it is broadcast.
- A status message is written before it is acknowledged. Other changes are written later, in batches
  (`active_users.py`).
- Each node sends the other nodes the state of the users whose devices sync with it: on change, and
  every `RESEND` seconds. The state in a message expires after `MESSAGE_LIFETIME` seconds, so what a
  dead node has sent expires too.

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
from homeserver.cluster.node_messages import NodeMessages
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
"""Kinds of messages to other nodes."""
RESEND: Final = 20.0
"""Seconds between two messages about the same state."""
MESSAGE_LIFETIME: Final = 50.0
"""Seconds for which a message is valid."""
STATUS_BETWEEN_NODES: Final = 1000
"""Characters of a remote user's status message that nodes send each other. Nodes read the status of
local users from the database."""


class PresenceMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message to other nodes: a local user's state with the devices on this node."""

    user_id: UserID
    state: State
    last_active: float | None
    has_new_status: bool = False
    chosen_device: str | None = None
    """The device for which the user has just chosen this state. It may sync with other nodes
    too."""


class RemotePresenceMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message to other nodes: a remote user's presence that this node received."""

    origin: ServerName
    update: PresenceUpdate


class Presence:
    """Reads and changes presence. Use this class only on the reactor thread."""

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
        messages to other nodes; None on a single node."""
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
        self._resending = LoopingCall(self._resend_messages)
        self._resending.clock = clock
        if messages is not None and self._tracks:
            messages.subscribe(KIND, PresenceMessage, self._on_message)
        if messages is not None and self.is_on:
            messages.subscribe(REMOTE, RemotePresenceMessage, self._on_remote_message)

    # local users

    def start_sync(self, caller: Requester, wanted: State | None) -> None:
        """Record that a device starts a sync with a state (None: unchanged). `end_sync` has to
        follow."""
        if self._tracks:
            self._update_device(caller, wanted, is_new_choice=False).open_syncs += 1

    def end_sync(self, caller: Requester) -> None:
        """Record that a sync of the device ended."""
        presence = self.table.local_users.get(caller.user_id)
        device = presence.devices.get(caller.device_id or "") if presence is not None else None
        if presence is not None and device is not None:
            device.open_syncs = device.open_syncs - 1 if device.open_syncs else 0
            device.last_sync_end = self._clock.seconds()
            expiry = device.last_sync_end + self._times.grace
            if not device.open_syncs and (presence.timer is None or expiry < presence.timer_at):
                self._check_at(presence, expiry)

    def record_activity(self, caller: Requester) -> None:
        """Record that the user was active now. spec: client-server-api#last-active-ago"""
        presence = self.table.local_users.get(caller.user_id)
        if presence is None:
            return
        presence.last_active = self._clock.seconds()
        device = presence.devices.get(caller.device_id or "")
        if device is not None and device.requested == "unavailable":
            device.requested = "online"
        if not presence.published.currently_active:
            self._on_change(presence)

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
        presence = self.table.local_users[user_id]
        presence.status_msg, presence.is_loaded = status_msg, True
        presence.last_active = device.last_sync_end
        self._on_change(presence)

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
        presence = self.table.find(user_id)
        if presence is None:
            presence = LocalPresence(user_id)
        if (
            isinstance(presence, LocalPresence)
            and not presence.is_loaded
            and domain_of(user_id) == self._server_name
        ):
            row = await self.table.get_stored(user_id)
            if row is not None and not presence.is_loaded:
                apply_stored(presence, row)
        return self.build_content(presence, presence.current(self._clock.seconds(), self._times))

    async def shares_room(self, user_id: UserID, other: UserID) -> bool:
        """Return whether both users are joined to a common room."""
        own_rows, other_rows = (
            await self._memberships.of_user(user_id),
            await self._memberships.of_user(other),
        )
        few, many = (
            (own_rows, other_rows) if len(own_rows) < len(other_rows) else (other_rows, own_rows)
        )
        return any(
            row.membership == "join" and nid in many and many[nid].membership == "join"
            for nid, row in few.items()
        )

    def build_content(
        self, presence: LocalPresence | RemotePresence, published: PublishedPresence
    ) -> dict[str, object]:
        """Return the current content of an m.presence event."""
        content: dict[str, object] = {"presence": published.state}
        if presence.last_active is not None:
            content["last_active_ago"] = max(
                0, round((self._clock.seconds() - presence.last_active) * 1000)
            )
        if published.state == "online":
            content["currently_active"] = published.currently_active
        if published.status_msg is not None:
            content["status_msg"] = published.status_msg
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
                message = RemotePresenceMessage(
                    origin, msgspec.structs.replace(update, status_msg=status)
                )
                self._messages.queue(REMOTE, update.user_id, message)

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
            for presence in await self.table.start():
                self._on_change(presence)
            if self._messages is not None and not self._resending.running:
                self._resending.start(RESEND)

    async def stop(self) -> None:
        """Write pending changes and stop."""
        if self._resending.running:
            self._resending.stop()
        await self.table.stop()

    # other nodes

    def _on_message(self, node: int, message: PresenceMessage) -> None:
        """Apply a message of another node. Raises nothing."""
        now = self._clock.seconds()
        presence = self.table.local_users.get(message.user_id)
        if message.chosen_device is not None:
            if presence is not None and message.chosen_device in presence.devices:
                presence.devices[message.chosen_device].requested = message.state
                self._on_change(presence)
            return
        if presence is None:
            if message.state == "offline" and not message.has_new_status:
                return
            presence = self.table.local_users[message.user_id] = LocalPresence(message.user_id)
        if message.has_new_status:
            presence.status_msg, presence.is_loaded = None, False
        elif message.state == "offline":
            presence.other_nodes.pop(node, None)
        else:
            # present until the message expires
            presence.other_nodes[node] = DevicePresence(
                message.state, 0, now + MESSAGE_LIFETIME - self._times.grace
            )
        if message.last_active is not None and message.last_active > (presence.last_active or 0.0):
            presence.last_active = presence.sent_last_active = min(message.last_active, now)
        self._on_change(presence)

    def _on_remote_message(self, _node: int, message: RemotePresenceMessage) -> None:
        for user_id in self._remote.receive(message.origin, [message.update]):
            self.broadcaster.mark_changed(user_id)

    def _send_message(self, presence: LocalPresence, *, resend: bool) -> None:
        state = presence.local_state(self._clock.seconds(), self._times)
        if self._messages is not None and (resend or state != presence.sent_state):
            presence.sent_state, presence.sent_last_active = state, presence.last_active
            self._messages.queue(
                KIND,
                presence.user_id,
                PresenceMessage(presence.user_id, state, presence.last_active),
            )

    def _resend_messages(self) -> None:
        for presence in self.table.local_users.values():
            if (
                presence.sent_state != "offline"
                or presence.last_active != presence.sent_last_active
            ):
                self._send_message(presence, resend=True)

    def _send_new_status(self, user_id: UserID) -> None:
        if self._messages is not None:
            self._messages.queue(
                KIND,
                (user_id, "status"),
                PresenceMessage(user_id, "offline", None, has_new_status=True),
            )

    # internals

    def _update_device(
        self, caller: Requester, wanted: State | None, *, is_new_choice: bool
    ) -> DevicePresence:
        """Return the caller's device, with the requested state applied."""
        presence = self.table.local_users.get(caller.user_id)
        if presence is None:
            presence = self.table.local_users[caller.user_id] = LocalPresence(caller.user_id)
        key = caller.device_id or ""
        device = presence.devices.get(key)
        if device is None:
            device = presence.devices[key] = DevicePresence(
                wanted or "online", 0, self._clock.seconds()
            )
            if device.requested == "online" and presence.published.state == "offline":
                presence.last_active = device.last_sync_end
        elif (
            wanted is None
            or wanted == device.requested
            or not (is_new_choice or self._may_choose(caller))
        ):
            return device
        else:
            device.requested = wanted
            if wanted == "online":
                presence.last_active = self._clock.seconds()
        self._on_change(presence)
        if wanted is not None and self._messages is not None:
            message = PresenceMessage(caller.user_id, wanted, None, chosen_device=key)
            self._messages.queue(KIND, (caller.user_id, key), message)
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

    def _on_change(self, presence: LocalPresence) -> None:
        """Process a possible change: send messages, schedule a broadcast and the next check."""
        now = self._clock.seconds()
        self._send_message(presence, resend=False)
        if not presence.is_loaded or presence.current(now, self._times) != presence.published:
            self.broadcaster.mark_changed(presence.user_id)
        expiry = presence.next_change(now, self._times)
        if expiry is not None:
            self._check_at(presence, expiry)

    def _check_at(self, presence: LocalPresence, expiry: float) -> None:
        """Schedule a check no later than `expiry`."""
        if presence.timer is not None:
            if presence.timer_at <= expiry:
                return
            presence.timer.cancel()
        presence.timer_at = expiry
        presence.timer = self._clock.callLater(
            max(0.0, expiry - self._clock.seconds()), self._check, presence
        )

    def _check(self, presence: LocalPresence) -> None:
        presence.timer = None
        presence.remove_absent_devices(self._clock.seconds(), self._times)
        self._on_change(presence)
        self.table.evict_idle(presence.user_id)

    def _remove(self, user_id: UserID) -> None:
        presence = self.table.local_users.get(user_id)
        if presence is not None:
            presence.devices.clear()
            presence.status_msg, presence.last_active, presence.is_stored = None, None, False
            self._on_change(presence)
        self._send_new_status(user_id)
