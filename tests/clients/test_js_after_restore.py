"""matrix-js-sdk with its Rust crypto after its server was restored from a backup: key backups
continue (`js/key_backup_after_restore.mjs`)."""

from tests.helpers.js_scripts import run_script
from tests.helpers.restored_server import Restorable

SECONDS = 600


def test_key_backups_continue(restorable: Restorable) -> None:
    actions = {"back_up": restorable.back_up, "restore": lambda: restorable.restore(1)}
    arguments = [restorable.server.url, "js-restored"]
    run_script("key_backup_after_restore.mjs", arguments, SECONDS, [actions])
