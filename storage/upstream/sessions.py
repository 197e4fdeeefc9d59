"""Which sign-in at an identity provider each device was signed in with.

A provider that says when somebody signs out there names the sign-in, or the person for all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from storage.engine.database import Database
from storage.engine.interface import end_of_beginning
from storage.engine.transaction import Transaction, WriteTransaction


class UpstreamSessionRow(msgspec.Struct, frozen=True):
    """A device, and the sign-in at a provider. `session`: the provider's name for it, where it has
    one."""

    user_id: str
    device_id: str
    provider: str
    subject: str
    session: str | None


_COLUMNS = "user_id, device_id, provider, subject, session"


class CameBy(msgspec.Struct, frozen=True):
    """A sign-in at a provider: what of its JSON (`origin`) is looked for."""

    provider: str
    subject: str = ""
    session: str | None = None
    began_ts: int = 0
    """When somebody left for the provider, in milliseconds since 1970; nothing where that is not
    known."""


class SignIns(NamedTuple):
    """A sign-in at a provider by the provider's name for it; or, with `is_beginning`, all whose
    names begin so."""

    provider: str
    session: str
    is_beginning: bool = False

    @property
    def name(self) -> str:
        """As it is kept. Ids of providers have no spaces."""
        return f"{self.provider} {self.session}"

    def where(self) -> tuple[str, tuple[str, ...]]:
        """The condition for a column `sign_in` (see `sign_in_of`), and its values."""
        if self.is_beginning:
            return "sign_in >= ? AND sign_in < ?", (self.name, end_of_beginning(self.name))
        return "sign_in = ?", (self.name,)


def read_origin(origin: str) -> CameBy:
    """Of the JSON of a sign-in at a provider."""
    return msgspec.json.decode(origin, type=CameBy)


def name_person(provider: str, subject: str) -> str:
    """A person of a provider, as they are kept. Ids of providers have no spaces."""
    return f"{provider} {subject}"


def sign_in_of(origin: str | None) -> str | None:
    """By what is found what a sign-in at a provider has given to begin with, of its JSON; None
    where the provider has no name for it."""
    came = None if origin is None else read_origin(origin)
    return (
        None if came is None or came.session is None else SignIns(came.provider, came.session).name
    )


class UpstreamSessionStore:
    """The table of these devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_upstream_session(self, txn: WriteTransaction, row: UpstreamSessionRow) -> None:
        """Note with what a device was signed in; what was noted of it before is forgotten."""
        self.remove_devices(txn, row.user_id, [row.device_id])
        values = (row.user_id, row.device_id, row.provider, row.subject, row.session)
        txn.execute(f"INSERT INTO upstream_sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", values)

    def get_upstream_sessions(
        self, txn: Transaction, provider: str, subject: str | None, session: str | None
    ) -> list[UpstreamSessionRow]:
        """The devices of a sign-in, or of a person; of both where both are said."""
        conditions = ["provider = ?"]
        args = [provider]
        for column, value in (("subject", subject), ("session", session)):
            if value is not None:
                conditions.append(f"{column} = ?")
                args.append(value)
        sql = f"SELECT {_COLUMNS} FROM upstream_sessions WHERE {' AND '.join(conditions)}"
        return [UpstreamSessionRow(*row) for row in txn.query(sql, args)]

    def get_sessions_beginning(
        self, txn: Transaction, provider: str, beginning: str
    ) -> list[UpstreamSessionRow]:
        """The devices of sign-ins whose names begin so; a beginning has letters, digits and
        dots."""
        sql = f"SELECT {_COLUMNS} FROM upstream_sessions WHERE provider = ? AND session >= ? AND session < ?"
        return [
            UpstreamSessionRow(*row)
            for row in txn.query(sql, (provider, beginning, end_of_beginning(beginning)))
        ]

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Forget these devices."""
        txn.execute_many(
            "DELETE FROM upstream_sessions WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )
