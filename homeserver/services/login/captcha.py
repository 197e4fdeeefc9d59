"""Captchas: the captcha service or a plug-in verifies the solution.

Laws:
- A solution that cannot be verified, for example while the service is down, is refused.
- The service receives only the solution, and nothing else about the user.

spec: client-server-api#google-recaptcha
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

import msgspec
from twisted.logger import Logger

from federation.http_client.client import WebClient
from federation.http_client.errors import OutboundError
from federation.protocol.errors import CaptchaInvalid, CaptchaNeeded, MatrixError
from homeserver.services.plugins.hooks import Plugins

MAX_SOLUTION_LENGTH: Final = 12_000
"""In characters; solutions of hCaptcha have some thousands."""
TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024
_HEADERS: Final = (
    ("Content-Type", "application/x-www-form-urlencoded"),
    ("Accept", "application/json"),
)


class CaptchaUnavailable(MatrixError):
    """The captcha service cannot be reached or refuses our request."""

    status = 503
    default_text = "The captcha cannot be checked at the moment; try again later"


class _VerifyResponse(msgspec.Struct, rename={"error_codes": "error-codes"}):
    success: bool
    error_codes: Sequence[str] = ()


class CaptchaVerifier:
    """Verifies captcha solutions."""

    log = Logger()

    def __init__(
        self,
        *,
        web: WebClient,
        plugins: Plugins,
        verify_url: str,
        site_key: str,
        secret: str | None,
    ) -> None:
        """`site_key`: the public key with which clients request a captcha.

        `secret`: our private key at `verify_url`; None where plug-ins verify. Raises `ValueError`
        where neither is there.
        """
        if secret is None and not plugins.check_captchas:
            raise ValueError("recaptcha_private_key is needed: no plug-in has `check_captcha`")
        self._web = web
        self._plugins = plugins
        self._verify_url = verify_url
        self._secret = secret
        self.site_key = site_key

    async def check_solution(self, solution: object, address: str) -> None:
        """Verify a solution. `address`: the client's IP address, for plug-ins.

        Raises `CaptchaNeeded`, `CaptchaInvalid`, `CaptchaUnavailable`.
        """
        if not isinstance(solution, str) or not solution:
            raise CaptchaNeeded
        if len(solution) > MAX_SOLUTION_LENGTH or not solution.isascii():
            raise CaptchaInvalid
        is_solved = (
            await self._plugins.check_captcha(solution, address)
            if self._plugins.check_captchas
            else None
        )
        if is_solved is None:
            is_solved = await self._verify_remotely(solution)
        if not is_solved:
            raise CaptchaInvalid

    async def _verify_remotely(self, solution: str) -> bool:
        if self._secret is None:
            return False
        form = urlencode({"secret": self._secret, "response": solution}).encode()
        try:
            response = await self._web.request(
                "POST",
                self._verify_url,
                _HEADERS,
                form,
                seconds=TIMEOUT_SECONDS,
                max_bytes=MAX_BYTES,
                only_https=True,
            )
            if response.status != HTTPStatus.OK:
                raise OutboundError(f"status {response.status}")
            verify_response = msgspec.json.decode(response.body, type=_VerifyResponse)
        except (OutboundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.log.error(
                "captcha solutions cannot be verified at {url}: {why}",
                url=self._verify_url,
                why=str(error),
            )
            raise CaptchaUnavailable from None
        if not verify_response.success and any(
            "secret" in code for code in verify_response.error_codes
        ):
            self.log.error("{url} refuses recaptcha_private_key", url=self._verify_url)
            raise CaptchaUnavailable
        return verify_response.success
