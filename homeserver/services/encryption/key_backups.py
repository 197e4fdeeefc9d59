"""Backups of room keys, which clients store on the server so that a new device can read old
messages.

spec: client-server-api#server-side-key-backups
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from federation.api.responses import Response, StreamedBody
from federation.protocol.errors import (
    Forbidden,
    InvalidParam,
    NotFound,
    TooLarge,
    WrongRoomKeysVersion,
)
from federation.protocol.ids import UserID, is_room_id
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from storage.encryption.key_backups import (
    PUT_CHUNK,
    BackedUpKey,
    BackupFull,
    BackupRow,
    KeyBackupStore,
    NoSuchBackup,
    NotCurrentBackup,
    TooManyBackups,
)

MAX_VERSION_DIGITS: Final = 18
MAX_SESSION_ID: Final = 255
MAX_SESSION_DATA_BYTES: Final = 64 << 10
"""Bytes of the data of one session: as much as an event may have."""
KEY_OVERHEAD_BYTES: Final = 200
"""Storage that the key of one session takes in addition to its data."""
KEYS_PER_BATCH: Final = 200
"""Keys that are read together and sent as one piece of a long response."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class SessionKey(msgspec.Struct, frozen=True):
    """The key of one session.

    spec: client-server-api#put_matrixclientv3room_keyskeysroomidsessionid
    """

    first_message_index: Count
    forwarded_count: Count
    is_verified: bool
    session_data: dict[str, Any]


class RoomKeys(msgspec.Struct, frozen=True):
    """Keys of a room by session."""

    sessions: dict[str, SessionKey]


class AllRoomKeys(msgspec.Struct, frozen=True):
    """Keys by room and session."""

    rooms: dict[str, RoomKeys]


class BackupDefinition(msgspec.Struct, frozen=True):
    """The body that creates or changes a version. `version`, if given, has to be the one in the
    path."""

    algorithm: Annotated[str, msgspec.Meta(max_length=255)]
    auth_data: dict[str, Any]
    version: str | None = None


