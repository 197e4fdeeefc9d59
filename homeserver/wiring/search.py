"""Wires message search and the user directory."""

from prometheus_client import CollectorRegistry

from federation.peers.identity import ServerIdentity
from homeserver.cluster.jobs import Job
from homeserver.config.search import Search
from homeserver.observe.metrics import SearchMetrics
from homeserver.services.directory import user_directory as user_directory_service
from homeserver.services.directory.user_directory import DirectoryUpdates, UserDirectory
from homeserver.services.search import indexing
from homeserver.services.search.indexing import Indexing
from homeserver.services.search.results import SearchAnswers
from homeserver.services.search.search import MessageSearch
from homeserver.services.text.words import Folding
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.rooms import RoomParts
from storage.directory.user_directory import UserDirectoryStore
from storage.engine.database import Database
from storage.events.timelines import TimelineStore
from storage.search.search import SearchStore

REST: float = 1.0
"""Seconds until new messages and changed names can be found."""


class SearchParts:
    """Message search and the user directory. Public attributes are for the router and the list of
    jobs."""

    def __init__(
        self,
        search: Search,
        database: Database,
        identity: ServerIdentity,
        accounts: AccountParts,
        rooms: RoomParts,
        registry: CollectorRegistry,
    ) -> None:
        folding = Folding(search.search_languages)
        self.store = store = SearchStore(database)
        self.indexing = Indexing(
            database,
            store,
            folding,
            SearchMetrics(registry),
            rooms.now_ms,
            enabled=search.enable_search,
        )
        answers = SearchAnswers(
            folding, rooms.engine, TimelineStore(database), rooms.reading, rooms.client_events
        )
        self.messages = MessageSearch(
            store,
            folding,
            rooms.engine,
            rooms.events,
            rooms.memberships,
            rooms.store,
            rooms.stays,
            rooms.reading,
            answers,
            rooms.lifetimes,
            enabled=search.enable_search,
        )
        user_directory = search.user_directory
        self.people = people = UserDirectoryStore(database)
        self.directory = UserDirectory(
            people,
            folding,
            enabled=user_directory.enabled,
            everyone=user_directory.search_all_users,
            locals_first=user_directory.prefer_local_users,
            locals_only=user_directory.exclude_remote_users,
            with_locked=user_directory.show_locked_users,
        )
        self.updates = DirectoryUpdates(database, people, accounts.profile_store, folding, identity)
        self.jobs = [Job(indexing.NAME, self.indexing.do_step, REST)]
        if user_directory.enabled:
            self.jobs.append(Job(user_directory_service.NAME, self.updates.do_step, REST))
