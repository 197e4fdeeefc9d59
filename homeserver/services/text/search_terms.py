"""Parses search queries into terms, ranks texts by them, and finds words to highlight.

A text matches if it contains all words of the query, in any order. A word of three or more
characters also matches as a prefix, which languages with many endings need. Words in quotes have to
match as a phrase. So do consecutive characters of a script without spaces, such as Chinese.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from homeserver.services.text.text_folding import MAX_KEY, TextFolding, is_unspaced
from storage.engine.text_index import SearchTerm

MIN_PREFIX: Final = 3
"""Minimum characters of a word that also matches as a prefix."""
MAX_RANK: Final = 1_000_000
"""The maximum rank."""

_QUOTED: Final = re.compile(r'["“”„«»]')
_PIECES: Final = re.compile(r"[^\s.,:;!?()\[\]{}<>/\\|\"“”„«»…]+")
_MAX_PIECES: Final = 400
"""Words of a text that are examined for highlights."""
_FREQUENCY_SATURATION: Final = 1.2
"""Occurrences of a term that count half."""
_LENGTH_SCALE: Final = 60
"""Words of a text at which the bonus for short texts is halved."""


def parse_terms(folding: TextFolding, text: str) -> list[SearchTerm]:
    """Return the terms of a search query; none if it has no searchable word."""
    terms: list[SearchTerm] = []
    for number, part in enumerate(_QUOTED.split(text)):
        if number % 2:
            terms.append(_parse_phrase(folding, part))
        else:
            terms.extend(term for word in part.split() for term in _parse_word(folding, word))
    return list(dict.fromkeys(term for term in terms if term.alternatives))


def format_words(lines: Iterable[Sequence[str]]) -> str:
    """Return the keys of a text in the format of the index; "" for a text without keys."""
    return "".join(f" {' '.join(line)} " for line in lines if line)


def matches(terms: Iterable[SearchTerm], words: str) -> bool:
    """Return whether a text in the format of `format_words` contains all terms. The index decides
    the same."""
    return all(
        any(_pattern(keys, term.is_prefix) in words for keys in term.alternatives) for term in terms
    )


def rank(terms: Sequence[SearchTerm], words: str) -> int:
    """Return the rank of a text that contains the terms, from 0 to `MAX_RANK` (see
    `make_ranker`)."""
    return make_ranker(terms)(words)


def make_ranker(terms: Sequence[SearchTerm]) -> Callable[[str], int]:
    """Return a function that ranks texts that contain the terms: higher for frequent terms, for
    complete words, and for short texts.

    A rank depends on the text alone, so pages of results stay consistent while new texts come.
    """
    patterns = [
        (
            [_pattern(keys, is_prefix=False) for keys in term.alternatives],
            [_pattern(keys, is_prefix=True) for keys in term.alternatives]
            if term.is_prefix
            else [],
        )
        for term in terms
    ]
    count = max(1, len(terms))

    def rank_text(words: str) -> int:
        lines = words.count("  ") + 1
        total = 0.0
        for complete_patterns, prefix_patterns in patterns:
            complete = prefixes = 0
            for pattern in complete_patterns:
                complete += words.count(pattern)
            for pattern in prefix_patterns:
                prefixes += words.count(pattern)
            frequency = (
                (complete + prefixes) / 2 / lines if prefixes > complete else complete / lines
            )
            total += frequency / (frequency + _FREQUENCY_SATURATION)
        length = words.count(" ") / lines
        return round(MAX_RANK * total / count * (1 + 1 / (1 + length / _LENGTH_SCALE)) / 2)

    return rank_text


def find_highlights(folding: TextFolding, terms: Sequence[SearchTerm], text: str) -> set[str]:
    """Return the words of a text, in lower case, that match a term: clients highlight them."""
    keys = {key for term in terms for phrase in term.alternatives for key in phrase}
    prefixes = tuple(key for term in terms if term.is_prefix for (key,) in term.alternatives)
    found: set[str] = set()
    for piece in _PIECES.findall(text)[:_MAX_PIECES]:
        if len(piece) > MAX_KEY:
            continue
        for key in folding.keys(piece):
            if is_unspaced(key):
                found.update(part for part in (key, key[0]) if part in keys and part in piece)
            elif key in keys or key.startswith(prefixes):
                found.add(piece.casefold())
    return found


def _parse_word(folding: TextFolding, word: str) -> list[SearchTerm]:
    """Return the terms of a typed word, which may be several (`e-mail`), of several scripts."""
    lines = folding.lines(word)
    if not lines:
        return []
    if any(is_unspaced(key) for line in lines for key in line) and len(lines[0]) > 1:
        return [_parse_phrase(folding, word)]
    if any(len(line) != len(lines[0]) for line in lines):
        return [_parse_phrase(folding, word)]
    terms = []
    for alternatives in zip(*lines, strict=True):
        keys = tuple(dict.fromkeys((key,) for key in alternatives))
        shortest = min(len(key) for (key,) in keys)
        terms.append(SearchTerm(keys, is_prefix=shortest >= MIN_PREFIX or is_unspaced(keys[0][0])))
    return terms


def _parse_phrase(folding: TextFolding, text: str) -> SearchTerm:
    phrases = []
    for line in folding.lines(text):
        # the key of a single last character would match only where the run of characters ends
        is_open = len(line) > 1 and is_unspaced(line[-1]) and len(line[-1]) == 1
        phrases.append(tuple(line[:-1] if is_open else line))
    return SearchTerm(tuple(dict.fromkeys(phrases)))


def _pattern(keys: Sequence[str], is_prefix: bool) -> str:
    return f" {' '.join(keys)}" if is_prefix else f" {' '.join(keys)} "
