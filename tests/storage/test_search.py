"""The index of texts: both databases find the same, which is what the terms say."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from homeserver.observe.metrics import SearchMetrics
from homeserver.services.search import indexing
from homeserver.services.search.indexing import Indexing
from homeserver.services.text.terms import format_words
from homeserver.services.text.words import Folding
from storage.cluster.job_progress import put_note, select_note
from storage.engine.database import Database, Transaction, WriteTransaction
from storage.engine.text_index import MOST_ROOM_KEYS, Term
from storage.search.search import SearchStore, TextQuery, TextRow
from tests.helpers.rooms import ALICE, RoomParts

ME = "@me:a.test"


def term(*keys: str, prefix: bool = False) -> Term:
    """One term whose alternatives are single keys."""
    return Term(tuple((key,) for key in keys), is_prefix=prefix)


def sequence(*keys: str) -> Term:
    return Term((keys,))


def text(
    nid: int, words: str, room: int = 1, *, kind: int = 0, sender: str = "@a:a.test", said: int = 0
) -> TextRow:
    return TextRow(nid, said or nid, room, nid, nid, kind, sender, f" {words} ")


class Shelf:
    """Some texts in the database, with the rooms that they are in."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = SearchStore(database)

    async def put(self, *rows: TextRow, instead_of: tuple[int, ...] = ()) -> None:
        await self.database.write(
            "put", self.store.put_texts, {*instead_of, *(row.event_nid for row in rows)}, rows
        )

    async def find(self, *terms: Term, limit: int = 100, **more: object) -> list[int]:
        """The numbers of what is found."""
        rooms = more.pop("rooms", range(1, 10))
        query = TextQuery(ME, terms, rooms, **more)  # type: ignore[arg-type]
        return [hit.event_nid for hit in await self.store.get_hits(query, limit, len)]


@pytest.fixture
def shelf(database: Database) -> Shelf:
    return Shelf(database)


async def test_terms(shelf: Shelf) -> None:
    await shelf.put(
        text(1, "yangi kitob"), text(2, "eski kitoblar"), text(3, "daftar"), text(4, "kitob yangi")
    )
    assert await shelf.find(term("kitob")) == [4, 1]
    assert await shelf.find(term("kitob", prefix=True)) == [4, 2, 1]
    assert await shelf.find(term("kitob"), term("yangi")) == [4, 1]
    assert await shelf.find(sequence("yangi", "kitob")) == [1]
    assert await shelf.find(term("daftar", "eski")) == [3, 2]
    assert await shelf.find(Term((("yangi", "kitob"), ("daftar",)))) == [3, 1]
    assert await shelf.find(term("itob", prefix=True)) == []
    assert await shelf.find(term("kitob", prefix=True), limit=2) == [4, 2]


async def test_keys_are_taken_as_they_are(shelf: Shelf) -> None:
    await shelf.put(
        text(1, "東京 京都 都"), text(2, "हिन्दी"), text(3, "and or not near"), text(4, "ß")
    )
    assert await shelf.find(term("東", prefix=True)) == [1]
    assert await shelf.find(sequence("東京", "京都")) == [1]
    assert await shelf.find(term("हिन्दी")) == [2]
    assert await shelf.find(term("हि")) == []
    assert await shelf.find(term("or"), term("not"), term("near")) == [3]
    assert await shelf.find(term("ss")) == []


@pytest.mark.parametrize("key", ['"', "a b", "'", "\\", "", "\ue0001"])
async def test_what_is_no_key_is_refused(shelf: Shelf, key: str) -> None:
    with pytest.raises(ValueError, match="not a valid index key"):
        await shelf.find(term(key))


async def test_two_spaces_part_what_does_not_follow(shelf: Shelf) -> None:
    await shelf.put(text(1, "yolka yaxshi  elka yomon"))
    assert await shelf.find(sequence("elka", "yomon")) == [1]
    assert await shelf.find(sequence("yaxshi", "elka")) == []
    assert await shelf.find(term("yaxshi"), term("elka")) == [1]


async def test_what_is_wanted(shelf: Shelf) -> None:
    await shelf.put(
        text(1, "kitob", 1),
        text(2, "kitob", 2, kind=1),
        text(3, "kitob", 3, sender="@b:a.test"),
        text(4, "kitob", 12),
    )
    kitob = term("kitob")
    assert await shelf.find(kitob) == [3, 2, 1]
    assert await shelf.find(kitob, rooms={1, 12}) == [4, 1]
    assert await shelf.find(kitob, rooms=set(range(2, 3 + MOST_ROOM_KEYS))) == [4, 3, 2]
    assert await shelf.find(kitob, rooms=set()) == []
    assert await shelf.find(kitob, not_rooms=(2,)) == [3, 1]
    assert await shelf.find(kitob, kinds={1}) == [2]
    assert await shelf.find(kitob, kinds={0, 2}) == [3, 1]
    assert await shelf.find(kitob, senders={"@b:a.test"}) == [3]
    assert await shelf.find(kitob, senders=()) == []
    assert await shelf.find(kitob, not_senders=("@b:a.test",)) == [2, 1]
    assert await shelf.find(kitob, upto=2) == [2, 1]
    assert await shelf.find() == []


