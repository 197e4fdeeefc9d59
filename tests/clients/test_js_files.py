"""matrix-js-sdk, the SDK of Element Web: an image, plain and encrypted (`js/files.mjs`)."""

from pathlib import Path

from tests.helpers.images import picture
from tests.helpers.js_scripts import run_script
from tests.helpers.real_server import RealServer

SECONDS = 300


def test_an_image_is_uploaded_and_downloaded(real_server: RealServer, tmp_path: Path) -> None:
    path = tmp_path / "choy.png"
    path.write_bytes(picture(800, 600))
    assert run_script("files.mjs", [real_server.url, "js-files", str(path)], SECONDS)
