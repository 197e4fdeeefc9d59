"""Each option has an effect unless it is marked `not_implemented`; a marked one has none.

The tests search the source. An option counts as read if the code contains `.option` of a variable
or attribute with the name of its section (or a name in `READ_AS`). A rate limit counts as read if
the code uses its member of `Limit`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from homeserver.api.limits import Limit
from homeserver.config.configuration import GROUPS
from homeserver.config.limits import RateLimit
from homeserver.config.option import get_description
from homeserver.config.read import iterate_options
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
"""The names of sections in the code, if they differ from the option."""


@pytest.fixture(scope="module")
def read() -> set[tuple[str, str]]:
    """All accesses `variable.name` and `….attribute.name` in the code: the last two parts."""
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
    """All options that are no section, each with its group, and whether it or its section is
    marked."""
    for group, kind in GROUPS.items():
        silent: set[Place] = set()
        for place, type_, declared in iterate_options(kind):
            if get_description(declared).not_implemented or place[:-1] in silent:
                silent.add(place)
            is_limit = RateLimit in (type_, *get_args(type_))
            if is_limit or (
                not _has_options(kind, place) and place[-1] not in ("per_second", "burst_count")
            ):
                yield (group, *place), place in silent


def _has_options(kind: type, place: Place) -> bool:
    return any(other[:-1] == place for other, _type, _declared in iterate_options(kind))


OPTIONS = dict(leaves())


def readers_of(place: Place) -> set[tuple[str, str]]:
    """The accesses of which one must be in the code if the option is read."""
    group, *names = map(str, place)
    limit = LIMITS.get(".".join(names)) if group == "limits" else None
    if limit is not None:
        return {("Limit", limit)}
    section = str(place[-2])
    return {(name, names[-1]) for name in READ_AS.get(section, {section})}


@pytest.mark.parametrize("place", OPTIONS, ids=lambda place: ".".join(map(str, place[1:])))
def test_an_option_has_an_effect_or_is_marked(place: Place, read: set[tuple[str, str]]) -> None:
    assert bool(readers_of(place) & read) is not OPTIONS[place], (
        "the option is read: remove `not_implemented`"
        if OPTIONS[place]
        else "nothing reads the option: mark it `not_implemented` or implement it"
    )
