"""Words that match: spellings that count as the same, and those that do not."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.services.text.search_terms import (
    MAX_RANK,
    find_highlights,
    format_words,
    matches,
    parse_terms,
    rank,
)
from homeserver.services.text.text_folding import MAX_KEY, MAX_WORDS, TextFolding

DEFAULT = TextFolding(("uz", "kaa", "ru", "en"))
PLAIN = TextFolding(("en",))

UZBEK = {  # official pairs of the two scripts
    "ўзбек": "oʻzbek",
    "Ўзбекистон Республикаси": "Oʻzbekiston Respublikasi",
    "ғишт": "gʻisht",
    "чойхона": "choyxona",
    "шаҳар": "shahar",
    "ер": "yer",
    "поезд": "poyezd",
    "аэропорт": "aeroport",
    "ёш": "yosh",
    "юлдуз": "yulduz",
    "яхши": "yaxshi",
    "маъно": "maʼno",
    "йўқ": "yoʻq",
    "қишлоқ": "qishloq",
    "жума": "juma",
    "цирк": "sirk",
    "концерт": "konsert",
    "лекция": "leksiya",
    "конституция": "konstitutsiya",
    "октябрь": "oktyabr",
    "мен келдим": "men keldim",
}
KARAKALPAK = {
    "Қарақалпақстан": "Qaraqalpaqstan",
    "ўәлаят": "wálayat",
    "өмир": "ómir",
    "үлкен": "úlken",
    "таң": "tań",
    "ғарры": "ǵarrı",
    "ел": "el",
}
APOSTROPHES = "ʻʼ‘’'`´′ʹʽʿˈ＇"


def finds(query: str, text: str, folding: TextFolding = DEFAULT) -> bool:
    return matches(parse_terms(folding, query), format_words(folding.lines(text)))


@pytest.mark.parametrize(("cyrillic", "latin"), [*UZBEK.items(), *KARAKALPAK.items()])
def test_the_two_scripts_match(cyrillic: str, latin: str) -> None:
    assert finds(cyrillic, latin)
    assert finds(latin, cyrillic)
    assert finds(f'"{latin}"', f"({cyrillic.upper()})")


@pytest.mark.parametrize("apostrophe", APOSTROPHES)
def test_apostrophes_are_ignored(apostrophe: str) -> None:
    assert DEFAULT.lines(f"O{apostrophe}zbekcha ma{apostrophe}no") == [["ozbekcha", "mano"]]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("елка", "Новогодняя ёлка"),
        ("ёлка", "новогодняя елка"),
        ("cafe", "Café"),
        ("strasse", "Straße"),
        ("istanbul", "İSTANBUL"),
        ("lodz", "Łódź"),
        ("kitob", "kitoblarimizdan"),
        ("договор", "по договорам"),
        ("2024", "2024-yil"),
        ("19", "COVID-19"),
        ("ｆｕｌｌ", "full width"),
        ("東京", "私は東京都に住む"),
        ("都", "東京都"),
        ("서울", "서울에서"),
        ("ไทย", "ภาษาไทย"),
        ("e\u0301te\u0301", "été"),
        ("हिन्दी", "यह हिन्दी है"),
    ],
)
def test_matching_texts_are_found(query: str, text: str) -> None:
    assert finds(query, text)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("ki", "kitob"),  # too short for a prefix match
        ("itob", "kitob"),
        ("qand", "kand"),
        ('"yangi kitob"', "kitob yangi"),
        ('"yangi kitob"', "yangi kitoblar"),
        ("京東", "東京"),
        ("kitob daftar", "kitob"),
        ("का", "कि"),
    ],
)
def test_other_texts_are_not_found(query: str, text: str) -> None:
    assert not finds(query, text)


def test_only_configured_languages_match() -> None:
    assert PLAIN.lines("Ўзбек ёлка") == [["узбек", "елка"]]
    assert not finds("kitob", "китоб", PLAIN)
    assert TextFolding(("ru",)).lines("Ёлка") == [["elka"]]
    assert TextFolding(("uz",)).lines("Ёлка") == [["yolka"]]
    assert PLAIN.name != DEFAULT.name


def test_latin_text_has_one_line_of_keys() -> None:
    assert len(DEFAULT.lines("Bugun soat uchda yigʻilish")) == 1
    assert len(DEFAULT.lines("Бугун соат учда")) == 1
    assert len(DEFAULT.lines("ёлка ўсди")) == 3


@pytest.mark.parametrize(
    "nothing", ["", " ", "!?…", "'", '"', "— – -", "👍🏽", "\u0301", "\u200b", "_", "\ud800"]
)
def test_a_text_without_words_has_no_keys(nothing: str) -> None:
    assert DEFAULT.lines(nothing) == []
    assert parse_terms(DEFAULT, nothing) == []


def test_long_text_is_bounded() -> None:
    lines = DEFAULT.lines("a " * 100_000)
    assert len(lines[0]) == MAX_WORDS
    (line,) = DEFAULT.lines("東" * 100_000)
    assert len(line) == MAX_WORDS
    assert DEFAULT.lines("x" * 10_000) == [["x" * MAX_KEY]]


def test_better_matches_rank_higher() -> None:
    def ranked(query: str, text: str) -> int:
        return rank(parse_terms(DEFAULT, query), format_words(DEFAULT.lines(text)))

    assert ranked("kitob", "kitob") > ranked("kitob", "kitoblar") > ranked("daftar", "kitob") == 0
    assert ranked("kitob", "kitob kitob") > ranked("kitob", "kitob daftar")
    assert ranked("kitob", "kitob") > ranked("kitob", "kitob " + "va " * 200)
    assert ranked("kitob", "kitob " * 1000) < MAX_RANK


def test_highlights_are_words_of_the_text() -> None:
    terms = parse_terms(DEFAULT, 'kitob "oʻzbek tili"')
    assert find_highlights(DEFAULT, terms, "Китоблар: «Ўзбек» тили, daftar") == {
        "китоблар",
        "ўзбек",
        "тили",
    }
    assert find_highlights(DEFAULT, parse_terms(DEFAULT, "東京"), "私は東京都") == {"東京"}
    assert find_highlights(DEFAULT, parse_terms(DEFAULT, "都"), "東京都") == {"都"}


anything = st.text(max_size=80)
words = st.lists(
    st.text("abdeiknoʻ'ўқёецşñ東京カ가ไ1", min_size=1, max_size=6), min_size=1, max_size=6
).map(" ".join)


@given(text=anything | words)
@settings(max_examples=200, deadline=None)
def test_keys_have_no_special_characters(text: str) -> None:
    for line in DEFAULT.lines(text):
        for key in line:
            assert 0 < len(key) <= MAX_KEY
            assert all(each.isalnum() or unicodedata.category(each)[0] == "M" for each in key)


@given(text=anything | words)
@settings(max_examples=200, deadline=None)
def test_a_text_matches_itself(text: str) -> None:
    """Word by word and as a phrase, in any case and Unicode form."""
    found = format_words(DEFAULT.lines(text))
    for query in (
        text,
        text.replace('"', " "),
        unicodedata.normalize("NFD", text),
        f'"{text.replace(chr(34), " ")}"',
    ):
        assert matches(parse_terms(DEFAULT, query), found)


@given(text=words)
@settings(max_examples=100, deadline=None)
def test_folding_is_idempotent(text: str) -> None:
    for line in DEFAULT.lines(text):
        if not any(character >= "\u0e00" for key in line for character in key):
            assert DEFAULT.lines(" ".join(line)) == [line]


@given(query=words, text=words)
@settings(max_examples=200, deadline=None)
def test_a_match_has_a_rank_and_a_highlight(query: str, text: str) -> None:
    terms, found = parse_terms(DEFAULT, query), format_words(DEFAULT.lines(text))
    assert 0 <= rank(terms, found) <= MAX_RANK
    if terms and matches(terms, found):
        assert rank(terms, found) > 0
        assert find_highlights(DEFAULT, terms, text)
