"""What the rest of the server asks scanning: whether a file may come in, and whether it may be
given out."""

from typing import Protocol

from storage.engine.transaction import WriteTransaction
from storage.media.media import Content
from storage.media.rescans import FileKind


class ScanGate(Protocol):
    """Says no to files."""

    def check_size(self, kind: FileKind, size: int) -> None:
        """Before a file is kept. Raises TooLarge where it could not be scanned, and so not be given
        out."""

    def note(self, txn: WriteTransaction, kind: FileKind, hash: bytes, size: int) -> None:
        """A file has come: in the write that keeps it."""

    async def check_kept(self, kind: FileKind, content: Content, whose: str) -> None:
        """A file is kept: scan it, and wait a moment for what comes of it. Raises MediaHarmful.

        `whose`: the user, or the server, whose file it is: they are scanned by turns among these.
        """

    async def check(
        self,
        kind: FileKind,
        content: Content,
        timeout_ms: int,
        whose: str,
        *,
        is_protected: bool = False,
    ) -> None:
        """Before a file is given out; waits so long for its scan. `is_protected`: an administrator
        vouches for it.

        Raises MediaHarmful, MediaTooLargeToScan, NotYetUploaded (it is being scanned still),
        ScannersUnavailable, NotFound.
        """


class OpenGate:
    """Where nothing is scanned."""

    def check_size(self, kind: FileKind, size: int) -> None:
        return None

    def note(self, txn: WriteTransaction, kind: FileKind, hash: bytes, size: int) -> None:
        return None

    async def check_kept(self, kind: FileKind, content: Content, whose: str) -> None:
        return None

    async def check(
        self,
        kind: FileKind,
        content: Content,
        timeout_ms: int,
        whose: str,
        *,
        is_protected: bool = False,
    ) -> None:
        return None
