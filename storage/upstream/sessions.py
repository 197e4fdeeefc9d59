"""For each device that signed in through an identity provider: the session at that provider.

A provider's logout request names a session, a subject (all sessions of that subject), or both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from storage.engine.database import Database
from storage.engine.interface import get_prefix_end
from storage.engine.transaction import Transaction, WriteTransaction


class UpstreamSessionRow(msgspec.Struct, frozen=True):
    """A device and its sign-in at a provider. `session_id`: the provider's name for the session, if
    it has one."""

    user_id: str
    device_id: str
    provider: str
    subject: str
    session_id: str | None


_COLUMNS = "user_id, device_id, provider, subject, session_id"


class StoredProviderSignIn(msgspec.Struct, frozen=True):
    """The fields of a sign-in's JSON (`origin`) that lookups use."""

    provider: str
    subject: str = ""
    session: str | None = None
    began_ts: int = 0
    """Start of the sign-in, in milliseconds since 1970; 0: unknown."""


class ProviderSessions(NamedTuple):
    """A session by the provider's name for it. With `is_prefix`: all sessions whose names have this
    prefix."""

    provider: str
    session: str
    is_prefix: bool = False

    @property
    def key(self) -> str:
        """The stored text. Provider IDs have no spaces."""
        return f"{self.provider} {self.session}"

    def where(self) -> tuple[str, tuple[str, ...]]:
        """Return the SQL condition on the column `upstream_key`, and its values."""
        if self.is_prefix:
            return "upstream_key >= ? AND upstream_key < ?", (self.key, get_prefix_end(self.key))
        return "upstream_key = ?", (self.key,)


def parse_origin(origin: str) -> StoredProviderSignIn:
    """Parse the JSON of a sign-in."""
    return msgspec.json.decode(origin, type=StoredProviderSignIn)


def user_key(provider: str, subject: str) -> str:
    """Return the stored text for a person of a provider. Provider IDs have no spaces."""
    return f"{provider} {subject}"


def upstream_key(origin: str | None) -> str | None:
    """Return the value of the column `upstream_key` for a sign-in, from its JSON; None if the
    provider has no name for the session."""
    sign_in = None if origin is None else parse_origin(origin)
    if sign_in is None or sign_in.session is None:
        return None
    return ProviderSessions(sign_in.provider, sign_in.session).key


class UpstreamSessionStore:
    """The table of devices with an upstream session."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_upstream_session(self, txn: WriteTransaction, row: UpstreamSessionRow) -> None:
        """Store the session of a device, replacing an earlier one."""
        self.remove_devices(txn, row.user_id, [row.device_id])
        values = (row.user_id, row.device_id, row.provider, row.subject, row.session_id)
        txn.execute(f"INSERT INTO upstream_sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", values)

    def get_upstream_sessions(
        self, txn: Transaction, provider: str, subject: str | None, session: str | None
    ) -> list[UpstreamSessionRow]:
        """Return the devices of a session, or of a person; of both if both are given."""
        conditions = ["provider = ?"]
        args = [provider]
        for column, value in (("subject", subject), ("session_id", session)):
            if value is not None:
                conditions.append(f"{column} = ?")
                args.append(value)
        sql = f"SELECT {_COLUMNS} FROM upstream_sessions WHERE {' AND '.join(conditions)}"
        return [UpstreamSessionRow(*row) for row in txn.query(sql, args)]

    def get_sessions_by_prefix(
        self, txn: Transaction, provider: str, beginning: str
    ) -> list[UpstreamSessionRow]:
        """Return the devices of sessions with this prefix (ASCII alphanumerics and dots)."""
        sql = (
            f"SELECT {_COLUMNS} FROM upstream_sessions"
            " WHERE provider = ? AND session_id >= ? AND session_id < ?"
        )
        return [
            UpstreamSessionRow(*row)
            for row in txn.query(sql, (provider, beginning, get_prefix_end(beginning)))
        ]

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove these devices."""
        txn.execute_many(
            "DELETE FROM upstream_sessions WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )
