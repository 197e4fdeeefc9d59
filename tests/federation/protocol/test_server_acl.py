"""Server ACLs: who may take part in a room, whatever is written in the list."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.server_acl import ServerACL
from tests.federation.protocol.strategies import json_values


@pytest.mark.parametrize(
    ("content", "server", "allowed"),
    [
        ({}, "example.com", False),
        ({"allow": ["*"]}, "example.com", True),
        ({"allow": ["*"], "deny": ["evil.com"]}, "evil.com", False),
        ({"allow": ["*"], "deny": ["evil.com"]}, "evil.com:8448", False),
        ({"allow": ["*"], "deny": ["evil.com"]}, "not-evil.com", True),
        ({"allow": ["*"], "deny": ["*.evil.com"]}, "a.b.evil.com:1", False),
        ({"allow": ["*"], "deny": ["*.evil.com"]}, "evil.com", True),
        ({"allow": ["*"], "deny": ["EVIL.com"]}, "Evil.COM", False),
        ({"allow": ["a?c.uz"]}, "abc.uz", True),
        ({"allow": ["a?c.uz"]}, "ac.uz", False),
        ({"allow": ["a?c.uz"]}, "abbc.uz", False),
        ({"allow": ["a*c*e.uz"]}, "abcde.uz", True),
        ({"allow": ["a*c*e.uz"]}, "aec.uz", False),
        ({"allow": ["*b?d*"]}, "abbxd", True),
        ({"allow": ["a.c"]}, "abc", False),
        ({"allow": ["ab*ba"]}, "aba", False),
        ({"allow": ["[a-z]*"]}, "abc", False),
        ({"allow": ["example.com:8448"]}, "example.com:8448", False),
        ({"allow": ["*"]}, "1.2.3.4", True),
        ({"allow": ["*"], "allow_ip_literals": False}, "1.2.3.4", False),
        ({"allow": ["*"], "allow_ip_literals": False}, "1.2.3.4:80", False),
        ({"allow": ["*"], "allow_ip_literals": False}, "[::1]:80", False),
        ({"allow": ["*"], "allow_ip_literals": False}, "1.2.3.uz", True),
        ({"allow": ["*"], "allow_ip_literals": "false"}, "1.2.3.4", True),
        ({"allow": ["*"], "deny": ["[::*]"]}, "[::1]:80", False),
        ({"allow": "*"}, "example.com", False),
        ({"allow": ["*"], "deny": "*"}, "example.com", True),
        ({"allow": [1, None, "*"], "deny": [{}]}, "example.com", True),
    ],
)
def test_servers_are_allowed_and_denied(
    content: dict[str, Any], server: str, allowed: bool
) -> None:
    assert ServerACL(content).allows(server) is allowed


@settings(max_examples=200)
@given(st.text("ab?*", max_size=8), st.text("abc", max_size=8))
def test_globs_match_as_regular_expressions_would(glob: str, host: str) -> None:
    pattern = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in glob)
    assert ServerACL({"allow": [glob]}).allows(host) is (re.fullmatch(pattern, host) is not None)


def test_a_hostile_glob_takes_linear_time() -> None:
    acl = ServerACL({"allow": ["*a" * 10_000 + "b"]})
    assert not acl.allows("a" * 255)


@settings(max_examples=100)
@given(
    st.fixed_dictionaries(
        {}, optional={"allow": json_values, "deny": json_values, "allow_ip_literals": json_values}
    )
)
def test_any_acl_content_is_evaluated(content: dict[str, Any]) -> None:
    assert ServerACL(content).allows("example.com") in (True, False)
