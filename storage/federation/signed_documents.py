"""Signed documents that configure this server, such as the list of a federation's members.

For each purpose, the last valid document is stored, so that a restarted server has it even if the
source is unreachable.
"""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class SignedDocument(msgspec.Struct, frozen=True):
    """A document as received, and when it was fetched (ms since 1970)."""

    document: bytes
    fetched_at: int


class SignedDocumentStore:
    """Reads and writes the table `signed_documents`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_document(self, purpose: str) -> SignedDocument | None:
        """Return the last valid document."""
        return await self._database.read("get_signed_document", _get_document, purpose)

    async def set_document(self, purpose: str, document: SignedDocument) -> None:
        """Replace the document of a purpose."""
        await self._database.write("set_signed_document", _set_document, purpose, document)


def _get_document(txn: Transaction, purpose: str) -> SignedDocument | None:
    row = txn.query_one(
        "SELECT document, fetched_at FROM signed_documents WHERE purpose = ?", (purpose,)
    )
    return None if row is None else SignedDocument(bytes(row[0]), row[1])


def _set_document(txn: WriteTransaction, purpose: str, document: SignedDocument) -> None:
    txn.execute(
        "INSERT INTO signed_documents (purpose, document, fetched_at) VALUES (?, ?, ?)"
        " ON CONFLICT (purpose)"
        " DO UPDATE SET document = excluded.document, fetched_at = excluded.fetched_at",
        (purpose, document.document, document.fetched_at),
    )
