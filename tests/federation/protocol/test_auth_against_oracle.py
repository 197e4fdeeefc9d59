"""The authorization rules agree with the pages of the spec: on the verdict, and on the number of
the rule that refuses."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import event as note
from hypothesis import strategies as st

from federation.protocol.auth_rules import AuthError
from federation.protocol.event_auth import check_auth, check_auth_events
from federation.protocol.room_versions import ROOM_VERSIONS
from tests.federation.protocol.auth_questions import Drawn, Focus, questions
from tests.federation.protocol.oracle_auth import answer


def verdict(drawn: Drawn) -> str | None:
    """The number of the rule by which the code under test refuses, None if it allows."""
    create = drawn.event if drawn.event.type == "m.room.create" else drawn.create
    try:
        check_auth_events(
            drawn.event, drawn.auth_events, rejected=drawn.rejected, create=drawn.create
        )
        check_auth(drawn.event, drawn.state, create=create, signed_by=drawn.signed_by)
    except AuthError as error:
        return error.rule
    return None


@pytest.mark.parametrize("focus", Focus)
@pytest.mark.parametrize("identifier", ROOM_VERSIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_verdict_and_rule_agree_with_the_page(
    identifier: str, focus: Focus, data: st.DataObject
) -> None:
    drawn = data.draw(questions(identifier, focus))
    expected = answer(drawn.question)
    note(expected or "allowed")
    assert verdict(drawn) == expected
