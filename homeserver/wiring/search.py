"""Wires message search and the user directory."""

from collections.abc import Sequence

from homeserver.cluster.jobs import Job
from homeserver.observe.metrics import SearchMetrics
from homeserver.services.directory import user_directory as user_directory_service
from homeserver.services.directory.user_directory import UserDirectory, UserDirectoryUpdates
from homeserver.services.search import indexing
from homeserver.services.search.indexing import MessageIndexer
from homeserver.services.search.results import SearchResponses
from homeserver.services.search.search import MessageSearch
from homeserver.services.text.text_folding import TextFolding
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from storage.directory.user_directory import UserDirectoryStore
from storage.events.timelines import TimelineStore
from storage.search.search import SearchStore

PAUSE_SECONDS: float = 1.0
"""Seconds until new messages and changed names can be found."""


class SearchParts:
    """Message search and the user directory. Public attributes are for the router and the list of
    jobs."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        room_reading: RoomReadingParts,
    ) -> None:
        search, database, engine = base.config.search, base.database, room_engine.engine
        reading = room_reading.reading
        folding = TextFolding(search.search_languages)
        self.store = store = SearchStore(database)
        self.indexing = MessageIndexer(
            database=database,
            store=store,
            folding=folding,
            metrics=SearchMetrics(base.registry),
            now_ms=base.now_ms,
            enabled=search.enable_search,
        )
        responses = SearchResponses(
            folding=folding,
            engine=engine,
            timelines=TimelineStore(database),
            reading=reading,
            client_events=room_reading.client_events,
        )
        self.messages = MessageSearch(
            store=store,
            folding=folding,
            engine=engine,
            events=rooms.events,
            memberships=rooms.memberships,
            rooms=rooms.store,
            membership_periods=history.membership_periods,
            reading=reading,
            responses=responses,
            lifetimes=history.retention,
            enabled=search.enable_search,
        )
        user_directory = search.user_directory
        self.people = people = UserDirectoryStore(database)
        self.directory = UserDirectory(
            store=people,
            folding=folding,
            enabled=user_directory.enabled,
            search_all_users=user_directory.search_all_users,
            locals_first=user_directory.prefer_local_users,
            locals_only=user_directory.exclude_remote_users,
            with_locked=user_directory.show_locked_users,
        )
        self.updates = UserDirectoryUpdates(
            database=database,
            store=people,
            profiles=accounts.stores.profiles,
            folding=folding,
            identity=base.identity,
        )
        self.jobs = [Job(indexing.JOB_NAME, self.indexing.do_step, PAUSE_SECONDS)]
        if user_directory.enabled:
            self.jobs.append(
                Job(user_directory_service.JOB_NAME, self.updates.do_step, PAUSE_SECONDS)
            )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.directory, self.messages)
