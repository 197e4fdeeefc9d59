"""Every place of the specification that the project cites exists.

`spec_anchors.tsv` lists the anchors of the pages of release v1.19.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("homeserver", "federation", "storage", "scripts", "tests", "docs")
SUFFIXES = {".py", ".md", ".sql"}
CITATION = re.compile(
    r"(?<![\w/.-])((?:client-server|server-server|application-service|identity-service|push-gateway)-api"
    r"|appendices|rooms/v\d+|olm-megolm(?:/\w+)?)/?#([A-Za-z0-9_-]+)"
)
NUMBERED = re.compile(r"(?P<base>.+)-(?P<number>\d+)")
PART_OF_A_DEFINITION = re.compile(
    r"(?P<base>(?:get|put|post|delete)_[a-z0-9]+|definition-[a-z0-9-]+|m[a-z0-9]+)"
    r"_(?:request|response-\d+|[a-z]+)(?:_\S+)?"
)


def read_anchors() -> dict[str, int]:
    """Return how often each `page#anchor` occurs."""
    lines = (Path(__file__).parent / "spec_anchors.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {place: int(count) for place, count in rows}


ANCHORS = read_anchors()


def exists(page: str, anchor: str) -> bool:
    """Whether the site has the anchor.

    The site numbers headings that occur more than once, and gives each object in an operation's
    tables and each part of an event's content an anchor that begins with that of the operation.
    """
    if f"{page}#{anchor}" in ANCHORS:
        return True
    if numbered := NUMBERED.fullmatch(anchor):
        return ANCHORS.get(f"{page}#{numbered['base']}", 0) > int(numbered["number"])
    part = PART_OF_A_DEFINITION.fullmatch(anchor)
    return part is not None and f"{page}#{part['base']}" in ANCHORS


def citations() -> list[tuple[str, str, str]]:
    """Return the file, page and anchor of each citation in the project."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and "node_modules" not in path.parts and path.is_file():
                name = path.relative_to(ROOT).as_posix()
                found += [(name, *match) for match in CITATION.findall(path.read_text())]
    return found


def test_cited_places_of_the_specification_exist() -> None:
    cited = [place for place in citations() if place[0] != "tests/docs/test_spec_anchors.py"]

    assert len(cited) > 300
    assert [place for place in cited if not exists(*place[1:])] == []


@pytest.mark.parametrize(
    ("anchor", "known"),
    [
        ("room-upgrades", True),
        ("server-behaviour-3", True),
        ("get_matrixclientv3sync", True),
        ("get_matrixclientv3sync_response-200_joined-room", True),
        ("room-upgrade", False),
        ("server-behaviour-300", False),
        ("get_matrixclientv3sink_response-200_joined-room", False),
    ],
)
def test_an_anchor_is_looked_up(anchor: str, known: bool) -> None:
    assert exists("client-server-api", anchor) is known
