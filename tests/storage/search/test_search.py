"""The text index: both databases give the same results."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from homeserver.observe.metrics import SearchMetrics
from homeserver.services.search import indexing
from homeserver.services.search.indexing import MessageIndexer
from homeserver.services.text.search_terms import format_words
from homeserver.services.text.text_folding import TextFolding
from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database, Transaction, WriteTransaction
from storage.engine.text_index import MAX_ROOM_KEYS, SearchTerm
from storage.search.search import SearchStore, TextQuery, TextRow
from tests.helpers.rooms import ALICE, RoomParts

ME = "@me:a.test"


def term(*keys: str, prefix: bool = False) -> SearchTerm:
    """A term whose alternatives are single keys."""
    return SearchTerm(tuple((key,) for key in keys), is_prefix=prefix)


def sequence(*keys: str) -> SearchTerm:
    return SearchTerm((keys,))


def text(
    nid: int, words: str, room: int = 1, *, kind: int = 0, sender: str = "@a:a.test", said: int = 0
) -> TextRow:
    return TextRow(nid, said or nid, room, nid, nid, kind, sender, f" {words} ")


class TextDatabase:
    """Some texts in the database, and their rooms."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = SearchStore(database)

    async def put(self, *rows: TextRow, replacing: tuple[int, ...] = ()) -> None:
        await self.database.write(
            "put", self.store.set_texts, {*replacing, *(row.event_nid for row in rows)}, rows
        )

    async def find(self, *terms: SearchTerm, limit: int = 100, **more: object) -> list[int]:
        """Return the numbers of the texts that match."""
        rooms = more.pop("rooms", range(1, 10))
        query = TextQuery(ME, terms, rooms, **more)  # type: ignore[arg-type]
        return [hit.event_nid for hit in await self.store.get_hits(query, limit, len)]


@pytest.fixture
def texts_database(database: Database) -> TextDatabase:
    return TextDatabase(database)


async def test_terms_match_alternatives_sequences_and_prefixes(
    texts_database: TextDatabase,
) -> None:
    await texts_database.put(
        text(1, "yangi kitob"), text(2, "eski kitoblar"), text(3, "daftar"), text(4, "kitob yangi")
    )
    assert await texts_database.find(term("kitob")) == [4, 1]
    assert await texts_database.find(term("kitob", prefix=True)) == [4, 2, 1]
    assert await texts_database.find(term("kitob"), term("yangi")) == [4, 1]
    assert await texts_database.find(sequence("yangi", "kitob")) == [1]
    assert await texts_database.find(term("daftar", "eski")) == [3, 2]
    assert await texts_database.find(SearchTerm((("yangi", "kitob"), ("daftar",)))) == [3, 1]
    assert await texts_database.find(term("itob", prefix=True)) == []
    assert await texts_database.find(term("kitob", prefix=True), limit=2) == [4, 2]


async def test_keys_are_not_changed_by_the_database(texts_database: TextDatabase) -> None:
    await texts_database.put(
        text(1, "東京 京都 都"), text(2, "हिन्दी"), text(3, "and or not near"), text(4, "ß")
    )
    assert await texts_database.find(term("東", prefix=True)) == [1]
    assert await texts_database.find(sequence("東京", "京都")) == [1]
    assert await texts_database.find(term("हिन्दी")) == [2]
    assert await texts_database.find(term("हि")) == []
    assert await texts_database.find(term("or"), term("not"), term("near")) == [3]
    assert await texts_database.find(term("ss")) == []


@pytest.mark.parametrize("key", ['"', "a b", "'", "\\", "", "\ue0001"])
async def test_invalid_keys_are_refused(texts_database: TextDatabase, key: str) -> None:
    with pytest.raises(ValueError, match="not a valid index key"):
        await texts_database.find(term(key))


async def test_two_spaces_separate_keys_that_do_not_follow_each_other(
    texts_database: TextDatabase,
) -> None:
    await texts_database.put(text(1, "yolka yaxshi  elka yomon"))
    assert await texts_database.find(sequence("elka", "yomon")) == [1]
    assert await texts_database.find(sequence("yaxshi", "elka")) == []
    assert await texts_database.find(term("yaxshi"), term("elka")) == [1]


async def test_a_query_filters_by_room_kind_and_sender(texts_database: TextDatabase) -> None:
    await texts_database.put(
        text(1, "kitob", 1),
        text(2, "kitob", 2, kind=1),
        text(3, "kitob", 3, sender="@b:a.test"),
        text(4, "kitob", 12),
    )
    kitob = term("kitob")
    assert await texts_database.find(kitob) == [3, 2, 1]
    assert await texts_database.find(kitob, rooms={1, 12}) == [4, 1]
    assert await texts_database.find(kitob, rooms=set(range(2, 3 + MAX_ROOM_KEYS))) == [4, 3, 2]
    assert await texts_database.find(kitob, rooms=set()) == []
    assert await texts_database.find(kitob, not_rooms=(2,)) == [3, 1]
    assert await texts_database.find(kitob, kinds={1}) == [2]
    assert await texts_database.find(kitob, kinds={0, 2}) == [3, 1]
    assert await texts_database.find(kitob, senders={"@b:a.test"}) == [3]
    assert await texts_database.find(kitob, senders=()) == []
    assert await texts_database.find(kitob, not_senders=("@b:a.test",)) == [2, 1]
    assert await texts_database.find(kitob, upto=2) == [2, 1]
    assert await texts_database.find() == []


