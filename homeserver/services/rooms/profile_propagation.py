"""Carries a changed name or avatar into the rooms that show it.

The change and a note to carry it on are one write (`storage.profiles.profiles`); the note goes when
all rooms show the profile as of that change. So a restart in between loses nothing, and a room that
has it already makes no event. What could not be carried on is tried again (`do_resume`), and keeps
nobody else's from it.

spec: client-server-api#server-behaviour-1 (profiles)
"""

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.protocol.errors import (
    Forbidden,
    LimitExceeded,
    MatrixError,
    RemoteError,
    StateIncomplete,
)
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.drafts import Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.membership_checks import check_still
from federation.rooms.memberships import Memberships
from homeserver.services.profiles.profiles import names_of
from homeserver.services.rooms.membership import member_content
from storage.engine.database import Database
from storage.profiles.profiles import ProfileStore
from storage.rooms.rooms import RoomStore

NOTES_AT_ONCE = 50
NOT_NOW = (RemoteError, LimitExceeded, StateIncomplete)
"""The room's policy server is away or has too much to do, or a part of the room's state is still to
come."""


class ProfilePropagation:
    """Works the notes off, one user after the other."""

    def __init__(
        self,
        database: Database,
        profiles: ProfileStore,
        rooms: RoomStore,
        engine: RoomEngine,
        memberships: Memberships,
    ) -> None:
        self._database = database
        self._profiles = profiles
        self._rooms = rooms
        self._engine = engine
        self._memberships = memberships
        self._running: Deferred[None] | None = None
        self._again = False
        self._log = Logger()

    def wake(self, user_id: UserID | None = None) -> None:
        """There is a new note, or there may be some from before a restart."""
        if self._running is not None:
            self._again = True
            return
        self._running = Deferred.fromCoroutine(self._work())
        self._running.addErrback(
            lambda failure: self._log.failure("carrying a profile into rooms failed", failure)
        )
        self._running.addBoth(self._finished)

    def _finished(self, _: object) -> None:
        self._running = None
        if self._again:
            self._again = False
            self.wake()

    async def do_resume(self, _limit: int) -> int:
        """Work off what an earlier try has left; nothing is waited for."""
        if await self._profiles.get_propagations(1):
            self.wake()
        return 0

    async def _work(self) -> None:
        failed: set[tuple[str, int]] = set()
        while True:
            notes = (await self._profiles.get_propagations(NOTES_AT_ONCE + len(failed))).items()
            new = [note for note in notes if note not in failed]
            if not new:
                break
            for user, position in new:
                try:
                    if not await self._carry(UserID(user)):
                        failed.add((user, position))
                        continue
                    await self._database.write(
                        "remove_propagation", self._profiles.remove_propagation, user, position
                    )
                except Exception:
                    failed.add((user, position))
                    self._log.failure(
                        "the profile of {user_id} is carried into rooms later", user_id=user
                    )

    async def _carry(self, user_id: UserID) -> bool:
        """Whether it is done: False where something is in the way that may pass. That keeps the
        other rooms from nothing."""
        is_done = True
        fields = (await self._profiles.get_profiles([user_id])).get(user_id, {})
        rows = (await self._memberships.of_user(user_id)).values()
        joined = [row.room_nid for row in rows if row.membership == "join"]
        rooms = await self._rooms.get_rooms_by_nid(joined)
        for room_nid in joined:
            room_id = RoomID(rooms[room_nid].room_id)
            snapshot = await self._engine.get_snapshot(room_id)
            present = await snapshot.state.get(StateKey("m.room.member", user_id))
            if present is None or present.event.membership != "join":
                continue
            kept = {
                key: value
                for key, value in present.event.content.items()
                if key
                not in ("displayname", "avatar_url", "reason", "join_authorised_via_users_server")
            }
            content = {**kept, **member_content("join", names_of(fields))}
            check = check_still(
                self._engine, room_id, user_id, {"join"}, Forbidden
            )  # it would bring them back
            draft = Draft("m.room.member", user_id, content, user_id, check=check, unless_same=True)
            try:
                await self._engine.send(room_id, [draft])
            except NOT_NOW as error:
                is_done = False
                self._log.info(
                    "{room_id} shows the profile of {user_id} later: {error}",
                    room_id=room_id,
                    user_id=user_id,
                    error=str(error),
                )
            except MatrixError as error:
                self._log.info(
                    "{room_id} keeps showing the old profile of {user_id}: {error}",
                    room_id=room_id,
                    user_id=user_id,
                    error=error.text,
                )
        return is_done
