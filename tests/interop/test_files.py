"""With Synapse: media between users of both servers."""

import json
import re

import pytest

from tests.helpers.images import opened, picture
from tests.helpers.interop import Person
from tests.interop.conftest import Pair

MEDIA = "/_matrix/client/v1/media"


def upload(person: Person, body: bytes) -> str:
    """Upload a file; return its server name and media ID as `server/id`."""
    said = person.ask_bytes("POST", "/_matrix/media/v3/upload?filename=a%20b.png", body)
    assert said.status == 200, said.body
    return str(json.loads(said.body)["content_uri"]).removeprefix("mxc://")


@pytest.mark.parametrize("it_is_ours", [True, False], ids=["our-picture", "their-picture"])
def test_an_image_and_its_thumbnail_federate(pair: Pair, it_is_ours: bool) -> None:
    owner, other = pair.both_ways(it_is_ours)
    data = picture(800, 600)
    address = upload(owner, data)

    got = other.ask_bytes("GET", f"{MEDIA}/download/{address}?timeout_ms=60000")
    assert (got.status, got.body, got.headers["content-type"]) == (200, data, "image/png")
    assert re.search("a(%20| )b.png", got.headers["content-disposition"])

    for method in ("scale", "crop"):
        query = f"width=96&height=96&method={method}&timeout_ms=60000"
        got = other.ask_bytes("GET", f"{MEDIA}/thumbnail/{address}?{query}")
        assert got.status == 200
        assert max(opened(got.body).size) < 800


@pytest.mark.parametrize("it_is_ours", [True, False], ids=["our-file", "their-file"])
def test_a_large_file_federates_and_a_missing_file_is_not_found(
    pair: Pair, it_is_ours: bool
) -> None:
    owner, other = pair.both_ways(it_is_ours)
    data = bytes(range(256)) * (20 << 12)
    address = upload(owner, data)
    got = other.ask_bytes("GET", f"{MEDIA}/download/{address}?timeout_ms=60000")
    assert (got.status, got.body) == (200, data)
    assert (
        other.ask_bytes("GET", f"{MEDIA}/download/{owner.server.name}/nothingLikeThis").status
        == 404
    )
