"""Sends to-device messages of local users, and receives those of other servers. spec:
client-server-api#send-to-device-messaging

A client may send messages to any user of any server, but each made-up server name costs a queue and
many attempts to connect. So a request may name at most `MAX_UNRELATED_SERVERS` unrelated servers,
at a limited rate for each user (`rc_to_device_to_new_servers`). A server is unrelated if it shares
no room with the sender, and no local user has invited any recipient from that server to a room of
the sender.

Each message is stored for each device until the device fetches it, perhaps forever. So the bytes
that a user sends are rate limited too (`rc_to_device_bytes`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from secrets import token_urlsafe
from typing import Any, Final

import msgspec
from twisted.logger import Logger

from federation.peers.federation_policy import FederationPolicy
from federation.peers.identity import ServerIdentity
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
from homeserver.services.devices.device_cache import DeviceCache
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

MAX_MESSAGES: Final = 10_000
"""In one request, with every device of a wildcard counted; for local and for remote users each."""
MAX_UNRELATED_SERVERS: Final = 100
"""Unrelated servers (see the module header) in one request."""
MAX_TYPE: Final = 255
"""Characters of a type, transaction ID or message ID."""
RESPONSE: Final = b"{}"
TOO_MANY: Final = f"One request may send to at most {MAX_MESSAGES} devices"
TOO_LARGE: Final = "A to-device message may have at most 64 KiB"
MAX_MESSAGE_BYTES: Final = 64 << 10
"""Size limit of one message: that of an event."""
MAX_RECEIVED_BYTES: Final = 256 << 10
"""Size limit of one message from another server. Other servers may permit more than we do, and
losing a room key is worse."""
MAX_EDU_BYTES: Final = 256 << 10
"""Bytes of contents, user IDs and device IDs after which the next EDU begins."""
MESSAGE_OVERHEAD_BYTES: Final = 200
"""Storage of one message in addition to its content."""
REQUEST_OVERHEAD_BYTES: Final = 1_000
"""Storage of the record of one request."""
MAX_COPIED_BYTES: Final = 64 << 20
"""Size limit of all copies of messages to all devices of users, in one request or EDU."""
COPIES_TOO_LARGE: Final = "The messages, copied to all devices, are too large for one request"
DUPLICATE_DETECTION_MS: Final = 30 * 24 * 3600 * 1000
"""The time for which IDs of messages from other servers are stored to detect duplicates."""

WARNING_INTERVAL_MS: Final = 60_000
"""Minimum time between warnings that a remote user sends too much."""

Messages = Mapping[str, Mapping[str, msgspec.Raw]]
"""Undecoded contents by user and device."""


class DirectToDeviceEDU(msgspec.Struct, frozen=True):
    """The content of an m.direct_to_device EDU."""

    sender: str
    type: str
    message_id: str
    messages: dict[str, dict[str, dict[str, Any]]]


class ToDevice:
    """Sends and receives to-device messages."""

    _log = Logger()

    def __init__(
        self,
        *,
        database: Database,
        store: ToDeviceStore,
        outgoing: OutgoingToDeviceStore,
        identity: ServerIdentity,
        policy: FederationPolicy,
        servers: RoomServers,
        devices: DeviceCache,
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
        """Send each message once, even if the request is repeated. Skip devices that do not exist.

        Raises InvalidParam; BadJson, NotJson for unreadable contents; TooLarge for a message of
        more than `MAX_MESSAGE_BYTES`; UserSuspended and ConsentNotGiven for users who may only read
        and who write to others (they may still verify their own devices); LimitExceeded for too
        many bytes, or too many servers with which the user shares no room.

        spec: client-server-api#account-suspension
        """
        if len(type) > MAX_TYPE or len(txn_id) > MAX_TYPE:
            raise InvalidParam("The type or the transaction ID is too long")
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
            caller.device_created_ts,
        )
        now = self._now_ms()
        contents = check_contents(
            [content for devices in messages.values() for content in devices.values()]
        )
        size = _size_of(contents) + REQUEST_OVERHEAD_BYTES
        if caller.rate_limited:
            try:
                self._limiter.check_and_overdraw(Limit.TO_DEVICE_BYTES, caller.user_id, size)
            except LimitExceeded:
                if await self._was_sent(sent):
                    return
                raise
        try:
            copied = await self._send(caller, type, sent, messages, contents, now)
        except (AlreadySent, MatrixError) as error:
            if caller.rate_limited:  # nothing was stored now; an earlier request was counted then
                self._limiter.refund(Limit.TO_DEVICE_BYTES, caller.user_id, size)
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
        """Write the messages. Return the bytes of copies that wildcards added. Raises AlreadySent,
        MatrixError."""
        local: Mapping[str, Iterable[str]] = messages
        remote: Mapping[str, Mapping[str, bytes]] = {}
        known, changes = self._devices.find(messages.keys()), self._devices.version
        if known is None:
            checked = _by_user(messages, contents)
            local_users = {
                user_id: devices
                for user_id, devices in checked.items()
                if self._identity.is_local(user_id)
            }
            remote = {
                user_id: devices
                for user_id, devices in checked.items()
                if user_id not in local_users
            }
            local, contents = (
                local_users,
                [content for devices in local_users.values() for content in devices.values()],
            )
            known = self._devices.find(local_users.keys())
        prefix = _event_prefix(caller.user_id, type)
        max_bytes = MAX_MESSAGE_BYTES - len(prefix) - 1
        cached_recipients = (
            None if known is None else _find_recipients(known.users, local, contents, max_bytes)
        )
        outgoing = self._build_edus(caller.user_id, type, remote) if remote else ()
        if outgoing and (
            unrelated := await self._find_unrelated(caller.user_id, outgoing[0], remote)
        ):
            if await self._was_sent(sent):
                raise AlreadySent(sent, RESPONSE)
            self._count_unrelated(caller, len(unrelated))

        def write(txn: WriteTransaction) -> tuple[Mapping[str, Recipients] | None, int]:
            add_transaction(txn, sent, None, RESPONSE, now)
            found = self._store.get_recipients(txn, local, known)
            recipients = (
                cached_recipients
                if found is None
                else _find_recipients(found, local, contents, max_bytes)
            )
            assert recipients is not None, "the cached devices are current, so they were prepared"
            # another list means that a wildcard may have added copies
            copied = 0 if recipients[1] is contents else _size_of(recipients[1])
            if copied > MAX_COPIED_BYTES:
                raise TooLarge(COPIES_TOO_LARGE)
            self._store.add_messages(txn, prefix, *recipients, now)
            for edus in outgoing:
                self._outgoing.add_messages(txn, edus)
            return found, copied

        found, copied = await self._database.write("send_to_device", write)
        if found is not None:
            self._devices.add(found, changes)
        return copied

    async def _was_sent(self, sent: SentTransaction) -> bool:
        return (
            await self._database.read_quickly("get_sent_response", select_response, sent)
            is not None
        )

    async def receive(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """Receive an m.direct_to_device EDU from another server. Ignore duplicates, and messages
        that are too large or unreadable.

        Stored bytes count for the sender and the server, once for each device. Raises InvalidParam;
        TooLarge if the sender sent too much, which does not stop other users of the server;
        LimitExceeded if the server sent too much.

        spec: server-server-api#send-to-device-messaging
        """
        try:
            message = msgspec.convert(content, DirectToDeviceEDU)
        except msgspec.ValidationError as error:
            raise InvalidParam(f"m.direct_to_device: {error}") from None
        if not is_user_id(message.sender) or domain_of(message.sender) != origin:
            raise InvalidParam("The sender is not a user of the origin server")
        if (
            len(message.type) > MAX_TYPE
            or len(message.message_id) > MAX_TYPE
            or "\0" in message.message_id
        ):
            raise InvalidParam("The type or the message ID is too long or malformed")
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
        interned = dict(zip(encoded, encoded, strict=True))  # equal contents share one object
        sent = [interned[content] for content in encoded]
        prefix = _event_prefix(message.sender, message.type)
        max_bytes = MAX_RECEIVED_BYTES - len(prefix) - 1
        now = self._now_ms()
        try:
            self._limiter.check_without_counting(
                Limit.TO_DEVICE_BYTES_OF_REMOTE_USER, message.sender
            )
        except LimitExceeded:
            if now >= self._warned_ms + WARNING_INTERVAL_MS:
                self._warned_ms = now
                self._log.warn(
                    "to-device messages of {sender} are rejected for now: they exceed the rate "
                    "limit in bytes",
                    sender=message.sender,
                )
            raise TooLarge("The sender has sent too much recently") from None
        self._limiter.check_without_counting(Limit.TO_DEVICE_BYTES_OF_SERVER, origin)

        def write(txn: WriteTransaction) -> int:
            existing = self._store.get_devices(txn, local)
            recipients, contents = _find_recipients(
                existing, local, sent, max_bytes, skip_too_large=True
            )
            # messages without a recipient need no duplicate detection, and cost nothing
            if not recipients or not self._outgoing.add_received(
                txn, origin, message.sender, message.message_id, now
            ):
                return 0
            size = _size_of(contents)
            if size > MAX_COPIED_BYTES:
                raise TooLarge(COPIES_TOO_LARGE)
            self._store.add_messages(txn, prefix, recipients, contents, now)
            return size

        if stored := await self._database.write("receive_to_device", write):
            self._limiter.count(Limit.TO_DEVICE_BYTES_OF_REMOTE_USER, message.sender, cost=stored)
            self._limiter.count(Limit.TO_DEVICE_BYTES_OF_SERVER, origin, cost=stored)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` messages that no device will fetch any more, and return their
        number."""
        return await self._store.sweep(limit, self._now_ms())

    async def remove_old_received(self, limit: int) -> int:
        """Remove up to `limit` old IDs of received messages, and return their number."""
        return await self._outgoing.delete_received(self._now_ms() - DUPLICATE_DETECTION_MS, limit)

    async def _find_unrelated(
        self, sender: UserID, servers: Iterable[str], users: Iterable[str]
    ) -> Collection[ServerName]:
        """Return the servers that share no room with the sender and whose users, among these, were
        not invited to one. Raises InvalidParam."""
        unrelated = await self._servers.find_unrelated(sender, {*map(ServerName, servers)}, users)
        if len(unrelated) > MAX_UNRELATED_SERVERS:
            raise InvalidParam(
                f"One request may send to at most {MAX_UNRELATED_SERVERS} servers with which you"
                " share no room"
            )
        return unrelated

    def _count_unrelated(self, caller: Requester, unrelated: int) -> None:
        """Raises LimitExceeded."""
        if caller.rate_limited:
            self._limiter.check_without_counting(Limit.TO_DEVICE_NEW_SERVERS, caller.user_id)
            self._limiter.count(Limit.TO_DEVICE_NEW_SERVERS, caller.user_id, cost=unrelated)

    def _build_edus(
        self, sender: UserID, type: str, remote: Mapping[str, Mapping[str, bytes]]
    ) -> list[dict[str, bytes]]:
        """Return rounds of EDU contents by server; a server with many messages is in several
        rounds. Messages to a server that the policy refuses for now are queued, as for an
        unreachable one; those to a server that it blocks are dropped. Raises InvalidParam,
        TooLarge."""
        if sum(map(len, remote.values())) > MAX_MESSAGES:
            raise InvalidParam(TOO_MANY)
        by_server: dict[ServerName, list[dict[str, dict[str, Any]]]] = {}
        sizes: dict[ServerName, int] = {}
        for user_id, devices in remote.items():
            if not is_user_id(user_id):
                continue
            server = domain_of(user_id)
            if not is_server_name(server) or not self._policy.may_allow_later(server):
                continue
            parts = by_server.setdefault(server, [{}])
            for device_id, content in devices.items():
                if len(content) > MAX_MESSAGE_BYTES:
                    raise TooLarge(TOO_LARGE)
                if not is_device_id(device_id):
                    continue  # a remote device cannot have such an ID
                size = len(content) + len(user_id) + len(device_id)
                if parts[-1] and sizes.get(server, 0) + size > MAX_EDU_BYTES:
                    parts.append({})
                    sizes[server] = 0
                sizes[server] = sizes.get(server, 0) + size
                parts[-1].setdefault(user_id, {})[device_id] = msgspec.json.decode(content)
        batches: list[dict[str, bytes]] = []
        for server, parts in by_server.items():
            for number, part in enumerate(filter(None, parts)):
                edu = {
                    "sender": sender,
                    "type": type,
                    "message_id": token_urlsafe(18),
                    "messages": part,
                }
                if number == len(batches):
                    batches.append({})
                batches[number][server] = encode_canonical(edu)
        return batches


