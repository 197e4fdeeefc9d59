"""matrix-js-sdk, the SDK of Element Web: an image, plain and encrypted (`js/files.mjs`)."""

from pathlib import Path

from tests.helpers.images import picture
from tests.helpers.js_scripts import list_requests
from tests.helpers.real_server import RealServer


def test_an_image_is_uploaded_and_downloaded(real_server: RealServer, tmp_path: Path) -> None:
    path = tmp_path / "choy.png"
    path.write_bytes(picture(800, 600))
    list_requests("files.mjs", real_server.url, "files", str(path))
