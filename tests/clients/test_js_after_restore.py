"""matrix-js-sdk with its Rust crypto after its server was restored from a backup: key backups
continue (`js/restored.mjs`)."""

from tests.helpers.restorable import Restorable
from tests.helpers.stories import tell

SECONDS = 600


def test_key_backups_continue(restorable: Restorable) -> None:
    deeds = {"back_up": restorable.back_up, "restore": lambda: restorable.restore(1)}
    tell("restored.mjs", [restorable.server.url, "js-restored"], SECONDS, [deeds])
