"""Puts together the search in messages and the directory of people."""

from prometheus_client import CollectorRegistry

from homeserver.assembly.rooms import RoomParts
from homeserver.config.search import Search
from homeserver.jobs import Job
from homeserver.observe.metrics import SearchMetrics
from homeserver.services.search.indexing import NAME, Indexing
from homeserver.services.search.presenting import SearchAnswers
from homeserver.services.search.search import MessageSearch
from homeserver.services.search.words import Folding
from storage.database import Database
from storage.search import SearchStore
from storage.timelines import TimelineStore

REST: float = 1.0
"""Seconds until what was said can be found, and what somebody is called."""


class SearchParts:
    """What finds messages and people. What is public is for the router, and for the list of jobs."""

    def __init__(self, search: Search, database: Database, rooms: RoomParts, registry: CollectorRegistry) -> None:
        folding = Folding(search.search_languages)
        self.store = store = SearchStore(database)
        self.indexing = Indexing(
            database, store, folding, SearchMetrics(registry), rooms.now_ms, enabled=search.enable_search
        )
        answers = SearchAnswers(folding, rooms.engine, TimelineStore(database), rooms.reading, rooms.client_events)
        self.messages = MessageSearch(
            store,
            folding,
            rooms.engine,
            rooms.events,
            rooms.memberships,
            rooms.room_store,
            rooms.visibility,
            rooms.reading,
            answers,
            enabled=search.enable_search,
        )
        self.jobs = (Job(NAME, self.indexing.do_step, REST),)
