"""Copies a user's personal settings to the room that replaces another: tags, push rules, direct
chats.

They are copied when the user upgrades the room or joins the new one, before the request is
answered. Settings that exist for the new room are not changed.

spec: client-server-api#room-upgrades
"""

from contextlib import suppress
from typing import Any, Final

import msgspec

from federation.protocol.errors import TooLarge
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.engine import RoomEngine
from federation.rooms.snapshot import RoomSnapshot
from homeserver.services.account_data.account_data import TAGS
from homeserver.services.push.push_rules import copy_rules_of_room
from homeserver.services.push.rule_changes import RuleChanges
from homeserver.services.rooms.upgrade_events import TOMBSTONE, get_predecessor
from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

DIRECT: Final = "m.direct"


class PersonalSettingsCopier:
    """Copies users' personal settings of rooms."""

    def __init__(
        self,
        *,
        database: Database,
        account_data: AccountDataStore,
        rule_changes: RuleChanges,
        engine: RoomEngine,
    ) -> None:
        self._database = database
        self._account_data = account_data
        self._rule_changes = rule_changes
        self._engine = engine

    async def do_copy(self, user_id: UserID, room: RoomSnapshot) -> None:
        """Copy the user's settings of the room that this one has replaced, if there is one.

        Both rooms have to say so: otherwise the creator of a room could have it tagged like
        another.
        """
        old_id = get_predecessor(await room.create_event())
        old = None if old_id is None else await self._engine.find_snapshot(old_id)
        tombstone = None if old is None else await old.state.get(StateKey(TOMBSTONE, ""))
        if (
            old_id is None
            or tombstone is None
            or tombstone.event.content.get("replacement_room") != room.room_id
        ):
            return
        await self._database.write(
            "copy_personal_settings", self._copy, user_id, old_id, room.room_id
        )

    def _copy(self, txn: WriteTransaction, user_id: UserID, old_id: RoomID, new_id: RoomID) -> None:
        store = self._account_data
        tags = store.get_entry_in(txn, user_id, old_id, TAGS)
        if tags is not None and store.get_entry_in(txn, user_id, new_id, TAGS) is None:
            store.set_entry(txn, user_id, new_id, TAGS, tags)
        direct = store.get_entry_in(txn, user_id, None, DIRECT)
        if direct is not None:
            chats = msgspec.json.decode(direct)
            if _add_room(chats, old_id, new_id):
                store.set_entry(txn, user_id, None, DIRECT, msgspec.json.encode(chats))
        # a user whose push rules would exceed the limit keeps the old ones
        with suppress(TooLarge):
            self._rule_changes.change(
                txn, user_id, lambda rules: copy_rules_of_room(rules, old_id, new_id)
            )


def _add_room(chats: Any, old_id: str, new_id: str) -> bool:
    """Add the new room wherever the old one is listed, whatever else clients have written. Return
    whether that changed anything."""
    changed = False
    for rooms in chats.values() if isinstance(chats, dict) else ():
        if isinstance(rooms, list) and old_id in rooms and new_id not in rooms:
            rooms.append(new_id)
            changed = True
    return changed
