"""Account data and tags: what clients keep with the server for their user, and for nobody else.

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
LARGEST_CONTENT: Final = 1024 * 1024
"""In bytes, of one entry."""

_LONGEST_TYPE: Final = 255
_LONGEST_TAG: Final = 255
_LARGEST_TAGS: Final = 65536
_FULLY_READ: Final = "m.fully_read"


class ManagedByServer(BadJson):
    status, default_text = 405, "This account data is kept by the server"


class AccountData:
    """Reads and changes account data."""

    def __init__(
        self,
        database: Database,
        store: AccountDataStore,
        *,
        most_entries: int | None,
        largest: int | None,
        info_uri: str,
        computed: Mapping[str, Callable[[UserID, bytes | None], Mapping[str, object]]],
    ) -> None:
        """`most_entries` and `largest` (bytes of all contents): of one user; None: no bound.
        `info_uri`: a page about it.

        `computed`: types whose content the server makes from what is stored for a user, such as
        the push rules. Clients cannot write these. spec: client-server-api#server-behaviour-16
        """
        self._database = database
        self._store = store
        self._most_entries = most_entries
        self._largest = largest
        self._info_uri = info_uri
        self._computed = computed
        self._managed = frozenset({_FULLY_READ, *computed})

    async def get(
        self, caller: Requester, user_id: UserID, room_id: RoomID | None, type_: str
    ) -> msgspec.Raw:
        """One entry's content. Raises `Forbidden`, `NotFound`."""
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
        is_empty = not decode_object(
            data
        )  # it is spliced into other answers as it is, so must be valid to its last bracket

        def write(txn: WriteTransaction) -> None:
            # told even where there was nothing to delete: clients wait for what they set to come
            # back
            self._set(txn, user_id, room_id, type_, b"{}" if is_empty else data, deleted=is_empty)

        await self._database.write("set_account_data", write)

    async def do_remove(
        self, caller: Requester, user_id: UserID, room_id: RoomID | None, type_: str
    ) -> None:
        """Remove one entry; that there is none is no error. Raises as `do_set`."""
        _check_owner(caller, user_id)
        self._check_type(type_)

        def write(txn: WriteTransaction) -> None:
            self._store.remove_entry(txn, user_id, room_id, type_)

        await self._database.write("remove_account_data", write)

    async def get_tags(
        self, caller: Requester, user_id: UserID, room_id: RoomID
    ) -> Mapping[str, object]:
        """The tags of a room, none where there are none. Raises `Forbidden`."""
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
        """Put a tag on a room, or replace it. Raises `Forbidden`, `InvalidParam`, `TooLarge`,
        `UserLimitExceeded`."""
        _check_owner(caller, user_id)
        _check_tag(tag)

        def write(txn: WriteTransaction) -> None:
            tags = {**_tags(self._store.get_entry_in(txn, user_id, room_id, TAGS)), tag: content}
            data = msgspec.json.encode({"tags": tags})
            if len(data) > _LARGEST_TAGS:
                raise TooLarge("A room's tags may have at most 64 KiB")
            self._set(txn, user_id, room_id, TAGS, data)

        await self._database.write("set_tag", write)

    async def do_remove_tag(
        self, caller: Requester, user_id: UserID, room_id: RoomID, tag: str
    ) -> None:
        """Take a tag off a room; that there is none is no error. Raises `Forbidden`."""
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
        """Set an entry, unless the user would keep too much with it. What makes it less is always
        taken, and so is a deletion."""
        sums = None if deleted else self._store.find_growth(txn, user_id, room_id, type_, content)
        if sums is not None:
            if self._most_entries is not None and sums.entries > self._most_entries:
                raise self._refusal(f"{self._most_entries} entries")
            if self._largest is not None and sums.size > self._largest:
                raise self._refusal(f"{self._largest} bytes")
        self._store.set_entry(txn, user_id, room_id, type_, content, deleted=deleted)

    def _check_type(self, type_: str) -> None:
        if type_ in self._managed:
            raise ManagedByServer(f"{type_} is kept by the server")
        if not type_ or len(type_.encode()) > _LONGEST_TYPE or "\0" in type_:
            raise InvalidParam("A type has 1 to 255 bytes")

    def _refusal(self, bound: str) -> UserLimitExceeded:
        return UserLimitExceeded(
            f"You may keep {bound} of account data on this server", info_uri=self._info_uri
        )


def _check_owner(caller: Requester, user_id: UserID) -> None:
    if caller.user_id != user_id:
        raise Forbidden("This is another user's account data")


def _check_tag(tag: str) -> None:
    if not tag or len(tag.encode()) > _LONGEST_TAG or "\0" in tag:
        raise InvalidParam("A tag has 1 to 255 bytes")


def _tags(content: bytes | None) -> dict[str, object]:
    """The tags in an m.tag entry, which clients may also write as a whole, in whatever form."""
    if content is None:
        return {}
    tags = msgspec.json.decode(content).get("tags")
    return dict(tags) if isinstance(tags, dict) else {}
