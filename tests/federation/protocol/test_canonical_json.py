"""Canonical JSON is the same bytes on every server; reading JSON gives a value or a Matrix error,
whatever comes in."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import canonicaljson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.canonical_json import (
    MAX_DEPTH,
    check_depth,
    check_strict,
    check_text_depth,
    decode_json,
    decode_object,
    encode_canonical,
    encode_strict,
)
from federation.protocol.errors import BadJson, MatrixError, NotJson
from tests.federation.protocol.strategies import json_values, nested, strict_values
from tests.federation.protocol.vectors import cases


@pytest.mark.parametrize(
    "case", cases("canonical_json", "canonical_json"), ids=lambda case: case["canonical"][:30]
)
def test_the_examples_of_the_specification_are_encoded(case: Any) -> None:
    # The example with 1e10 takes JSON numbers for what they are worth; decode_json reads exponents
    # as floats.
    value = json.loads(case["input_text"], parse_float=lambda text: int(float(text)))
    assert encode_strict(value).decode() == case["canonical"]
    if "1e10" not in case["input_text"]:
        assert encode_strict(decode_json(case["input_text"].encode())).decode() == case["canonical"]


@pytest.mark.parametrize(
    "case", cases("canonical_json", "canonical_json_more"), ids=lambda case: case["canonical"]
)
def test_further_examples_are_encoded(case: Any) -> None:
    encoded = encode_strict(case["input"])
    assert encoded.decode() == case["canonical"]
    assert sha256(encoded).hexdigest() == case["sha256_hex"]


@pytest.mark.parametrize(
    "case", cases("canonical_json", "canonical_json_must_reject"), ids=lambda case: case["why"]
)
def test_values_that_events_may_not_have_are_refused(case: Any) -> None:
    with pytest.raises(NotJson if case["why"] == "not JSON" else BadJson):
        encode_strict(decode_json(case["text"].encode()))


@settings(max_examples=200)
@given(json_values)
def test_the_encoding_equals_the_canonicaljson_package(value: Any) -> None:
    assert encode_canonical(value) == canonicaljson.encode_canonical_json(value)


@settings(max_examples=100)
@given(strict_values)
def test_strict_values_come_back_unchanged(value: Any) -> None:
    encoded = encode_strict(value)
    assert decode_json(encoded) == value
    assert (
        encode_strict(decode_json(encoded)) == encoded == canonicaljson.encode_canonical_json(value)
    )


@settings(max_examples=200)
@given(
    st.binary(max_size=60)
    | st.text('{}[]",:0123456789eE+-.\\utfn \ud800', max_size=40).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
)
def test_any_bytes_decode_or_raise_a_matrix_error(data: bytes) -> None:
    try:
        value = decode_json(data)
    except MatrixError:
        return
    assert decode_json(encode_canonical(value)) == value


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded(opening: bytes, closing: bytes) -> None:
    inner = b"[]"
    allowed = opening * (MAX_DEPTH - 1) + inner + closing * (MAX_DEPTH - 1)
    assert encode_canonical(decode_json(allowed)) == allowed
    for depth in (MAX_DEPTH, 5_000, 100_000):
        with pytest.raises(BadJson):
            decode_json(opening * depth + inner + closing * depth)


def test_wide_json_is_not_taken_for_deeply_nested_json() -> None:
    wide = b"[" + b",".join([b"[{}]"] * 1_000) + b"]"
    assert decode_json(wide) == [[{}]] * 1_000
    check_text_depth(wide)


@settings(max_examples=300)
@given(
    nested(st.text('{}[]"\\a', max_size=8) | st.none()),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_the_depth_of_a_text_is_the_depth_of_its_value(
    value: Any, limit: int, escaped: bool, indent: int | None
) -> None:
    """Strings may hold any text."""
    text = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    assert is_refused(check_text_depth, text, limit) == is_refused(check_depth, value, limit)


def is_refused(check: Callable[[Any, int], None], what: object, limit: int) -> bool:
    try:
        check(what, limit)
    except BadJson:
        return True
    return False


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\udc00x"',
        b"NaN",
        b"-Infinity",
        b"{'a':1}",
        b"01",
        b"{}x",
    ],
)
def test_invalid_json_is_refused(data: bytes) -> None:
    with pytest.raises(NotJson):
        decode_json(data)


@pytest.mark.parametrize("data", [b"1" * 5_000, b"1e999", b'{"a":-1e400}'])
def test_infinite_and_nan_numbers_are_refused(data: bytes) -> None:
    with pytest.raises(BadJson):
        decode_json(data)


def test_the_last_of_duplicate_keys_counts() -> None:
    assert decode_json(b'{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize("data", [b"[]", b"null", b'"{}"', b"1"])
def test_values_other_than_objects_are_refused(data: bytes) -> None:
    with pytest.raises(BadJson):
        decode_object(data)


@pytest.mark.parametrize(
    "value", [{1: 2}, "\ud800", {"\ud800": 1}, [float("nan")], {"a": float("inf")}]
)
def test_values_without_a_json_form_are_refused(value: Any) -> None:
    with pytest.raises(BadJson):
        encode_canonical(value)


@pytest.mark.parametrize("value", [{"a": {1}}, [b""], [object()]])
def test_strict_refuses_what_is_not_json(value: Any) -> None:
    with pytest.raises(BadJson):
        check_strict(value)
