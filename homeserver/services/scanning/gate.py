"""The interface that uploads and downloads use for scanning."""

from typing import Protocol

from storage.engine.transaction import WriteTransaction
from storage.media.media import MediaContent
from storage.media.rescans import FileKind


class ScanGate(Protocol):
    """Refuses files that are harmful or not scanned yet."""

    def check_size(self, kind: FileKind, size: int) -> None:
        """Check a size before the file is stored. Raises TooLarge if it could not be scanned and so
        not be downloaded."""

    def record_file(self, txn: WriteTransaction, kind: FileKind, hash: bytes, size: int) -> None:
        """Record a new file, in the write that stores it."""

    async def scan_stored(self, kind: FileKind, content: MediaContent, owner: str) -> None:
        """Scan a stored file, and wait a short time for the result. Raises MediaHarmful.

        `owner`: the user or server that owns the file; the scanner is shared fairly among these.
        """

    async def check(
        self,
        kind: FileKind,
        content: MediaContent,
        timeout_ms: int,
        owner: str,
        *,
        is_protected: bool = False,
    ) -> None:
        """Check a file before it is downloaded, and wait up to the timeout for its scan.
        `is_protected`: an administrator has released it.

        Raises MediaHarmful, MediaTooLargeToScan, NotYetUploaded (the scan has not finished),
        ScannersUnavailable, NotFound.
        """


class NoScanGate:
    """Accepts all files, for a server without scanners."""

    def check_size(self, kind: FileKind, size: int) -> None:
        return None

    def record_file(self, txn: WriteTransaction, kind: FileKind, hash: bytes, size: int) -> None:
        return None

    async def scan_stored(self, kind: FileKind, content: MediaContent, owner: str) -> None:
        return None

    async def check(
        self,
        kind: FileKind,
        content: MediaContent,
        timeout_ms: int,
        owner: str,
        *,
        is_protected: bool = False,
    ) -> None:
        return None
