"""Globs in filters match like a plain matcher, in linear time."""

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.services.filters.event_filters import EventFilter


def matches(pattern: str, text: str) -> bool:
    """Try all strings that a star may stand for. spec: client-server-api#filtering"""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(matches(pattern[1:], text[at:]) for at in range(len(text) + 1))
    return text[:1] == pattern[0] and matches(pattern[1:], text[1:])


@given(st.text("*ab.", max_size=7), st.text("ab.\n", max_size=9))
def test_globs_match_like_a_plain_matcher(pattern: str, text: str) -> None:
    assert EventFilter(types=(pattern,)).allows(text, None) is matches(pattern, text)
    assert EventFilter(not_types=(pattern,)).allows(text, None) is not matches(pattern, text)


@pytest.mark.parametrize("stars", [4, 100])
def test_many_stars_take_no_more_time_than_few(stars: int) -> None:
    before = process_time()
    assert not EventFilter(types=("*a" * stars + "*b",)).allows("a" * 255, None)
    assert process_time() - before < 1, "half a minute for four stars, with backtracking"
