"""Text messages (SMS), sent by the configured gateway or a plug-in.

Laws:
- The gateway receives a number and a text, and nothing else about the person.
- A failed message is not retried: the user can request another one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal
from urllib.parse import urlencode

import msgspec
from twisted.logger import Logger

from federation.http_client.client import WebClient
from federation.http_client.errors import OutboundError
from federation.protocol.errors import MatrixError
from homeserver.services.plugins.hooks import Plugins
from homeserver.services.tokens.secret_tokens import SecretGenerator

TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024
_PLACEHOLDER: Final = re.compile(r"\{(number|text|sender|id)\}")
_CONTENT_TYPES: Final = {"json": "application/json", "form": "application/x-www-form-urlencoded"}


class MessageNotSent(MatrixError):
    """Neither the gateway nor a plug-in accepts the message at the moment."""

    status = 503
    default_text = "The text message could not be sent; try again later"


class SMSGatewayRequest(msgspec.Struct, frozen=True):
    """The HTTP request with which a gateway sends a message."""

    url: str
    headers: Sequence[tuple[str, str]]
    format: Literal["json", "form"]
    body: Mapping[str, object]
    """A template with the placeholders `{number}`, `{text}`, `{sender}` and `{id}`."""
    sender: str


class TextMessageSender:
    """Sends text messages."""

    _log = Logger()

    def __init__(
        self,
        *,
        web: WebClient,
        plugins: Plugins,
        secret_text: SecretGenerator,
        gateway: SMSGatewayRequest | None,
    ) -> None:
        """`gateway`: None where only plug-ins send."""
        self._web = web
        self._plugins = plugins
        self._secret_text = secret_text
        self._gateway = gateway

    @property
    def is_enabled(self) -> bool:
        """Whether a gateway or a plug-in sends messages."""
        return self._gateway is not None or self._plugins.send_text_messages

    async def send(self, number: str, text: str) -> None:
        """Send a message. `number`: the digits of E.164. Raises `MessageNotSent`."""
        if self._plugins.send_text_messages and await self._plugins.send_text_message(number, text):
            return
        if self._gateway is None:
            raise MessageNotSent
        blanks = {
            "number": number,
            "text": text,
            "sender": self._gateway.sender,
            "id": self._secret_text.session_id(),
        }
        body = fill_template(self._gateway.body, blanks)
        if self._gateway.format == "json" or not isinstance(body, dict):
            data = msgspec.json.encode(body)
        else:
            data = urlencode(body).encode()
        headers = (("Content-Type", _CONTENT_TYPES[self._gateway.format]), *self._gateway.headers)
        try:
            response = await self._web.request(
                "POST",
                self._gateway.url,
                headers,
                data,
                seconds=TIMEOUT_SECONDS,
                max_bytes=MAX_BYTES,
                only_https=True,
            )
        except OutboundError as error:
            self._log.error("the SMS gateway cannot be reached: {why}", why=str(error))
            raise MessageNotSent from None
        if not 200 <= response.status < 300:
            self._log.error("the SMS gateway responds with status {status}", status=response.status)
            raise MessageNotSent


def fill_template(template: object, blanks: Mapping[str, str]) -> object:
    """Return the template with its placeholders replaced; `blanks` holds all values by name."""
    match template:
        case str():
            return _PLACEHOLDER.sub(lambda found: blanks[found[1]], template)
        case Mapping():
            return {name: fill_template(value, blanks) for name, value in template.items()}
        case list() | tuple():
            return [fill_template(value, blanks) for value in template]
        case _:
            return template
