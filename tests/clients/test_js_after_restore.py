"""matrix-js-sdk with its Rust crypto after its server was restored from a backup: key backups
continue (`js/restored.mjs`)."""

from tests.helpers.js_scripts import run_script
from tests.helpers.restored_server import Restorable

SECONDS = 600


def test_key_backups_continue(restorable: Restorable) -> None:
    deeds = {"back_up": restorable.back_up, "restore": lambda: restorable.restore(1)}
    run_script("restored.mjs", [restorable.server.url, "js-restored"], SECONDS, [deeds])
