"""A plug-in that sends text messages by the modem of the institution: it leaves them in the folder
of SMS Server Tools, which sends what it finds there."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from homeserver.services.plugins.hooks import hookimpl


class SpooledMessages:
    """`folder`: where outgoing messages are left, such as `/var/spool/sms/outgoing`."""

    def __init__(self, config: dict[str, object]) -> None:
        self._folder = Path(str(config["folder"]))

    @hookimpl
    def send_text_message(self, number: str, text: str) -> bool | None:
        message = f"To: {number}\nAlphabet: UCS\n\n".encode() + text.encode("utf-16-be")
        # under a name that is not looked at, until it is whole
        with NamedTemporaryFile(dir=self._folder, suffix=".LOCK", delete=False) as file:
            file.write(message)
        os.chmod(file.name, 0o640)
        os.rename(file.name, file.name.removesuffix(".LOCK"))
        return True
