"""matrix-js-sdk with its Rust crypto, whose server is restored from a backup: backups of room keys
go on as `js/restored.mjs` tells it."""

from tests.helpers.restorable import Restorable
from tests.helpers.stories import tell

SECONDS = 600


def test_backups_of_room_keys_go_on(restorable: Restorable) -> None:
    deeds = {"back_up": restorable.back_up, "restore": lambda: restorable.restore(1)}
    tell("restored.mjs", [restorable.server.url, "js-restored"], SECONDS, [deeds])
