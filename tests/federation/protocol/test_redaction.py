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
def test_redaction_keeps_the_fields_of_the_room_version(case: Any) -> None:
    assert redact(ROOM_VERSIONS[case["room_version"]], case["event"]) == case["redacted"]


@pytest.mark.parametrize(
    "case", cases("events", "event_signing"), ids=lambda case: case["input"]["type"]
)
def test_the_examples_of_the_specification_are_redacted(case: Any) -> None:
    assert redact(ROOM_VERSIONS[case["room_version"]], case["signed"]) == case["redacted"]


@settings(max_examples=100)
@given(pdus() | hostile_pdus, st.sampled_from(sorted(ROOM_VERSIONS)))
def test_redaction_is_idempotent_and_copies_the_event(pdu: dict[str, Any], version: str) -> None:
    before = repr(pdu)
    once = redact(ROOM_VERSIONS[version], pdu)
    assert redact(ROOM_VERSIONS[version], once) == once
    assert "unsigned" not in once
    assert repr(pdu) == before


def test_redactions_need_power_or_the_same_sender() -> None:
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


def test_the_first_versions_decide_redactions_by_authorization() -> None:
    assert may_redact(V2, redacter="@b:x", target_sender="@a:y", sender_level=0, redact_level=50)
