"""No option lies: what is not marked `not_yet` is read by some part of the server, and what is
marked is read by none.

Found in the source: an option is read as `.option` of a variable or attribute that is called like
its section (or as `READ_AS` says), and a rate limit by the member of `Limit` that is called like
it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from homeserver.api.limits import Limit
from homeserver.config.configuration import GROUPS
from homeserver.config.limits import RateLimit
from homeserver.config.option import description_of
from homeserver.config.read import each_option
from homeserver.config.yaml_text import Place

PACKAGE = Path(__file__).parents[2] / "homeserver"
READ_AS = {
    "cas_config": {"cas_config", "config", "_config"},
    "config": {"templates"},
    "jwt_config": {"jwt", "_config"},
    "saml2_config": {"saml2_config", "config", "_config"},
    "database": {"database", "section"},
    "federation": {"federation", "peering"},
    "listeners": {"listener"},
    "media_object_store": {"object_store"},
    "thumbnail_sizes": {"thumbnail_size"},
    "media_scanning": {"scanning"},
    "password_config": {"password_config", "passwords"},
    "resources": {"resource"},
}
"""What the code calls a section, where not by its own name."""


@pytest.fixture(scope="module")
def read() -> set[tuple[str, str]]:
    """Every `variable.name` or `….attribute.name` of the code: the last two parts."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                of = node.value
                name = (
                    of.attr
                    if isinstance(of, ast.Attribute)
                    else of.id
                    if isinstance(of, ast.Name)
                    else ""
                )
                found.add((name, node.attr))
    return found


LIMITS = {limit.value: limit.name for limit in Limit}


def leaves() -> Iterator[tuple[Place, bool]]:
    """Every option that is no section, with its group before it, and whether it or what it is in is
    marked."""
    for group, kind in GROUPS.items():
        silent: set[Place] = set()
        for place, type_, declared in each_option(kind):
            if description_of(declared).not_yet or place[:-1] in silent:
                silent.add(place)
            is_limit = RateLimit in (type_, *get_args(type_))
            if is_limit or (
                not _has_options(kind, place) and place[-1] not in ("per_second", "burst_count")
            ):
                yield (group, *place), place in silent


def _has_options(kind: type, place: Place) -> bool:
    return any(other[:-1] == place for other, _type, _declared in each_option(kind))


OPTIONS = dict(leaves())


def readers_of(place: Place) -> set[tuple[str, str]]:
    """What the code would have to say to read this option."""
    group, *names = map(str, place)
    limit = LIMITS.get(".".join(names)) if group == "limits" else None
    if limit is not None:
        return {("Limit", limit)}
    section = str(place[-2])
    return {(name, names[-1]) for name in READ_AS.get(section, {section})}


@pytest.mark.parametrize("place", OPTIONS, ids=lambda place: ".".join(map(str, place[1:])))
def test_an_option_acts_or_says_that_it_does_not(place: Place, read: set[tuple[str, str]]) -> None:
    assert bool(readers_of(place) & read) is not OPTIONS[place], (
        "it is read: take `not_yet` away"
        if OPTIONS[place]
        else "nothing reads it: mark it `not_yet`, or wire it"
    )