async def test_texts_can_be_replaced_and_removed(texts_database: TextDatabase) -> None:
    await texts_database.put(text(1, "yangi kitob"), text(2, "kitob"))
    await texts_database.put(text(1, "daftar", said=7))
    assert await texts_database.find(term("kitob")) == [2]
    assert await texts_database.find(term("daftar")) == [1]
    await texts_database.put(replacing=(2, 99))
    assert await texts_database.find(term("kitob")) == []
    await texts_database.put(text(1, "daftar"), text(1_000_000, "daftar"))
    assert await texts_database.find(term("daftar")) == [1_000_000, 1]
    await texts_database.database.write("clear", texts_database.store.clear)
    assert await texts_database.find(term("daftar")) == []
    await texts_database.put(text(1, "daftar"))
    assert await texts_database.find(term("daftar")) == [1]


async def test_only_unencrypted_rooms_of_the_user_are_searched(
    texts_database: TextDatabase,
) -> None:
    def prepare(txn: WriteTransaction) -> None:
        for room, membership, forgotten in (
            (1, "join", 0),
            (2, "leave", 0),
            (3, "invite", 0),
            (4, "leave", 1),
            (5, "ban", 0),
        ):
            txn.execute(
                "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender,"
                " position, is_local, forgotten)"
                " VALUES (?, ?, ?, 1, '@a:a.test', 1, 1, ?)",
                (room, ME, membership, forgotten),
            )
        txn.execute(
            "INSERT INTO room_summaries (room_nid, encryption) VALUES (5, 'm.megolm.v1.aes-sha2')"
        )

    await texts_database.database.write("prepare", prepare)
    await texts_database.put(*(text(room, "kitob", room) for room in range(1, 8)))
    assert await texts_database.find(term("kitob"), rooms=None) == [3, 2, 1]
    assert await texts_database.find(term("kitob"), rooms={5, 6}) == [6]


async def test_the_longest_texts_can_be_indexed(database: Database) -> None:
    """The worst case of folding a message: three spellings, in characters of four bytes."""
    texts_database = TextDatabase(database)
    folding = TextFolding(("uz", "kaa", "ru"))
    for nid, said in enumerate(("ёў𐐨𐐩𐐪𐐫" + " ", "ё" + "𐐨" * 63 + " ", "ﷺё ", "𠀀𠀁ё"), 1):
        numbered = "".join(said + str(number) for number in range(20_000))
        await texts_database.put(
            text(nid, format_words(folding.lines(numbered)).strip(" ")), text(9, "gap")
        )
    assert await texts_database.find(term("gap")) == [9]


async def test_batches_report_the_progress_of_the_index(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "BATCH", 2)
    home = RoomParts(database)
    room_id = await home.create()
    for _ in range(5):
        await home.send(room_id, ALICE, "gap")
    registry = CollectorRegistry()
    steps = MessageIndexer(
        database=database,
        store=SearchStore(database),
        folding=TextFolding(("uz",)),
        metrics=SearchMetrics(registry),
        now_ms=home.tick,
        enabled=True,
    )
    assert await steps.do_step(5) == 5
    assert registry.get_sample_value("mahalla_search_events_behind") == 5
    await steps.do_step(100)
    assert registry.get_sample_value("mahalla_search_events_behind") == 0
    assert await steps.do_step(100) == 0


async def test_job_progress_is_stored(database: Database) -> None:
    def read(txn: Transaction) -> str | None:
        return select_job_progress(txn, "job")

    assert await database.read("read", read) is None
    for note in ("one", "two"):
        await database.write("put", set_job_progress, "job", note)
        assert await database.read("read", read) == note


keys = st.sampled_from(["a", "ab", "abc", "b", "bc", "東京", "京", "é"])
lines = st.lists(keys, min_size=1, max_size=5).map(" ".join)
texts = st.lists(lines, min_size=1, max_size=2).map("  ".join)
terms = st.builds(
    lambda alternatives: SearchTerm(tuple(alternatives)),
    st.lists(st.lists(keys, min_size=1, max_size=3).map(tuple), min_size=1, max_size=2),
) | st.builds(
    lambda alternatives: SearchTerm(tuple((key,) for key in alternatives), is_prefix=True),
    st.lists(keys, min_size=1, max_size=2),
)


@given(
    written=st.lists(texts, min_size=1, max_size=8), asked=st.lists(terms, min_size=1, max_size=3)
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_the_index_finds_the_same_as_a_scan_of_all_texts(
    database: Database, written: list[str], asked: list[SearchTerm]
) -> None:
    texts_database = TextDatabase(database)
    await database.write("clear", texts_database.store.clear)
    await texts_database.put(*(text(nid, words) for nid, words in enumerate(written, 1)))

    def has(words: str, wanted: SearchTerm) -> bool:
        end = "" if wanted.is_prefix else " "
        return any(
            f" {' '.join(sequence)}{end}" in f" {words} " for sequence in wanted.alternatives
        )

    expected = [
        nid for nid, words in enumerate(written, 1) if all(has(words, wanted) for wanted in asked)
    ]
    assert await texts_database.find(*asked) == expected[::-1]
