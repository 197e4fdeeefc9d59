"""Logout tokens of OpenID providers that were carried out: each counts once, on whichever node."""

from storage.engine.transaction import WriteTransaction


def take_logout_token(txn: WriteTransaction, digest: bytes, until: int, now: int) -> bool:
    """Note that a token is carried out in this write; False where one was already. `until`: when it
    would be refused anyway, and is forgotten; both in milliseconds since 1970."""
    txn.execute("DELETE FROM taken_logout_tokens WHERE until_ts <= ?", (now,))
    sql = "INSERT INTO taken_logout_tokens (digest, until_ts) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING"
    return txn.execute(sql, (digest, until)) > 0
