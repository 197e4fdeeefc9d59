"""Stores used logout tokens of OpenID providers, so that each is used once on all nodes."""

from storage.engine.transaction import WriteTransaction


def take_logout_token(txn: WriteTransaction, digest: bytes, until: int, now: int) -> bool:
    """Record that a token is used in this write; False if it was used before. `until`: when the
    token is too old anyway, and its row is removed; both in milliseconds since 1970."""
    txn.execute("DELETE FROM taken_logout_tokens WHERE until_ts <= ?", (now,))
    sql = (
        "INSERT INTO taken_logout_tokens (digest, until_ts) VALUES (?, ?)"
        " ON CONFLICT (digest) DO NOTHING"
    )
    return txn.execute(sql, (digest, until)) > 0
