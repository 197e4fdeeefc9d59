"""What accounts that were closed long ago have left behind, and an upgrade removes."""

from pathlib import Path

from storage.engine.interface import Engine
from tests.helpers.databases import database_before


def test_keys_and_signatures(engine: Engine, tmp_path: Path) -> None:
    is_open, closed = "@open:t", "@closed:t"
    with database_before(engine, tmp_path, 121) as writer:
        for user, other, closed_ts in ((is_open, closed, None), (closed, is_open, 7)):
            writer.execute(
                "INSERT INTO accounts (user_id, created_ts, position, deactivated_ts) VALUES (?, 1, 1, ?)",
                (user, closed_ts),
            )
            writer.execute(
                "INSERT INTO cross_signing_keys VALUES (?, 'master', ?, ?)", (user, user, b"{}")
            )
            for target in (user, other):
                writer.execute(
                    "INSERT INTO key_signatures VALUES (?, 'K', ?, 'ed25519:K', '')", (target, user)
                )
            writer.execute("INSERT INTO user_signature_positions VALUES (?, ?, 1)", (user, other))
    reader = engine.connect_reader()
    try:
        for table in ("key_signatures", "user_signature_positions"):
            assert reader.query(f"SELECT DISTINCT signer_user_id FROM {table}", ()) == [
                (is_open,)
            ], table
        assert reader.query("SELECT user_id FROM cross_signing_keys", ()) == [(is_open,)]
        signed = reader.query("SELECT target_user_id FROM key_signatures ORDER BY 1", ())
        assert signed == [(closed,), (is_open,)], "what others have signed is theirs"
    finally:
        reader.close()
