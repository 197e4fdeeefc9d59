"""Findings that are certain enough to block a file for all users, although a user supplied the key
that decrypted it."""

import pytest
from twisted.internet.task import Clock

from homeserver.services.scanning.clamd import ClamdScanner
from homeserver.services.scanning.connection import ScannerAddress
from homeserver.services.scanning.icap import ICAPScanner
from homeserver.services.scanning.rules import ForbiddenTypes
from homeserver.services.scanning.scanner import ScanFinding, Scanner
from homeserver.services.scanning.scanners import Scanners
from storage.engine.executors import InlineExecutor


@pytest.mark.parametrize(
    ("scanner", "what", "sure"),
    [
        ("clamd", "Win.Test.EICAR_HDB-1", True),
        ("clamd", "Heuristics.Encrypted.Zip", False),
        ("clamd", "PUA.Win.Packer", False),
        ("icap", "refused", False),
        ("type", "application/zip", False),
    ],
)
def test_only_findings_by_content_are_certain(scanner: str, what: str, sure: bool) -> None:
    place = ScannerAddress(path="/nowhere")
    asked: list[Scanner] = [
        ClamdScanner(place=place, executor=InlineExecutor(), seconds=1.0),
        ICAPScanner(
            url="icap://127.0.0.1:1344/x", method="RESPMOD", executor=InlineExecutor(), seconds=1.0
        ),
        ForbiddenTypes(["application/zip"]),
    ]
    assert Scanners(clock=Clock(), scanners=asked).is_conclusive(ScanFinding(scanner, what)) is sure
