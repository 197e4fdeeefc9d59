"""Keys and signed JSON: the same signatures as everyone else makes, and no other is taken for
one."""

from typing import Any

import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given, settings
from hypothesis import strategies as st
from signedjson.types import SigningKey as OtherKey

from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import BadJson, InvalidParam
from federation.protocol.ids import KeyID
from federation.protocol.signing import (
    SigningKey,
    are_signatures_valid,
    decode_base64,
    encode_base64,
    format_signing_keys,
    is_signature_valid,
    is_signed_by,
    parse_public_key,
    parse_signing_keys,
    sign_json,
    signatures_of,
)
from tests.federation.protocol.strategies import json_values, strict_objects, texts
from tests.federation.protocol.vectors import cases, load, signing_key

KEY = signing_key()
PUBLIC = {KEY.key_id: KEY.public_key}


def _other_key() -> OtherKey:
    (key,) = signedjson.key.read_signing_keys([format_signing_keys([KEY])])
    return key


@pytest.mark.parametrize(
    "case", cases("canonical_json", "unpadded_base64"), ids=lambda case: case["text"] or "empty"
)
def test_base64_is_encoded_without_padding(case: Any) -> None:
    assert encode_base64(case["text"].encode()) == case["base64"]
    assert decode_base64(case["base64"]) == case["text"].encode()


def test_all_forms_of_base64_are_decoded_and_other_text_is_refused() -> None:
    assert decode_base64("+/+/Zg==") == decode_base64("-_-_Zg") == b"\xfb\xff\xbff"
    for text in ("A", "Zg=a", "Z g", "Zg\n", "é", "Zm9v!"):
        with pytest.raises(InvalidParam):
            decode_base64(text)


def test_the_public_key_follows_from_the_seed() -> None:
    published = load("signing", "signing_key")
    assert encode_base64(KEY.public_key) == published["public_key_base64"]
    assert KEY.key_id == published["key_id"]
    assert parse_public_key(KEY.key_id, published["public_key_base64"]) == KEY.public_key


@pytest.mark.parametrize(
    "case", cases("signing", "json_signing"), ids=lambda case: str(case["input"])
)
def test_json_is_signed_and_verified(case: Any) -> None:
    assert sign_json(case["input"], "domain", KEY) == case["signed"]
    assert is_signed_by(case["signed"], "domain", PUBLIC)


def test_a_published_key_response_is_validly_signed() -> None:
    response = load("signing", "server_key_response")["signed"]
    assert is_signed_by(response, "domain", PUBLIC)
    assert not is_signed_by({**response, "valid_until_ts": 1}, "domain", PUBLIC)


@settings(max_examples=200)
@given(strict_objects | st.dictionaries(texts, json_values, max_size=4))
def test_event_signatures_agree_with_the_signedjson_package(
    value: dict[str, Any],
) -> None:
    value.pop("signatures", None)
    signed = sign_json(value, "example.com", KEY)
    assert signed == signedjson.sign.sign_json(dict(value), "example.com", _other_key())
    assert is_signed_by(signed, "example.com", PUBLIC)
    value.pop("unsigned", None)
    message = encode_canonical(value)
    assert signatures_of(signed, "example.com") == {KEY.key_id: KEY.sign(message)}
    assert are_signatures_valid(message, signatures_of(signed, "example.com"), PUBLIC)


@pytest.mark.parametrize(
    "value",
    ["\ud800", float("nan"), {1: 2, "a": 3}, object(), 10**5000],
    ids=["surrogate", "nan", "keys", "object", "integer"],
)
def test_values_without_a_canonical_form_are_not_signed(value: object) -> None:
    with pytest.raises(BadJson):
        sign_json({"a": value}, "example.com", KEY)
    assert not is_signed_by({"a": value, "signatures": {"x": {KEY.key_id: "A" * 86}}}, "x", PUBLIC)


