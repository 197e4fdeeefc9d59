"""What somebody types to search: the terms that a text has to have, how well it has them, what to
mark in it. Pure.

A text has to have all the words, in any order; a word of three characters or more also finds longer
ones that begin with it (languages with many endings need that). Words in quotes, and runs of
characters of scripts without spaces, have to follow each other as they stand.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from homeserver.services.text.words import MAX_KEY, Folding, is_unspaced
from storage.engine.text_index import Term

SHORTEST_BEGINNING: Final = 3
"""Characters of a word that also finds longer ones."""
SCALE: Final = 1_000_000
"""A rank is a whole number of so many parts."""

_QUOTED: Final = re.compile(r'["“”„«»]')
_PIECES: Final = re.compile(r"[^\s.,:;!?()\[\]{}<>/\\|\"“”„«»…]+")
_MOST_PIECES: Final = 400
"""Words of a text that are looked at for those to mark."""
_FEW_TIMES: Final = 1.2
_LONG: Final = 60


def parse_terms(folding: Folding, text: str) -> list[Term]:
    """The terms of a search; none where there is nothing to be found by."""
    terms: list[Term] = []
    for number, part in enumerate(_QUOTED.split(text)):
        if number % 2:
            terms.append(_sequence(folding, part))
        else:
            terms.extend(term for word in part.split() for term in _parse_word(folding, word))
    return list(dict.fromkeys(term for term in terms if term.alternatives))


def format_words(lines: Iterable[Sequence[str]]) -> str:
    """The keys of a text as the index keeps them; empty for a text without any."""
    return "".join(f" {' '.join(line)} " for line in lines if line)


def matches(terms: Iterable[Term], words: str) -> bool:
    """Whether a text, given as `format_words` makes it, has all of the terms: what the index
    answers."""
    return all(
        any(_spelt(keys, term.is_prefix) in words for keys in term.alternatives) for term in terms
    )


def rank(terms: Sequence[Term], words: str) -> int:
    """How well a text that has the terms has them, from 0 to SCALE. As `make_ranker`, for one
    text."""
    return make_ranker(terms)(words)


def make_ranker(terms: Sequence[Term]) -> Callable[[str], int]:
    """Tells how well texts that have the terms have them: often, as whole words, among few others.

    A rank depends on the text alone, so that pages of results fit together whatever is written
    meanwhile.
    """
    sought = [
        (
            [_spelt(keys, is_prefix=False) for keys in term.alternatives],
            [_spelt(keys, is_prefix=True) for keys in term.alternatives] if term.is_prefix else [],
        )
        for term in terms
    ]
    count = max(1, len(terms))

    def rank_text(words: str) -> int:
        lines = words.count("  ") + 1
        total = 0.0
        for spellings, beginnings in sought:
            whole = begun = 0
            for spelt in spellings:
                whole += words.count(spelt)
            for spelt in beginnings:
                begun += words.count(spelt)
            often = (whole + begun) / 2 / lines if begun > whole else whole / lines
            total += often / (often + _FEW_TIMES)
        length = words.count(" ") / lines
        return round(SCALE * total / count * (1 + 1 / (1 + length / _LONG)) / 2)

    return rank_text


def find_marked(folding: Folding, terms: Sequence[Term], text: str) -> set[str]:
    """The words of a text, in lower case, that a client is to mark because one of the terms is in
    them."""
    keys = {key for term in terms for sequence in term.alternatives for key in sequence}
    beginnings = tuple(key for term in terms if term.is_prefix for (key,) in term.alternatives)
    found: set[str] = set()
    for piece in _PIECES.findall(text)[:_MOST_PIECES]:
        if len(piece) > MAX_KEY:
            continue
        for key in folding.keys(piece):
            if is_unspaced(key):
                found.update(part for part in (key, key[0]) if part in keys and part in piece)
            elif key in keys or key.startswith(beginnings):
                found.add(piece.casefold())
    return found


def _parse_word(folding: Folding, word: str) -> list[Term]:
    """A word as it is typed may be several (`e-mail`), of several scripts."""
    lines = folding.lines(word)
    if not lines:
        return []
    if any(is_unspaced(key) for line in lines for key in line) and len(lines[0]) > 1:
        return [_sequence(folding, word)]
    if any(len(line) != len(lines[0]) for line in lines):
        return [_sequence(folding, word)]
    terms = []
    for spellings in zip(*lines, strict=True):
        keys = tuple(dict.fromkeys((key,) for key in spellings))
        shortest = min(len(key) for (key,) in keys)
        terms.append(
            Term(keys, is_prefix=shortest >= SHORTEST_BEGINNING or is_unspaced(keys[0][0]))
        )
    return terms


def _sequence(folding: Folding, text: str) -> Term:
    sequences = []
    for line in folding.lines(text):
        # the last character of a run stands alone in the text only where the run ends there too
        is_open = len(line) > 1 and is_unspaced(line[-1]) and len(line[-1]) == 1
        sequences.append(tuple(line[:-1] if is_open else line))
    return Term(tuple(dict.fromkeys(sequences)))


def _spelt(keys: Sequence[str], is_prefix: bool) -> str:
    return f" {' '.join(keys)}" if is_prefix else f" {' '.join(keys)} "
