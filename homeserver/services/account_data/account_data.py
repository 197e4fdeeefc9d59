"""Account data and tags: private data that clients store on the server for their user.

spec: client-server-api#client-config, client-server-api#room-tagging
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from federation.protocol.canonical_json import decode_object
from federation.protocol.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    NotFound,
    TooLarge,
    UserLimitExceeded,
)
from federation.protocol.ids import RoomID, UserID
from homeserver.api.requester import Requester
from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

TAGS: Final = "m.tag"
MAX_CONTENT_BYTES: Final = 1024 * 1024
"""Bytes of one entry."""

_MAX_TYPE_BYTES: Final = 255
_MAX_TAG_BYTES: Final = 255
_MAX_TAGS_BYTES: Final = 65536
_FULLY_READ: Final = "m.fully_read"


class ManagedByServer(BadJson):
    """Clients cannot write an account data type that the server manages."""

    status, default_text = 405, "The server manages this account data"


class AccountData:
    """Reads and changes account data."""

    def __init__(
        self,
        *,
        database: Database,
        store: AccountDataStore,
        max_entries: int | None,
        max_bytes: int | None,
        info_uri: str,
        computed: Mapping[str, Callable[[UserID, bytes | None], Mapping[str, object]]],
    ) -> None:
        """`max_entries` and `max_bytes` (bytes of all contents): limits for one user; None: no
        limit. `info_uri`: a page about the limits.

        `computed`: types whose content the server computes from the stored entry, such as the push
        rules. Clients cannot write these. spec: client-server-api#server-behaviour-16
        """
        self._database = database
        self._store = store
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._info_uri = info_uri
        self._computed = computed
        self._managed = frozenset({_FULLY_READ, *computed})

    async def get(
        self, caller: Requester, user_id: UserID, room_id: RoomID | None, type_: str
    ) -> msgspec.Raw:
        """Return the content of one entry. Raises `Forbidden`, `NotFound`."""
        _check_owner(caller, user_id)
        content = await self._store.get_entry(user_id, room_id, type_)
        compute = self._computed.get(type_) if room_id is None else None
        if compute is not None:
            return msgspec.Raw(msgspec.json.encode(compute(user_id, content)))
        if content is None:
            raise NotFound("There is no such account data")
        return msgspec.Raw(content)

    async def do_set(
        self,
        caller: Requester,
        user_id: UserID,
        room_id: RoomID | None,
        type_: str,
        content: msgspec.Raw,
    ) -> None:
        """Set one entry; `{}` deletes it (MSC3391).

        Raises `Forbidden`, `ManagedByServer`, `InvalidParam`, `BadJson`, `UserLimitExceeded`.
        """
        _check_owner(caller, user_id)
        self._check_type(type_)
        data = bytes(content)
        # decoded to check all of it: the bytes are spliced into other responses
        is_empty = not decode_object(data)

        def write(txn: WriteTransaction) -> None:
            # announced even if there was nothing to delete: clients wait for the echo of what they
            # set
            self._set(txn, user_id, room_id, type_, b"{}" if is_empty else data, deleted=is_empty)

        await self._database.write("set_account_data", write)

    async def do_remove(
        self, caller: Requester, user_id: UserID, room_id: RoomID | None, type_: str
    ) -> None:
        """Remove one entry if there is one. Raises what `do_set` raises."""
        _check_owner(caller, user_id)
        self._check_type(type_)

        def write(txn: WriteTransaction) -> None:
            self._store.remove_entry(txn, user_id, room_id, type_)

        await self._database.write("remove_account_data", write)

    async def get_tags(
        self, caller: Requester, user_id: UserID, room_id: RoomID
    ) -> Mapping[str, object]:
        """Return the tags of a room. Raises `Forbidden`."""
        _check_owner(caller, user_id)
        return _tags(await self._store.get_entry(user_id, room_id, TAGS))

    async def do_set_tag(
        self,
        caller: Requester,
        user_id: UserID,
        room_id: RoomID,
        tag: str,
        content: Mapping[str, object],
    ) -> None:
        """Add or replace a tag of a room. Raises `Forbidden`, `InvalidParam`, `TooLarge`,
        `UserLimitExceeded`."""
        _check_owner(caller, user_id)
        _check_tag(tag)

        def write(txn: WriteTransaction) -> None:
            tags = {**_tags(self._store.get_entry_in(txn, user_id, room_id, TAGS)), tag: content}
            data = msgspec.json.encode({"tags": tags})
            if len(data) > _MAX_TAGS_BYTES:
                raise TooLarge("A room's tags may have at most 64 KiB")
            self._set(txn, user_id, room_id, TAGS, data)

        await self._database.write("set_tag", write)

    async def do_remove_tag(
        self, caller: Requester, user_id: UserID, room_id: RoomID, tag: str
    ) -> None:
        """Remove a tag of a room if there is one. Raises `Forbidden`."""
        _check_owner(caller, user_id)

        def write(txn: WriteTransaction) -> None:
            tags = _tags(self._store.get_entry_in(txn, user_id, room_id, TAGS))
            if tags.pop(tag, None) is not None:
                self._store.set_entry(
                    txn, user_id, room_id, TAGS, msgspec.json.encode({"tags": tags})
                )

        await self._database.write("remove_tag", write)

    def _set(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        room_id: RoomID | None,
        type_: str,
        content: bytes,
        *,
        deleted: bool = False,
    ) -> None:
        """Set an entry, unless the user's data would exceed the limits. A change that reduces the
        size is always accepted, and so is a deletion. Raises `UserLimitExceeded`."""
        sums = (
            None if deleted else self._store.get_larger_usage(txn, user_id, room_id, type_, content)
        )
        if sums is not None:
            if self._max_entries is not None and sums.entries > self._max_entries:
                raise self._refusal(f"{self._max_entries} entries")
            if self._max_bytes is not None and sums.size > self._max_bytes:
                raise self._refusal(f"{self._max_bytes} bytes")
        self._store.set_entry(txn, user_id, room_id, type_, content, deleted=deleted)

    def _check_type(self, type_: str) -> None:
        if type_ in self._managed:
            raise ManagedByServer(f"The server manages {type_}")
        if not type_ or len(type_.encode()) > _MAX_TYPE_BYTES or "\0" in type_:
            raise InvalidParam("A type must have 1 to 255 bytes, without NUL")

    def _refusal(self, limit: str) -> UserLimitExceeded:
        return UserLimitExceeded(
            f"You may store at most {limit} of account data on this server",
            info_uri=self._info_uri,
        )


def _check_owner(caller: Requester, user_id: UserID) -> None:
    if caller.user_id != user_id:
        raise Forbidden("This is another user's account data")


def _check_tag(tag: str) -> None:
    if not tag or len(tag.encode()) > _MAX_TAG_BYTES or "\0" in tag:
        raise InvalidParam("A tag must have 1 to 255 bytes, without NUL")


def _tags(content: bytes | None) -> dict[str, object]:
    """Return the tags of an m.tag entry. Clients may also write the entry directly, so it may be
    malformed."""
    if content is None:
        return {}
    tags = msgspec.json.decode(content).get("tags")
    return dict(tags) if isinstance(tags, dict) else {}