@pytest.mark.parametrize("change", ["!", " ", "\n"])
def test_a_signature_with_other_characters_than_base64_is_wrong(change: str) -> None:
    signed = sign_json({"a": 1}, "x", KEY)
    signed["signatures"]["x"][KEY.key_id] += change
    assert not is_signed_by(signed, "x", PUBLIC)


def test_unsigned_and_other_signatures_are_not_covered() -> None:
    signed = sign_json({"a": 1, "unsigned": {"age": 1}}, "example.com", KEY)
    second = SigningKey("second", b"2" * 32)
    twice = sign_json(
        sign_json({**signed, "unsigned": {"age": 2}}, "example.com", second),
        "other.example",
        second,
    )
    assert is_signed_by(twice, "example.com", PUBLIC)
    assert is_signed_by(twice, "example.com", {second.key_id: second.public_key})
    assert is_signed_by(twice, "other.example", {second.key_id: second.public_key})
    assert not is_signed_by(twice, "other.example", PUBLIC)
    assert not is_signed_by({**twice, "a": 2}, "example.com", PUBLIC)


def test_one_invalid_signature_by_a_known_key_is_a_failure() -> None:
    second = SigningKey("second", b"2" * 32)
    signed = sign_json(sign_json({"a": 1}, "x", KEY), "x", second)
    signed["signatures"]["x"][second.key_id] = signed["signatures"]["x"][KEY.key_id]
    assert is_signed_by(signed, "x", PUBLIC)
    assert not is_signed_by(signed, "x", {**PUBLIC, second.key_id: second.public_key})


@pytest.mark.parametrize(
    "signatures",
    [
        None,
        [],
        {"x": []},
        {"x": {"ed25519:1": 1}},
        {"x": {"rsa:1": "AAAA"}},
        {"x": {"ed25519:1": "AAAA"}},
        {"x": {"ed25519:1": "é"}},
        {"x": {"ed25519:1": "A" * 86}},
        {"y": {"ed25519:1": "A" * 86}},
    ],
)
def test_malformed_signatures_are_ignored(signatures: object) -> None:
    assert not is_signed_by({"signatures": signatures}, "x", PUBLIC)


@settings(max_examples=50)
@given(json_values, st.binary(max_size=40))
def test_any_value_can_be_checked(signatures: Any, key: bytes) -> None:
    value = {"signatures": signatures}
    for entity in [*signatures] if isinstance(signatures, dict) else ["x"]:
        assert not is_signed_by(value, entity, {KeyID("ed25519:1"): key})
        assert all(key_id.startswith("ed25519:") for key_id in signatures_of(value, entity))


def test_a_key_of_another_length_verifies_nothing() -> None:
    assert not is_signature_valid(b"short", b"", "A" * 86)


@pytest.mark.parametrize(
    ("key_id", "key"), [("ed25519:1", "AAAA"), ("rsa:1", "A" * 43), ("ed25519:1", "é"), ("", "")]
)
def test_invalid_public_keys_are_refused(key_id: str, key: str) -> None:
    with pytest.raises(InvalidParam):
        parse_public_key(key_id, key)


def test_a_signing_key_file_is_read_back_and_has_the_usual_format() -> None:
    keys = [KEY, SigningKey("a_BcDe", b"7" * 32)]
    text = format_signing_keys(keys)
    assert text.splitlines()[1] == "ed25519 a_BcDe Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc"
    assert [(key.key_id, key.seed) for key in parse_signing_keys(text)] == [
        (key.key_id, key.seed) for key in keys
    ]
    assert len(parse_signing_keys("# a comment\n\n" + text)) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no signing key"),
        ("ed25519 1", "line 1"),
        ("\nrsa 1 AAAA", "line 2"),
        ("ed25519 1 AAAA", "32 bytes"),
        ("ed25519 1 é", "base64"),
        ("ed25519 a:b " + "A" * 43, "name"),
    ],
)
def test_the_error_for_an_invalid_signing_key_file_names_the_place(
    text: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_signing_keys(text)
