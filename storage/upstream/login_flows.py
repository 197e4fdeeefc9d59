"""Pending sign-ins at identity providers (flows), used SAML assertions and used logout tokens.

Laws:
- A flow belongs to one browser and to one step of the sign-in, and expires after some minutes. The
  next step removes it, so it is used once.
- After the user has signed in at the provider, a flow may wait for further steps at this server. If
  the session at the provider ends meanwhile, the flow is removed.
- An assertion or a logout token that one node has accepted is refused by all nodes from then on.
"""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.upstream.ended_sessions import is_ended
from storage.upstream.sessions import ProviderSessions, parse_origin, upstream_key, user_key


class UpstreamFlowRow(msgspec.Struct, frozen=True):
    """A flow. `content` is the service's JSON. Times are milliseconds since 1970."""

    flow_id: str
    step: str
    browser_hash: bytes
    expires_ts: int
    content: str


_COLUMNS = "flow_id, step, browser_hash, expires_ts, content"


class UpstreamFlowStore:
    """The tables of flows, assertions and logout tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_flow(self, row: UpstreamFlowRow, origin: str | None = None) -> bool:
        """Add a flow. `origin`: JSON of its sign-in at the provider, once the user is identified.
        Return False if that sign-in has ended."""

        def write(txn: WriteTransaction) -> bool:
            if is_ended(txn, origin):
                return False
            sign_in = None if origin is None else parse_origin(origin)
            person = None if sign_in is None else user_key(sign_in.provider, sign_in.subject)
            values = (
                row.flow_id,
                row.step,
                row.browser_hash,
                row.expires_ts,
                row.content,
                upstream_key(origin),
                person,
            )
            txn.execute(
                f"INSERT INTO upstream_flows ({_COLUMNS}, upstream_key, user_key)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            return True

        return await self._database.write("add_upstream_flow", write)

    def remove_provider_sessions(self, txn: WriteTransaction, sign_ins: ProviderSessions) -> None:
        """Remove the flows of these sign-ins."""
        condition, values = sign_ins.where()
        txn.execute(f"DELETE FROM upstream_flows WHERE {condition}", values)

    def remove_person(self, txn: WriteTransaction, provider: str, subject: str) -> None:
        """Remove the flows of an identified person, with or without an account."""
        txn.execute("DELETE FROM upstream_flows WHERE user_key = ?", (user_key(provider, subject),))

    async def remove_browser(self, browser_hash: bytes) -> None:
        """Remove all flows of a browser."""

        def write(txn: WriteTransaction) -> None:
            txn.execute("DELETE FROM upstream_flows WHERE browser_hash = ?", (browser_hash,))

        await self._database.write("remove_upstream_flows", write)

    async def take_flow(
        self, flow_id: str, step: str, browser_hash: bytes | None, now: int
    ) -> UpstreamFlowRow | None:
        """Remove and return a flow; None if there is none at this step for this browser, or it has
        expired. Without `browser_hash`, for any browser. An invented ID costs a read, but no
        write."""

        def read(txn: Transaction) -> UpstreamFlowRow | None:
            found = txn.query_one(
                f"SELECT {_COLUMNS} FROM upstream_flows WHERE flow_id = ?", (flow_id,)
            )
            return (
                None
                if found is None
                else UpstreamFlowRow(found[0], found[1], bytes(found[2]), *found[3:])
            )

        row = await self._database.read_quickly("get_upstream_flow", read)
        if row is None or row.step != step or row.expires_ts <= now:
            return None
        if browser_hash is not None and row.browser_hash != browser_hash:
            return None

        def write(txn: WriteTransaction) -> bool:
            return bool(txn.execute("DELETE FROM upstream_flows WHERE flow_id = ?", (flow_id,)))

        return row if await self._database.write("take_upstream_flow", write) else None

    async def add_used_assertion(self, assertion_id: str, expires_ts: int) -> bool:
        """Record that an assertion is used; False if it was used before."""
        return await self._database.write(
            "add_used_assertion", self.take_assertion, assertion_id, expires_ts
        )

    def take_assertion(self, txn: WriteTransaction, assertion_id: str, expires_ts: int) -> bool:
        """Do `add_used_assertion` in a transaction."""
        sql = (
            "INSERT INTO used_saml_assertions (assertion_id, expires_ts) VALUES (?, ?)"
            " ON CONFLICT DO NOTHING"
        )
        return bool(txn.execute(sql, (assertion_id, expires_ts)))

    async def remove_old(self, now: int, limit: int) -> int:
        """Remove up to `limit` expired flows and as many expired assertions; return how many, at
        most `limit`."""

        def write(txn: WriteTransaction) -> int:
            flows = txn.execute(
                "DELETE FROM upstream_flows WHERE flow_id IN"
                " (SELECT flow_id FROM upstream_flows WHERE expires_ts <= ? LIMIT ?)",
                (now, limit),
            )
            assertions = txn.execute(
                "DELETE FROM used_saml_assertions WHERE assertion_id IN"
                " (SELECT assertion_id FROM used_saml_assertions WHERE expires_ts <= ? LIMIT ?)",
                (now, limit),
            )
            return min(limit, flows + assertions)

        return await self._database.write("remove_old_upstream_flows", write)


def take_logout_token(txn: WriteTransaction, digest: bytes, until: int, now: int) -> bool:
    """Record that a token is used in this write; False if it was used before. `until`: when the
    token is too old anyway, and its row is removed; both in milliseconds since 1970."""
    txn.execute("DELETE FROM used_logout_tokens WHERE expires_ts <= ?", (now,))
    sql = (
        "INSERT INTO used_logout_tokens (digest, expires_ts) VALUES (?, ?)"
        " ON CONFLICT (digest) DO NOTHING"
    )
    return txn.execute(sql, (digest, until)) > 0
