"""Redaction keeps what authorization and signatures need, in each room version."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.redaction import may_redact, redact
from federation.protocol.room_versions import ROOM_VERSIONS, V2, V3
from tests.federation.protocol.strategies import hostile_pdus, pdus
from tests.federation.protocol.vectors import cases


@pytest.mark.parametrize(
    "case",
    cases("redaction", "redaction_and_ids"),
    ids=lambda case: f"v{case['room_version']}-{case['event']['type']}",
)
def test_what_is_left(case: Any) -> None:
    assert redact(ROOM_VERSIONS[case["room_version"]], case["event"]) == case["redacted"]


@pytest.mark.parametrize(
    "case", cases("events", "event_signing"), ids=lambda case: case["input"]["type"]
)
def test_examples_of_the_specification(case: Any) -> None:
    assert redact(ROOM_VERSIONS[case["room_version"]], case["signed"]) == case["redacted"]


@settings(max_examples=100)
@given(pdus() | hostile_pdus, st.sampled_from(sorted(ROOM_VERSIONS)))
def test_redacting_twice_is_redacting_once_and_leaves_the_event_alone(
    pdu: dict[str, Any], version: str
) -> None:
    before = repr(pdu)
    once = redact(ROOM_VERSIONS[version], pdu)
    assert redact(ROOM_VERSIONS[version], once) == once
    assert "unsigned" not in once
    assert repr(pdu) == before


def test_who_may_redact() -> None:
    def may(redacter: str, level: float) -> bool:
        return may_redact(
            V3,
            redacter=redacter,
            target_sender="@a:example.com:80",
            sender_level=level,
            redact_level=50,
        )

    assert may("@mod:other.example", 50)
    assert may("@mod:other.example", float("inf"))
    assert not may("@b:other.example", 49)
    assert may("@b:example.com:80", 0)
    assert not may("@b:example.com", 0)


def test_in_the_first_versions_authorization_has_decided() -> None:
    assert may_redact(V2, redacter="@b:x", target_sender="@a:y", sender_level=0, redact_level=50)
