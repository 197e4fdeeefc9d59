"""Copies a changed name or avatar into the user's rooms.

The change and a task to propagate it are one write (`storage.profiles.profiles`). The task is
removed when each room has the new profile or has refused the membership event with it. So a restart
loses nothing. A room that already shows the new profile gets no event. A job (`do_resume`) retries
what failed; a failure does not delay other users.

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
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.membership_checks import check_still
from federation.rooms.memberships import Memberships
from homeserver.services.profiles.profiles import names_of
from homeserver.services.rooms.membership import member_content
from storage.engine.database import Database
from storage.profiles.profiles import ProfileStore
from storage.rooms.rooms import RoomStore

BATCH = 50
TEMPORARY_ERRORS = (RemoteError, LimitExceeded, StateIncomplete)
"""The room's policy server is unavailable or overloaded, or the room's state is partial."""


class ProfilePropagation:
    """Works through the tasks, one user after the other."""

    def __init__(
        self,
        *,
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
        """Start work: there is a new task, or there may be some from before a restart."""
        if self._running is not None:
            self._again = True
            return
        self._running = Deferred.fromCoroutine(self._work())
        self._running.addErrback(
            lambda failure: self._log.failure("could not propagate a profile into rooms", failure)
        )
        self._running.addBoth(self._on_finished)

    def _on_finished(self, _: object) -> None:
        self._running = None
        if self._again:
            self._again = False
            self.wake()

    async def do_resume(self, _limit: int) -> int:
        """Start to retry the tasks that are left. Returns without waiting for them."""
        if await self._profiles.get_propagations(1):
            self.wake()
        return 0

    async def _work(self) -> None:
        failed: set[tuple[str, int]] = set()
        while True:
            tasks = (await self._profiles.get_propagations(BATCH + len(failed))).items()
            new = [task for task in tasks if task not in failed]
            if not new:
                break
            for user, position in new:
                try:
                    if not await self._propagate(UserID(user)):
                        failed.add((user, position))
                        continue
                    await self._database.write(
                        "remove_propagation", self._profiles.remove_propagation, user, position
                    )
                except Exception:
                    failed.add((user, position))
                    self._log.failure(
                        "the profile of {user_id} will be propagated into rooms later", user_id=user
                    )

    async def _propagate(self, user_id: UserID) -> bool:
        """Update the user's rooms; False if one failed for a reason that may pass. The others are
        updated all the same."""
        is_done = True
        fields = (await self._profiles.get_profiles([user_id])).get(user_id, {})
        rows = (await self._memberships.of_user(user_id)).values()
        joined = [row.room_nid for row in rows if row.membership == "join"]
        rooms = await self._rooms.get_rooms_by_nid(joined)
        for room_nid in joined:
            room_id = RoomID(rooms[room_nid].room_id)
            snapshot = await self._engine.get_snapshot(room_id)
            member = await snapshot.state.get(StateKey("m.room.member", user_id))
            if member is None or member.event.membership != "join":
                continue
            other_fields = {
                key: value
                for key, value in member.event.content.items()
                if key
                not in ("displayname", "avatar_url", "reason", "join_authorised_via_users_server")
            }
            content = {**other_fields, **member_content("join", names_of(fields))}
            # a user who was removed meanwhile must not come back by this event
            check = check_still(self._engine, room_id, user_id, {"join"}, Forbidden)
            draft = Draft("m.room.member", user_id, content, user_id, check=check, unless_same=True)
            try:
                await self._engine.send(room_id, [draft])
            except TEMPORARY_ERRORS as error:
                is_done = False
                self._log.info(
                    "{room_id} will show the profile of {user_id} later: {error}",
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
