"""Options about text messages: the gateway that sends them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from homeserver.config.option import JSON, Duration, Secret, option, section

FORBIDDEN_HEADERS = frozenset(
    {"content-type", "content-length", "host", "connection", "transfer-encoding"}
)


def _check_url(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return "must be an https:// address"
    if (
        parts.scheme != "https"
        or not parts.hostname
        or parts.username is not None
        or not url.isascii()
        or " " in url
    ):
        return "must be an https:// address"
    return None


def _check_headers(headers: Mapping[str, str]) -> str | None:
    for name, value in headers.items():
        if (
            not name.replace("-", "").isalnum()
            or not name.isascii()
            or name.lower() in FORBIDDEN_HEADERS
        ):
            return (
                f"must have valid header names as keys, not {name!r}; "
                "headers of the request itself cannot be set"
            )
        if not value.isascii() or not value.isprintable():
            return f"must have one line of ASCII for {name}"
    return None


def join_texts(template: object) -> str:
    """Join all texts of a template."""
    match template:
        case str():
            return template
        case Mapping():
            return " ".join(join_texts(value) for value in template.values())
        case list() | tuple():
            return " ".join(join_texts(value) for value in template)
        case _:
            return ""


def _check_body(body: Mapping[str, JSON]) -> str | None:
    texts = join_texts(body)
    missing = [placeholder for placeholder in ("{number}", "{text}") if placeholder not in texts]
    return f"must contain {' and '.join(missing)}" if missing else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SMSGatewayOptions:
    """The gateway that sends text messages. With one, users may add phone numbers to their
    accounts."""

    url: str | None = option(
        None,
        "The URL to which a `POST` sends a message. Any status from 200 to 299 means success. "
        "`null`: without a plug-in (`send_text_message`), the server sends no messages and "
        "accepts no telephone numbers. A gateway in a denied range (`ip_range_blacklist`) must "
        "be in `ip_range_whitelist`.",
        example="https://sms.example.org/send",
        check=_check_url,
    )
    token: Secret | None = option(None, "The token for the header `Authorization: Bearer …`.")
    headers: Mapping[str, Secret] = option(
        {}, "Additional headers.", example='{"X-Api-Key": "a long text"}', check=_check_headers
    )
    format: Literal["json", "form"] = option("json", "The format of the body.")
    body: Mapping[str, JSON] = option(
        {"to": "+{number}", "from": "{sender}", "text": "{text}"},
        "The body. `{number}` stands for the digits of the number, beginning with the country "
        "code, `{text}` for the message, `{sender}` for `sender`, `{id}` for a new random id of "
        "24 characters.",
        example=(
            '{"messages": [{"recipient": "{number}", "message-id": "{id}", "sms": {"content": '
            '{"text": "{text}"}}}]}'
        ),
        check=_check_body,
    )
    sender: str = option("", "The sender of messages, as the gateway expects it.")
    code_lifetime: Duration = option(
        Duration(600_000),
        "How long a code is valid, and how long a confirmed number can be used.",
        minimum=60_000,
        maximum=3_600_000,
        example="10m",
    )
    max_per_day: int = option(
        200,
        "How many messages are sent per day (UTC) in total, to limit the cost.",
        minimum=1,
        formerly="most_per_day",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMessageOptions:
    """Text messages."""

    sms_gateway: SMSGatewayOptions = section(SMSGatewayOptions, "Sending text messages.")
    disable_msisdn_registration: bool = option(
        False, "Disables the confirmation of telephone numbers at registration."
    )
