"""Uploads of files, and the files that the server stores."""

import io
from pathlib import Path

from storage.media.files import MediaFiles
from storage.media.media import MediaContent
from tests.helpers.http import Answer
from tests.helpers.server import User

UPLOAD = "/_matrix/media/v3/upload"


def request_upload(
    user: User, body: bytes, type: str = "text/plain", path: str = UPLOAD, method: str = "POST"
) -> Answer:
    """Upload a file and return the response."""
    return user.server.client.request(
        method, path, token=user.token, body=body, headers={"Content-Type": type}
    )


def upload_file(user: User, body: bytes, type: str = "text/plain", query: str = "") -> str:
    """Upload a file; return its server name and media ID as `server/id`."""
    return upload_uri(user, body, type, query).removeprefix("mxc://")


def upload_uri(user: User, body: bytes, type: str = "text/plain", query: str = "") -> str:
    """Upload a file; return its content URI, `mxc://server/id`."""
    answer = request_upload(user, body, type, UPLOAD + query)
    assert answer.status == 200, answer.body
    return str(answer.json["content_uri"])


async def store_image(files: MediaFiles, data: bytes) -> MediaContent:
    """Store an image without a row in the database."""
    stored = await files.add(io.BytesIO(data))
    await files.settle(stored)
    return MediaContent(stored.hash, stored.size, "image/png", None)


def stored_contents(folder: Path) -> list[Path]:
    """Return the files that are stored for a server with this folder."""
    contents = folder / "media_store" / "content"
    return [path for path in contents.rglob("*") if path.is_file()]