class KeyBackups:
    """Stores and reads key backups."""

    def __init__(self, *, store: KeyBackupStore, limiter: RateLimiter) -> None:
        self._store = store
        self._limiter = limiter

    async def get_version(self, user_id: UserID, version: str | None) -> dict[str, Any]:
        """Return a version of the backup, by default the newest. Raises NotFound."""
        backup = await self._find(user_id, version)
        return {
            "version": str(backup.version),
            "algorithm": backup.algorithm,
            "auth_data": msgspec.Raw(backup.auth_data),
            **_state(backup),
        }

    async def do_create(self, user_id: UserID, definition: BackupDefinition) -> str:
        """Create a version and return its name. Raises Forbidden if the user has too many."""
        auth_data = msgspec.json.encode(definition.auth_data)
        try:
            return str(await self._store.add_backup(user_id, definition.algorithm, auth_data))
        except TooManyBackups:
            raise Forbidden("You have too many key backups: delete old ones first") from None

    async def do_change(self, user_id: UserID, version: str, definition: BackupDefinition) -> None:
        """Change the `auth_data` of a version. Its algorithm cannot change. Raises NotFound,
        InvalidParam."""
        backup = await self._find(user_id, version)
        if definition.version is not None and definition.version != version:
            raise InvalidParam("The version in the body is not the one in the path")
        if definition.algorithm != backup.algorithm:
            raise InvalidParam("The algorithm of a backup cannot be changed")
        with _translated():
            await self._store.set_auth_data(
                user_id, backup.version, msgspec.json.encode(definition.auth_data)
            )

    async def do_delete(self, user_id: UserID, version: str) -> None:
        """Delete a version and its keys. Deleting it again is not an error. Raises NotFound."""
        with _translated():
            await self._store.remove_backup(user_id, _number(version))

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` keys of deleted versions and return their number."""
        return await self._store.sweep(limit)

    async def get_key(
        self, user_id: UserID, version: str, room_id: str, session_id: str
    ) -> dict[str, Any]:
        """Return the key of one session. Raises NotFound."""
        backup = await self._find(user_id, version)
        key = await self._store.get_key(user_id, backup.version, room_id, session_id)
        if key is None:
            raise NotFound("The backup has no key for this session")
        return _present(key)

    async def get_room_keys(self, user_id: UserID, version: str, room_id: str) -> Response:
        """Return the keys of a room by session. Raises NotFound."""
        backup = await self._find(user_id, version)
        return Response(body=StreamedBody(self._sessions(user_id, backup.version, room_id)))

    async def get_all_keys(self, user_id: UserID, version: str) -> Response:
        """Return all keys by room and session. There may be hundreds of thousands, so they are read
        while the response is sent. Raises NotFound."""
        backup = await self._find(user_id, version)
        return Response(body=StreamedBody(self._rooms(user_id, backup.version)))

    async def _sessions(self, user_id: UserID, version: int, room_id: str) -> AsyncIterator[bytes]:
        piece, comma = b'{"sessions":{', b""
        async for keys in self._read(user_id, version, room_id):
            if comma:
                yield piece
                piece = comma
            piece += b",".join(map(_member, keys))
            comma = b","
        yield piece + b"}}"

    async def _rooms(self, user_id: UserID, version: int) -> AsyncIterator[bytes]:
        piece = b'{"rooms":{'
        room_id: str | None = None
        async for keys in self._read(user_id, version, None):
            parts = [piece]
            if room_id is not None:
                yield piece
                parts = []
            for key in keys:
                if key.room_id == room_id:
                    parts += (b",", _member(key))
                else:
                    end = b"" if room_id is None else b"}},"
                    room_id = key.room_id
                    parts += (end, msgspec.json.encode(room_id), b':{"sessions":{', _member(key))
            piece = b"".join(parts)
        yield piece + (b"}}" if room_id is None else b"}}}}")

    async def _read(
        self, user_id: UserID, version: int, room_id: str | None
    ) -> AsyncIterator[Sequence[BackedUpKey]]:
        """Yield the keys in order, in batches. Raises NotFound if the backup is deleted
        meanwhile."""
        after = ("", "")
        while True:
            with _translated():
                keys = await self._store.get_keys(user_id, version, room_id, after, KEYS_PER_BATCH)
            if keys:
                yield keys
                after = (keys[-1].room_id, keys[-1].session_id)
            if len(keys) < KEYS_PER_BATCH:
                return

    async def do_put_keys(
        self, caller: Requester, version: str, rooms: Mapping[str, Mapping[str, SessionKey]]
    ) -> dict[str, Any]:
        """Add keys. The rate limit counts bytes: it accepts a request while any budget is left, and
        a large request makes the next one wait longer. Raises NotFound, WrongRoomKeysVersion,
        InvalidParam, TooLarge, LimitExceeded."""
        keys = list(_stored(rooms))
        size = sum([len(key.session_data) + KEY_OVERHEAD_BYTES for key in keys])
        if caller.rate_limited:
            self._limiter.check_and_overdraw(Limit.BACKUP_BYTES, caller.user_id, size)
        try:
            with _translated():
                backup = await self._store.put_keys(caller.user_id, _number(version), keys)
        except Exception:
            if caller.rate_limited and len(keys) <= PUT_CHUNK:  # of more, some may be stored
                self._limiter.refund(Limit.BACKUP_BYTES, caller.user_id, size)
            raise
        return _state(backup)

    async def do_delete_keys(
        self,
        user_id: UserID,
        version: str,
        room_id: str | None = None,
        session_id: str | None = None,
    ) -> dict[str, Any]:
        """Delete all keys, those of a room, or one key. Raises NotFound."""
        with _translated():
            backup = await self._store.remove_keys(user_id, _number(version), room_id, session_id)
        return _state(backup)

    async def _find(self, user_id: UserID, version: str | None) -> BackupRow:
        backup = await self._store.get_backup(
            user_id, None if version is None else _number(version)
        )
        if backup is None:
            raise NotFound("There is no such backup")
        return backup


class _translated:  # noqa: N801 (a context manager reads as a verb)
    """Turns errors of the storage into Matrix errors."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, NoSuchBackup):
            raise NotFound("There is no such backup") from None
        if isinstance(error, NotCurrentBackup):
            raise WrongRoomKeysVersion(current_version=str(error.current)) from None
        if isinstance(error, BackupFull):
            raise TooLarge(
                "The backup is full: create a new one (reset it in the client's settings)"
            ) from None


def _number(version: str) -> int:
    if not (version.isascii() and version.isdecimal() and len(version) <= MAX_VERSION_DIGITS):
        raise NotFound("There is no such backup")
    return int(version)


def _stored(rooms: Mapping[str, Mapping[str, SessionKey]]) -> Iterable[BackedUpKey]:
    for room_id, sessions in rooms.items():
        if not is_room_id(room_id):
            raise InvalidParam(f"{room_id[:255]!r} is not a room ID")
        for session_id, key in sessions.items():
            if len(session_id) > MAX_SESSION_ID or "\0" in session_id:
                raise InvalidParam("A session ID is too long or contains NUL")
            data = msgspec.json.encode(key.session_data)
            if len(data) > MAX_SESSION_DATA_BYTES:
                raise TooLarge(
                    f"The data of a session may have at most {MAX_SESSION_DATA_BYTES} bytes"
                )
            yield BackedUpKey(
                room_id,
                session_id,
                key.first_message_index,
                key.forwarded_count,
                key.is_verified,
                data,
            )


def _present(key: BackedUpKey) -> dict[str, Any]:
    return {
        "first_message_index": key.first_message_index,
        "forwarded_count": key.forwarded_count,
        "is_verified": key.is_verified,
        "session_data": msgspec.Raw(key.session_data),
    }


def _member(key: BackedUpKey) -> bytes:
    """Encode a key as a member of a JSON object: its session ID and its value."""
    return b"%b:%b" % (msgspec.json.encode(key.session_id), msgspec.json.encode(_present(key)))


def _state(backup: BackupRow) -> dict[str, Any]:
    return {"etag": str(backup.etag), "count": backup.key_count}
