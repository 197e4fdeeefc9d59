"""Media requests between two servers of a `Network`, and forged responses to them."""

from collections.abc import Callable
from pathlib import Path

from federation.peers.wire import WireResponse
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH
from tests.helpers.server import User

DOWNLOAD = "/_matrix/client/v1/media/download"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail"
PUBLIC = "/_matrix/media/v3/download"
SIGNED = "/_matrix/federation/v1/media/"
OPEN = "enable_authenticated_media: false\n"
DAY = 24 * 3600


def pair(network: Network, north: str = "", south: str = "") -> tuple[User, User]:
    """Add two servers and a user on each: the uploader and the downloader."""
    return network.add(NORTH, north).register("alice"), network.add(SOUTH, south).register("bob")


def media_requests(network: Network, path: str = "/media/") -> list[str]:
    return [uri for _, _, _, uri in network.log if path in uri]


def stored_files(tmp_path: Path, server: str = SOUTH) -> list[Path]:
    folder = tmp_path / server / "media_store"
    return [
        path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", "turn")
    ]


def forge_media(network: Network, answer: Callable[[str], WireResponse | None]) -> None:
    """Answer media requests to any server with this function of the path. None: let the server
    answer."""
    network.interceptors.append(
        lambda _, request: answer(request.uri) if "/media/" in request.uri else None
    )


def multipart(
    *parts: bytes, end: bytes = b"\r\n--x--\r\n", type: str = "multipart/mixed; boundary=x"
) -> WireResponse:
    body = b"".join(b"\r\n--x\r\n" + part for part in parts) + end
    return WireResponse(200, {"content-type": type}, body)


METADATA = b"Content-Type: application/json\r\n\r\n{}"
PLAIN = b"Content-Type: text/plain\r\n\r\nhello"
