"""Checks the captcha of an institution's own page.

The page signs, with a key that both have, that somebody solved its captcha. A solution is
`end.nonce.signature`: valid once, until `end` (seconds since 1970).
"""

import hmac
import time

from homeserver.services.plugins.hooks import hookimpl


class OwnCaptcha:
    """`key`: the key with which the page signs."""

    def __init__(self, config: dict[str, object]) -> None:
        self._key = str(config["key"]).encode()
        self._used: dict[str, float] = {}

    @hookimpl
    def check_captcha(self, solution: str, address: str) -> bool | None:
        signed, _, signature = solution.rpartition(".")
        end = signed.partition(".")[0]
        right = hmac.new(self._key, signed.encode(), "sha256").hexdigest()
        if not hmac.compare_digest(signature.encode(), right.encode()) or float(end) <= time.time():
            return False
        if signed in self._used:
            return False
        self._used = {each: until for each, until in self._used.items() if until > time.time()} | {
            signed: float(end)
        }
        return True
