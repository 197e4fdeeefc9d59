"""Removal of values that are nested too deeply leaves the rest of a JSON text unchanged."""

import json
from time import process_time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.peers.response_splitter import is_one_object
from federation.protocol.dense_json import has_too_many_values, without_deep

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(st.sampled_from('ab"\\[]{},:é'), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.sampled_from('a"\\[{'), max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def pruned(value: Any, levels: int) -> Any:
    """The same, by looking at the value."""
    if isinstance(value, list | dict) and levels == 0:
        return None
    if isinstance(value, list):
        return [pruned(each, levels - 1) for each in value]
    if isinstance(value, dict):
        return {name: pruned(each, levels - 1) for name, each in value.items()}
    return value


@given(values, st.integers(0, 4), st.sampled_from([None, 1]))
def test_only_deeply_nested_values_are_removed(value: Any, levels: int, indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False).encode()
    assert msgspec.json.decode(without_deep(text, levels)) == pruned(value, levels)


def test_any_depth_of_nesting_is_handled() -> None:
    text = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    assert msgspec.json.decode(without_deep(text, 2)) == {"a": {"a": None}}
    assert without_deep(b"[[", 1) == b"[[", "what is no JSON stays none"


ENDLESS = b'"' + b'\\"' * 50_000
"""A string without an end, in which each second character may begin one."""


@pytest.mark.parametrize("begin", [b"", b"[" * 300, b'{"a":"b"},'])
@pytest.mark.parametrize("end", [b"", b"\\", b"}"])
def test_an_unterminated_string_takes_linear_time(begin: bytes, end: bytes) -> None:
    text = begin + ENDLESS + end
    before = process_time()
    assert not has_too_many_values(text)
    assert without_deep(text, 256) == text
    assert not is_one_object(b"{" + text)
    assert process_time() - before < 5, "a minute, where the end is looked for from each quote"


@given(st.text(st.sampled_from('[]{}"\\a,'), max_size=20), st.integers(0, 3))
def test_invalid_json_stays_invalid(text: str, levels: int) -> None:
    """But for what is inside what is left out, which nobody reads."""
    try:
        msgspec.json.decode(without_deep(text.encode(), levels))
    except msgspec.DecodeError:
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(text)
