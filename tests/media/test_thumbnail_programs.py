"""Programs that extract pictures from films and documents: each has a limit of CPU time, and a
busy machine does not count against a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from homeserver.services.media import image_worker


@pytest.fixture
def film(tmp_path: Path) -> bytes:
    """A job for one."""
    path = tmp_path / "film"
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    job = {
        "path": str(path),
        "width": 32,
        "height": 32,
        "method": "scale",
        "animated": False,
        "max_pixels": 1000,
    }
    return json.dumps({**job, "programs": True}).encode()


def let_it(monkeypatch: pytest.MonkeyPatch, do: str) -> None:
    """Run this code in place of ffmpeg."""
    monkeypatch.setattr(image_worker, "program_for", lambda *_: [sys.executable, "-I", "-c", do])


def test_a_program_that_has_to_wait_does_not_fail_the_file(
    film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is no image would be remembered for a day."""
    monkeypatch.setattr(image_worker, "PROGRAM_SECONDS", 1)
    monkeypatch.setattr(image_worker, "MAX_PROGRAM_SECONDS", 0.5)
    let_it(monkeypatch, "import time; time.sleep(100)")
    assert image_worker.process(film) == ({"kind": "unknown"}, b"")


def test_a_file_above_the_cpu_limit_has_no_thumbnail(
    film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_worker, "PROGRAM_SECONDS", 1)
    let_it(monkeypatch, "while True: pass")
    assert image_worker.process(film) == ({"kind": "no image"}, b"")
    with pytest.raises(subprocess.CalledProcessError):
        image_worker.run([sys.executable, "-I", "-c", "while True: pass"])
