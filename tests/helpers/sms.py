"""An in-memory SMS gateway."""

import re
from collections.abc import Sequence

import msgspec

from federation.http_client.body import TakeBody
from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError


class SMSGateway:
    """Stores the messages it receives. If `failure` is set, answers with that status instead."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 202
        self.is_away = False

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
        take: TakeBody | None = None,
    ) -> WebResponse:
        assert (method, redirects, only_https) == ("POST", 0, True)
        assert seconds <= 10
        assert max_bytes <= 1 << 16
        if self.is_away:
            raise OutboundError("the host is unreachable")
        self.requests.append((url, dict(headers), body))
        return WebResponse(url, self.status, {}, b"")

    @property
    def last(self) -> dict[str, str]:
        message: dict[str, str] = msgspec.json.decode(self.requests[-1][2])
        return message

    @property
    def code(self) -> str:
        return str(re.findall(r"\b\d{6}\b", self.last["text"])[0])
