"""Builds search responses: the events, their context and the words to highlight."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.events import StateKey
from federation.rooms.engine import RoomEngine
from federation.rooms.events import StoredEvent
from federation.rooms.visibility import VisibleEvent
from homeserver.api.requester import Requester
from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.reading import MEMBER, ReadAccess, RoomReading
from homeserver.services.search.indexing import text_of
from homeserver.services.search.request import (
    MAX_CONTEXT,
    EventContext,
    GroupKey,
    RoomEventsCriteria,
)
from homeserver.services.streams.sync_tokens import format_room_token
from homeserver.services.text.search_terms import MAX_RANK, find_highlights, format_words, rank
from homeserver.services.text.text_folding import TextFolding
from storage.engine.text_index import SearchTerm
from storage.events.timelines import TimelinePlace, TimelineStore
from storage.search.search import SearchHit

MAX_HIGHLIGHTS: Final = 100
"""Words to highlight."""

Page = list[tuple[TimelinePlace, int]]


class SearchResult(msgspec.Struct, frozen=True):
    """A search result that the caller may see."""

    hit: SearchHit
    seen: VisibleEvent
    reader: ReadAccess
    text_event: StoredEvent
    """The event with the text: for an edited message, its latest edit."""

    @property
    def event(self) -> StoredEvent:
        return self.seen.event

    @property
    def text(self) -> str:
        """Return the text that was searched."""
        event = self.text_event.event
        return text_of(event.type, event.state_key, event.content)

    def value_of(self, key: GroupKey) -> str:
        """Return the group that the result belongs to."""
        return self.event.event.sender if key == "sender" else self.event.event.room_id


class _Context(msgspec.Struct, frozen=True):
    """The events around a result."""

    start: TimelinePlace
    end: TimelinePlace
    before: Sequence[VisibleEvent]
    after: Sequence[VisibleEvent]


class SearchResponses:
    """Builds the response to a search."""

    def __init__(
        self,
        *,
        folding: TextFolding,
        engine: RoomEngine,
        timelines: TimelineStore,
        reading: RoomReading,
        client_events: ClientEvents,
    ) -> None:
        self._folding = folding
        self._engine = engine
        self._timelines = timelines
        self._reading = reading
        self._client_events = client_events

    async def build(
        self,
        caller: Requester,
        criteria: RoomEventsCriteria,
        terms: Sequence[SearchTerm],
        shown: Sequence[SearchResult],
        groups: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Build the response without `next_batch` and `count`."""
        contexts: Sequence[_Context] = ()
        if criteria.event_context is not None:
            contexts = await self._get_contexts(caller, criteria.event_context, shown)
        events_by_nid = {
            each.event.nid: each
            for context in contexts
            for each in (*context.before, *context.after)
        }
        events_by_nid.update((each.event.nid, each.seen) for each in shown)
        presented = await self._client_events.present(
            caller.user_id, caller.device_id, list(events_by_nid.values()), with_room_id=True
        )
        forms = dict(zip(events_by_nid, presented, strict=True))
        results: list[dict[str, Any]] = [
            {"rank": self._rank(each, terms) / MAX_RANK, "result": forms[each.event.nid]}
            for each in shown
        ]
        if criteria.event_context is not None:
            for result, each, context in zip(results, shown, contexts, strict=True):
                result["context"] = _present_context(context, forms)
                if criteria.event_context.include_profile:
                    senders = {
                        seen.event.event.sender
                        for seen in (*context.before, each.seen, *context.after)
                    }
                    result["context"]["profile_info"] = await self._find_profiles(
                        each.event, senders
                    )
        response: dict[str, Any] = {
            "results": results,
            "highlights": self._get_highlights(criteria.search_term, terms, shown),
        }
        if criteria.include_state:
            rooms = dict.fromkeys(each.event.event.room_id for each in shown)
            response["state"] = {
                room_id: await self._reading.get_state(caller, room_id) for room_id in rooms
            }
        if groups:
            response["groups"] = groups
        return response

    def _rank(self, found: SearchResult, terms: Sequence[SearchTerm]) -> int:
        """Return the rank of a result. It is computed here if the results are ordered by time."""
        return found.hit.rank or rank(terms, format_words(self._folding.lines(found.text)))

    def _get_highlights(
        self, term: str, terms: Sequence[SearchTerm], shown: Sequence[SearchResult]
    ) -> list[str]:
        words = find_highlights(self._folding, terms, term)
        for each in shown:
            words |= find_highlights(self._folding, terms, each.text)
            if len(words) >= MAX_HIGHLIGHTS:
                break
        return sorted(words)[:MAX_HIGHLIGHTS]

    async def _get_contexts(
        self, caller: Requester, wanted: EventContext, shown: Sequence[SearchResult]
    ) -> Sequence[_Context]:
        positions = [
            (each.event.room_nid, TimelinePlace(each.event.depth, each.event.nid)) for each in shown
        ]
        before, after = min(wanted.before_limit, MAX_CONTEXT), min(wanted.after_limit, MAX_CONTEXT)
        pages = await self._timelines.get_around(positions, before, after)
        rooms: dict[int, tuple[ReadAccess, dict[int, None]]] = {}
        for each, (earlier, later) in zip(shown, pages, strict=True):
            _, nids = rooms.setdefault(each.event.room_nid, (each.reader, {}))
            nids.update((nid, None) for _, nid in (*earlier, *later))
        seen: dict[int, VisibleEvent] = {}
        for reader, wanted_nids in rooms.values():
            for one in await self._reading.get_visible(
                caller, reader, list(wanted_nids), RoomEventFilter()
            ):
                seen[one.event.nid] = one
        return [
            _build_context(place, earlier, later, seen)
            for (_, place), (earlier, later) in zip(positions, pages, strict=True)
        ]

    async def _find_profiles(
        self, event: StoredEvent, senders: Iterable[str]
    ) -> dict[str, dict[str, str]]:
        """Return the senders' display names and avatars in the room when the event was sent."""
        state = self._engine.view(event.room_nid, event.state_root)
        members = await state.load({StateKey(MEMBER, sender) for sender in senders})
        profiles = {}
        for key, member in members.items():
            content = member.event.content
            profile = {
                name: content[name]
                for name in ("displayname", "avatar_url")
                if isinstance(content.get(name), str)
            }
            profiles[key.state_key] = profile
        return profiles


def _build_context(
    here: TimelinePlace, earlier: Page, later: Page, seen: Mapping[int, VisibleEvent]
) -> _Context:
    first = earlier[-1][0] if earlier else here
    return _Context(
        TimelinePlace(first.depth, first.event_nid - 1),
        later[-1][0] if later else here,
        [seen[nid] for _, nid in earlier if nid in seen],
        [seen[nid] for _, nid in later if nid in seen],
    )


def _present_context(context: _Context, forms: Mapping[int, msgspec.Raw]) -> dict[str, Any]:
    return {
        "start": format_room_token(context.start),
        "end": format_room_token(context.end),
        "events_before": [forms[each.event.nid] for each in context.before],
        "events_after": [forms[each.event.nid] for each in context.after],
    }