def _find_recipients(
    existing: Mapping[str, Recipients],
    devices_of: Mapping[str, Iterable[str]],
    contents: Sequence[bytes],
    max_bytes: int,
    *,
    skip_too_large: bool = False,
) -> tuple[Sequence[Recipient], Sequence[bytes]]:
    """Return the existing devices among the addressed ones, and the content for each of them.
    `contents` are in the order of `devices_of`. A content of more than `max_bytes` bytes is left
    out if `skip_too_large`, else this raises TooLarge. Raises InvalidParam."""
    has_too_large = max(map(len, contents), default=0) > max_bytes
    if has_too_large and not skip_too_large:
        raise TooLarge(TOO_LARGE)
    found: list[Any] = [
        existing[user_id].get(device_id)
        for user_id, devices in devices_of.items()
        for device_id in devices
    ]
    if not has_too_large and all(found) and len(found) <= MAX_MESSAGES:
        return found, contents
    recipients: list[Recipient] = []
    sent: list[bytes] = []
    remaining = iter(contents)
    for user_id, devices in devices_of.items():
        of_user = existing[user_id]
        for device_id, content in zip(devices, remaining, strict=False):
            if len(content) > max_bytes:
                continue
            recipient = of_user.get(device_id)
            if recipient is not None:
                recipients.append(recipient)
                sent.append(content)
            elif device_id == ALL_DEVICES:
                recipients += of_user.values()
                sent += [content] * len(of_user)
    if len(recipients) > MAX_MESSAGES:
        raise InvalidParam(TOO_MANY)
    return recipients, sent


def _size_of(contents: Sequence[bytes]) -> int:
    """Return the approximate storage of these messages in bytes."""
    return sum(map(len, contents)) + MESSAGE_OVERHEAD_BYTES * len(contents)


def _by_user(messages: Messages, contents: Iterable[bytes]) -> dict[str, dict[str, bytes]]:
    """Return the contents, which are in the order of `messages`, by user and device."""
    remaining = iter(contents)
    return {
        user_id: dict(zip(devices, remaining, strict=False))
        for user_id, devices in messages.items()
    }


def _event_prefix(sender: str, type: str) -> bytes:
    """Return the start of the events that devices get; the content follows."""
    encode = msgspec.json.encode
    return b'{"type":%b,"sender":%b,"content":' % (encode(type), encode(sender))
