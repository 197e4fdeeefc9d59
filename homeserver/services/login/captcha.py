"""Riddles that people solve and programs do not: is a solution right? Whoever made the riddle says
so, or a plug-in.

Laws:
- A solution that cannot be checked counts for nothing: while nobody answers, nobody passes.
- The one who is asked hears nothing of the person but the solution.

spec: client-server-api#google-recaptcha
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

import msgspec
from twisted.logger import Logger

from federation.http_client.client import Web
from federation.http_client.errors import OutboundError
from federation.protocol.errors import CaptchaInvalid, CaptchaNeeded, MatrixError
from homeserver.services.plugins.hooks import Plugins

LONGEST_SOLUTION: Final = 12_000
"""Characters; those of hCaptcha have some thousands."""
SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024
_HEADERS: Final = (
    ("Content-Type", "application/x-www-form-urlencoded"),
    ("Accept", "application/json"),
)


class CaptchaUnavailable(MatrixError):
    """Nobody says whether a solution is right."""

    status = 503
    default_text = "The captcha cannot be checked at the moment; try again later"


class _Verdict(msgspec.Struct, rename={"error_codes": "error-codes"}):
    success: bool
    error_codes: Sequence[str] = ()


class Captcha:
    """Checks solutions."""

    log = Logger()

    def __init__(
        self, web: Web, plugins: Plugins, *, verify_url: str, site_key: str, secret: str | None
    ) -> None:
        """`site_key`: what riddles are asked for with. `secret`: our key towards `verify_url`, None
        where plug-ins check. Raises `ValueError` where nobody does."""
        if secret is None and not plugins.check_captchas:
            raise ValueError("recaptcha_private_key is needed: no plug-in has `check_captcha`")
        self._web = web
        self._plugins = plugins
        self._verify_url = verify_url
        self._secret = secret
        self.site_key = site_key

    async def check(self, solution: object, address: str) -> None:
        """Raises `CaptchaNeeded`, `CaptchaInvalid`, `CaptchaUnavailable`. `address`: where the
        person is, for plug-ins."""
        if not isinstance(solution, str) or not solution:
            raise CaptchaNeeded
        if len(solution) > LONGEST_SOLUTION or not solution.isascii():
            raise CaptchaInvalid
        right = (
            await self._plugins.check_captcha(solution, address)
            if self._plugins.check_captchas
            else None
        )
        if right is None:
            right = await self._ask(solution)
        if not right:
            raise CaptchaInvalid

    async def _ask(self, solution: str) -> bool:
        if self._secret is None:
            return False
        form = urlencode({"secret": self._secret, "response": solution}).encode()
        try:
            answer = await self._web.request(
                "POST",
                self._verify_url,
                _HEADERS,
                form,
                seconds=SECONDS,
                max_bytes=MAX_BYTES,
                only_https=True,
            )
            if answer.status != HTTPStatus.OK:
                raise OutboundError(f"it answers {answer.status}")
            verdict = msgspec.json.decode(answer.body, type=_Verdict)
        except (OutboundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.log.error(
                "solutions cannot be checked at {url}: {why}", url=self._verify_url, why=str(error)
            )
            raise CaptchaUnavailable from None
        if not verdict.success and any("secret" in code for code in verdict.error_codes):
            self.log.error("{url} does not take recaptcha_private_key", url=self._verify_url)
            raise CaptchaUnavailable
        return verdict.success