async def test_texts_change_and_go(shelf: Shelf) -> None:
    await shelf.put(text(1, "yangi kitob"), text(2, "kitob"))
    await shelf.put(text(1, "daftar", said=7))
    assert await shelf.find(term("kitob")) == [2]
    assert await shelf.find(term("daftar")) == [1]
    await shelf.put(instead_of=(2, 99))
    assert await shelf.find(term("kitob")) == []
    await shelf.put(text(1, "daftar"), text(1_000_000, "daftar"))
    assert await shelf.find(term("daftar")) == [1_000_000, 1]
    await shelf.database.write("clear", shelf.store.clear)
    assert await shelf.find(term("daftar")) == []
    await shelf.put(text(1, "daftar"))
    assert await shelf.find(term("daftar")) == [1]


async def test_rooms_of_the_user_that_are_not_encrypted(shelf: Shelf) -> None:
    def prepare(txn: WriteTransaction) -> None:
        for room, membership, forgotten in (
            (1, "join", 0),
            (2, "leave", 0),
            (3, "invite", 0),
            (4, "leave", 1),
            (5, "ban", 0),
        ):
            txn.execute(
                "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender, position, is_local, forgotten)"
                " VALUES (?, ?, ?, 1, '@a:a.test', 1, 1, ?)",
                (room, ME, membership, forgotten),
            )
        txn.execute(
            "INSERT INTO room_summaries (room_nid, encryption) VALUES (5, 'm.megolm.v1.aes-sha2')"
        )

    await shelf.database.write("prepare", prepare)
    await shelf.put(*(text(room, "kitob", room) for room in range(1, 8)))
    assert await shelf.find(term("kitob"), rooms=None) == [3, 2, 1]
    assert await shelf.find(term("kitob"), rooms={5, 6}) == [6]


async def test_the_longest_texts_fit_in(database: Database) -> None:
    """The worst that the folding makes of a message: three spellings, in characters of four
    bytes."""
    shelf = Shelf(database)
    folding = Folding(("uz", "kaa", "ru"))
    for nid, said in enumerate(("ёў𐐨𐐩𐐪𐐫" + " ", "ё" + "𐐨" * 63 + " ", "ﷺё ", "𠀀𠀁ё"), 1):
        numbered = "".join(said + str(number) for number in range(20_000))
        await shelf.put(text(nid, format_words(folding.lines(numbered)).strip(" ")), text(9, "gap"))
    assert await shelf.find(term("gap")) == [9]


async def test_how_far_the_index_is_can_be_seen(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "AT_ONCE", 2)
    home = RoomParts(database)
    room_id = await home.create()
    for _ in range(5):
        await home.send(room_id, ALICE, "gap")
    registry = CollectorRegistry()
    steps = Indexing(
        database,
        SearchStore(database),
        Folding(("uz",)),
        SearchMetrics(registry),
        home.tick,
        enabled=True,
    )
    assert await steps.do_step(5) == 5
    assert registry.get_sample_value("mahalla_search_events_behind") == 5
    await steps.do_step(100)
    assert registry.get_sample_value("mahalla_search_events_behind") == 0
    assert await steps.do_step(100) == 0


async def test_notes_of_jobs(database: Database) -> None:
    def read(txn: Transaction) -> str | None:
        return select_note(txn, "job")

    assert await database.read("read", read) is None
    for note in ("one", "two"):
        await database.write("put", put_note, "job", note)
        assert await database.read("read", read) == note


keys = st.sampled_from(["a", "ab", "abc", "b", "bc", "東京", "京", "é"])
lines = st.lists(keys, min_size=1, max_size=5).map(" ".join)
texts = st.lists(lines, min_size=1, max_size=2).map("  ".join)
terms = st.builds(
    lambda alternatives: Term(tuple(alternatives)),
    st.lists(st.lists(keys, min_size=1, max_size=3).map(tuple), min_size=1, max_size=2),
) | st.builds(
    lambda alternatives: Term(tuple((key,) for key in alternatives), is_prefix=True),
    st.lists(keys, min_size=1, max_size=2),
)


@given(
    written=st.lists(texts, min_size=1, max_size=8), asked=st.lists(terms, min_size=1, max_size=3)
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_the_index_finds_what_a_look_at_all_texts_finds(
    database: Database, written: list[str], asked: list[Term]
) -> None:
    shelf = Shelf(database)
    await database.write("clear", shelf.store.clear)
    await shelf.put(*(text(nid, words) for nid, words in enumerate(written, 1)))

    def has(words: str, wanted: Term) -> bool:
        end = "" if wanted.is_prefix else " "
        return any(
            f" {' '.join(sequence)}{end}" in f" {words} " for sequence in wanted.alternatives
        )

    expected = [
        nid for nid, words in enumerate(written, 1) if all(has(words, wanted) for wanted in asked)
    ]
    assert await shelf.find(*asked) == expected[::-1]
