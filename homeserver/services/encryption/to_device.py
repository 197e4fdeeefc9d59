"""Messages from device to device. spec: client-server-api#send-to-device-messaging

A message may go to anybody; but a name of a server that somebody makes up costs this one a queue
and many tries. So of servers with which the sender shares no room, and of whose users none is
invited to one by somebody here, a request may name a few, and a user so many in time
(`rc_to_device_strangers`). And what a user sends is kept for each device until that comes back,
perhaps never: so it is so many bytes in time (`rc_to_device_bytes`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from secrets import token_urlsafe
from typing import Any, Final

import msgspec
from twisted.logger import Logger

from federation.peers.identity import ServerIdentity
from federation.peers.policy import Policy
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import InvalidParam, LimitExceeded, MatrixError, TooLarge
from federation.protocol.ids import (
    ALL_DEVICES,
    ServerName,
    UserID,
    domain_of,
    is_server_name,
    is_user_id,
)
from federation.remote.keys import is_device_id
from federation.rooms.room_servers import RoomServers
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.devices.device_cache import DevicesOfUsers
from homeserver.services.encryption.to_device_content import check_contents, is_unreadable
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.encryption.to_device import Recipient, Recipients, ToDeviceStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.sent_transactions import (
    AlreadySent,
    SentTransaction,
    add_transaction,
    select_response,
)

MOST_MESSAGES: Final = 10_000
"""In one request, every device of a wildcard counted; to our users, and to others."""
MOST_STRANGERS: Final = 100
"""Servers with which the sender shares no room, in one request."""
LONGEST_TYPE: Final = 255
ANSWER: Final = b"{}"
TOO_MANY: Final = f"One request may send to at most {MOST_MESSAGES} devices"
TOO_LARGE: Final = "A message to a device may have 64 KiB"
LARGEST_MESSAGE: Final = 64 << 10
"""Bytes of one message: as much as an event may have."""
LARGEST_RECEIVED: Final = 256 << 10
"""Bytes of one message from another server. Others may permit more than we do, and to carry a key
is better than to lose it."""
LARGEST_EDU: Final = 256 << 10
"""Bytes of contents, and characters of names, after which a further EDU begins."""
MESSAGE_BYTES: Final = 200
REQUEST_BYTES: Final = 1_000
"""What keeping one message, and the note of one request, take beside the contents."""
MOST_BYTES: Final = 64 << 20
"""Of all copies of what goes to all devices of many users, in one request, or one EDU."""
TOO_MUCH: Final = "So much for so many devices is more than one request may send"
REMEMBERED_MS: Final = 30 * 24 * 3600 * 1000
"""How long messages that came from other servers are known again."""

WARNED_EACH_MS: Final = 60_000
"""How often at most it is logged that a user of another server sends too much."""

Messages = Mapping[str, Mapping[str, msgspec.Raw]]
"""Contents by user and device, as they came."""


class DirectToDevice(msgspec.Struct, frozen=True):
    """The content of the EDU."""

    sender: str
    type: str
    message_id: str
    messages: dict[str, dict[str, dict[str, Any]]]


class ToDevice:
    """Sends messages to devices."""

    _log = Logger()

    def __init__(
        self,
        database: Database,
        store: ToDeviceStore,
        outgoing: OutgoingToDeviceStore,
        identity: ServerIdentity,
        policy: Policy,
        servers: RoomServers,
        devices: DevicesOfUsers,
        limiter: RateLimiter,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._store = store
        self._outgoing = outgoing
        self._identity = identity
        self._policy = policy
        self._servers = servers
        self._devices = devices
        self._limiter = limiter
        self._now_ms = now_ms
        self._warned_ms = 0

    async def do_send(self, caller: Requester, type: str, txn_id: str, messages: Messages) -> None:
        """Send each message once, however often the request is repeated. Devices that do not exist
        get nothing.

        Raises InvalidParam; BadJson, NotJson for contents that nobody could read; TooLarge for a
        message of more than `LARGEST_MESSAGE`; UserSuspended and ConsentNotGiven for users who may
        only read, and write to others than themselves: they may still verify their own devices;
        LimitExceeded for who writes to too many servers with which they share no room, or too much.

        spec: client-server-api#account-suspension
        """
        if len(type) > LONGEST_TYPE or len(txn_id) > LONGEST_TYPE:
            raise InvalidParam("The type or the transaction id is too long")
        if not messages.keys() <= {caller.user_id}:
            caller.check_may_write()
        if caller.is_shadow_banned:
            messages = {
                user_id: devices
                for user_id, devices in messages.items()
                if user_id == caller.user_id
            }
        sent = SentTransaction(
            caller.user_id,
            caller.device_id or "",
            f"sendToDevice/{type}",
            txn_id,
            caller.device_made_ts,
        )
        now = self._now_ms()
        contents = check_contents(
            [content for devices in messages.values() for content in devices.values()]
        )
        size = _size_of(contents) + REQUEST_BYTES
        if caller.rate_limited:
            try:
                self._limiter.check_then_count(Limit.TO_DEVICE_BYTES, caller.user_id, size)
            except LimitExceeded:
                if await self._was_sent(sent):
                    return
                raise
        try:
            copied = await self._send(caller, type, sent, messages, contents, now)
        except (AlreadySent, MatrixError) as error:
            if caller.rate_limited:  # what was kept, if anything, was counted then
                self._limiter.give_back(Limit.TO_DEVICE_BYTES, caller.user_id, size)
            if isinstance(error, AlreadySent):
                return
            raise
        if copied and caller.rate_limited:
            self._limiter.count(Limit.TO_DEVICE_BYTES, caller.user_id, cost=copied)

    async def _send(
        self,
        caller: Requester,
        type: str,
        sent: SentTransaction,
        messages: Messages,
        contents: Sequence[bytes],
        now: int,
    ) -> int:
        """How many bytes went to all devices of somebody. Raises AlreadySent, MatrixError."""
        local: Mapping[str, Iterable[str]] = messages
        others: Mapping[str, Mapping[str, bytes]] = {}
        known, changes = self._devices.find(messages.keys()), self._devices.changes
        if known is None:
            checked = _by_user(messages, contents)
            ours = {
                user_id: devices
                for user_id, devices in checked.items()
                if self._identity.is_local(user_id)
            }
            others = {
                user_id: devices for user_id, devices in checked.items() if user_id not in ours
            }
            local, contents = (
                ours,
                [content for devices in ours.values() for content in devices.values()],
            )
            known = self._devices.find(ours.keys())
        opening = _opening(caller.user_id, type)
        largest = LARGEST_MESSAGE - len(opening) - 1
        prepared = None if known is None else _for_devices(known.users, local, contents, largest)
        outgoing = self._for_others(caller.user_id, type, others) if others else ()
        if outgoing and (strangers := await self._strangers(caller.user_id, outgoing[0], others)):
            if await self._was_sent(sent):
                raise AlreadySent(sent, ANSWER)
            self._count_strangers(caller, len(strangers))

        def write(txn: WriteTransaction) -> tuple[Mapping[str, Recipients] | None, int]:
            add_transaction(txn, sent, None, ANSWER, now)
            there = self._store.get_recipients(txn, local, known)
            addressed = prepared if there is None else _for_devices(there, local, contents, largest)
            assert addressed is not None, "what is known holds"
            # what is another list may be for all devices of somebody
            copied = 0 if addressed[1] is contents else _size_of(addressed[1])
            if copied > MOST_BYTES:
                raise TooLarge(TOO_MUCH)
            self._store.add_messages(txn, opening, *addressed, now)
            for edus in outgoing:
                self._outgoing.add_messages(txn, edus)
            return there, copied

        there, copied = await self._database.write("send_to_device", write)
        if there is not None:
            self._devices.keep(there, changes)
        return copied

    async def _was_sent(self, sent: SentTransaction) -> bool:
        return (
            await self._database.read_quickly("get_sent_response", select_response, sent)
            is not None
        )

    async def receive(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """Messages of a user of another server: m.direct_to_device, each taken once; what is too
        large, or not everybody could read, is left out. What is kept counts in bytes, for each
        device that gets it, as its sender's and the server's. Raises InvalidParam; TooLarge where
        that was too much of the sender's, with which others of the server have nothing to do;
        LimitExceeded where it was too much of the server's.

        spec: server-server-api#send-to-device-messaging
        """
        try:
            message = msgspec.convert(content, DirectToDevice)
        except msgspec.ValidationError as error:
            raise InvalidParam(f"m.direct_to_device: {error}") from None
        if not is_user_id(message.sender) or domain_of(message.sender) != origin:
            raise InvalidParam("The sender is no user of the server")
        if (
            len(message.type) > LONGEST_TYPE
            or len(message.message_id) > LONGEST_TYPE
            or "\0" in message.message_id
        ):
            raise InvalidParam("The type or the message id is too long, or malformed")
        local = {
            user_id: {
                device_id: content
                for device_id, content in devices.items()
                if not is_unreadable(content)
            }
            for user_id, devices in message.messages.items()
            if self._identity.is_local(user_id)
        }
        encoded = [
            msgspec.json.encode(content)
            for devices in local.values()
            for content in devices.values()
        ]
        once = dict(zip(encoded, encoded, strict=True))  # what is the same is kept once
        sent = [once[content] for content in encoded]
        opening = _opening(message.sender, message.type)
        largest = LARGEST_RECEIVED - len(opening) - 1
        now = self._now_ms()
        try:
            self._limiter.check_only(Limit.TO_DEVICE_BYTES_OF_REMOTE_USER, message.sender)
        except LimitExceeded:
            if now >= self._warned_ms + WARNED_EACH_MS:
                self._warned_ms = now
                self._log.warn(
                    "{sender} has sent so much to devices here that no more of it is taken in for now",
                    sender=message.sender,
                )
            raise TooLarge("The sender has sent too much of late") from None
        self._limiter.check_only(Limit.TO_DEVICE_BYTES_OF_SERVER, origin)

        def write(txn: WriteTransaction) -> int:
            there = self._store.get_devices(txn, local)
            recipients, contents = _for_devices(there, local, sent, largest, leave_out=True)
            # what nobody gets needs no note, and a server may send as much of that as it likes
            if not recipients or not self._outgoing.add_received(
                txn, origin, message.sender, message.message_id, now
            ):
                return 0
            size = _size_of(contents)
            if size > MOST_BYTES:
                raise TooLarge(TOO_MUCH)
            self._store.add_messages(txn, opening, recipients, contents, now)
            return size

        if kept := await self._database.write("receive_to_device", write):
            self._limiter.count(Limit.TO_DEVICE_BYTES_OF_REMOTE_USER, message.sender, cost=kept)
            self._limiter.count(Limit.TO_DEVICE_BYTES_OF_SERVER, origin, cost=kept)

    async def do_sweep(self, limit: int) -> int:
        """Remove some of the messages that nobody gets any more; how many."""
        return await self._store.sweep(limit, self._now_ms())

    async def forget_received(self, limit: int) -> int:
        """Forget what came so long ago that nobody sends it again; how many."""
        return await self._outgoing.forget_received(self._now_ms() - REMEMBERED_MS, limit)

    async def _strangers(
        self, sender: UserID, servers: Iterable[str], users: Iterable[str]
    ) -> Collection[ServerName]:
        """Those with which the sender shares no room, and of whom none of these users is invited to
        one. Raises InvalidParam."""
        strangers = await self._servers.find_strangers(sender, {*map(ServerName, servers)}, users)
        if len(strangers) > MOST_STRANGERS:
            raise InvalidParam(
                f"One request may send to at most {MOST_STRANGERS} servers with which you share no room"
            )
        return strangers

    def _count_strangers(self, caller: Requester, strangers: int) -> None:
        """Raises LimitExceeded."""
        if caller.rate_limited:
            self._limiter.check_only(Limit.TO_DEVICE_STRANGERS, caller.user_id)
            self._limiter.count(Limit.TO_DEVICE_STRANGERS, caller.user_id, cost=strangers)

    def _for_others(
        self, sender: UserID, type: str, others: Mapping[str, Mapping[str, bytes]]
    ) -> list[dict[str, bytes]]:
        """The contents of EDUs by server: several for a server for which it is much. What is for a
        server that is refused for now waits, as for one that cannot be reached; nothing waits for
        one that is shut out. Raises InvalidParam, TooLarge."""
        if sum(map(len, others.values())) > MOST_MESSAGES:
            raise InvalidParam(TOO_MANY)
        by_server: dict[ServerName, list[dict[str, dict[str, Any]]]] = {}
        sizes: dict[ServerName, int] = {}
        for user_id, devices in others.items():
            if not is_user_id(user_id):
                continue
            server = domain_of(user_id)
            if not is_server_name(server) or not self._policy.may_allow_later(server):
                continue
            parts = by_server.setdefault(server, [{}])
            for device_id, content in devices.items():
                if len(content) > LARGEST_MESSAGE:
                    raise TooLarge(TOO_LARGE)
                if not is_device_id(device_id):
                    continue  # no such one is known of other servers' users
                size = len(content) + len(user_id) + len(device_id)
                if parts[-1] and sizes.get(server, 0) + size > LARGEST_EDU:
                    parts.append({})
                    sizes[server] = 0
                sizes[server] = sizes.get(server, 0) + size
                parts[-1].setdefault(user_id, {})[device_id] = msgspec.json.decode(content)
        rounds: list[dict[str, bytes]] = []
        for server, parts in by_server.items():
            for number, part in enumerate(filter(None, parts)):
                edu = {
                    "sender": sender,
                    "type": type,
                    "message_id": token_urlsafe(18),
                    "messages": part,
                }
                if number == len(rounds):
                    rounds.append({})
                rounds[number][server] = encode_canonical(edu)
        return rounds


def _for_devices(
    there: Mapping[str, Recipients],
    devices_of: Mapping[str, Iterable[str]],
    contents: Sequence[bytes],
    largest: int,
    *,
    leave_out: bool = False,
) -> tuple[Sequence[Recipient], Sequence[bytes]]:
    """Messages to those devices that are there: who gets them, and the content for each. `contents`
    are those for the devices, in their order. More bytes than `largest` they may not have; what has
    is left out, or this raises TooLarge. Raises InvalidParam."""
    has_too_large = max(map(len, contents), default=0) > largest
    if has_too_large and not leave_out:
        raise TooLarge(TOO_LARGE)
    found: list[Any] = [
        there[user_id].get(device_id)
        for user_id, devices in devices_of.items()
        for device_id in devices
    ]
    if not has_too_large and all(found) and len(found) <= MOST_MESSAGES:
        return found, contents
    recipients: list[Recipient] = []
    sent: list[bytes] = []
    coming = iter(contents)
    for user_id, devices in devices_of.items():
        of_user = there[user_id]
        for device_id, content in zip(devices, coming, strict=False):
            if len(content) > largest:
                continue
            recipient = of_user.get(device_id)
            if recipient is not None:
                recipients.append(recipient)
                sent.append(content)
            elif device_id == ALL_DEVICES:
                recipients += of_user.values()
                sent += [content] * len(of_user)
    if len(recipients) > MOST_MESSAGES:
        raise InvalidParam(TOO_MANY)
    return recipients, sent


def _size_of(contents: Sequence[bytes]) -> int:
    """What keeping these for a device each takes, about."""
    return sum(map(len, contents)) + MESSAGE_BYTES * len(contents)


def _by_user(messages: Messages, contents: Iterable[bytes]) -> dict[str, dict[str, bytes]]:
    """The contents, in the order of the messages, by user and device as these are."""
    coming = iter(contents)
    return {
        user_id: dict(zip(devices, coming, strict=False)) for user_id, devices in messages.items()
    }


def _opening(sender: str, type: str) -> bytes:
    """How the events begin, as devices get them; their contents follow."""
    encode = msgspec.json.encode
    return b'{"type":%b,"sender":%b,"content":' % (encode(type), encode(sender))
