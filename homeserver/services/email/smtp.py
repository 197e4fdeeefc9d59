"""Sends e-mails to the configured SMTP server: one connection for each e-mail, with the standard
library, in a thread."""

import smtplib
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

SECONDS: Final = 30
"""Timeout of each step of the SMTP session."""


class DeliveryFailed(Exception):
    """The server did not accept an e-mail. `permanent`: the rejection is permanent."""

    def __init__(self, text: str, *, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent


class Relay(Protocol):
    """Accepts e-mails for delivery."""

    def deliver(self, sender: str, recipient: str, message: bytes) -> None:
        """Deliver an e-mail. Blocks. Raises `DeliveryFailed`."""
        ...


class SMTPRelay(msgspec.Struct, frozen=True):
    """The configured mail server."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    implicit_tls: bool = False
    """Implicit TLS, as on port 465; otherwise STARTTLS if the server offers it."""
    tls_required: bool = False
    starttls_enabled: bool = True
    """Whether STARTTLS is used at all."""
    tls_name: str | None = None
    """The name in the server's certificate, if it is not `host`."""

    def deliver(self, sender: str, recipient: str, message: bytes) -> None:
        """Implement `Relay.deliver`."""
        try:
            with self._connect() as connection:
                if self.user is not None:
                    connection.login(_InUtf8(self.user), _InUtf8(self.password or ""))
                connection.sendmail(sender, [recipient], message)
        except smtplib.SMTPRecipientsRefused as error:
            code, text = error.recipients[recipient]
            raise DeliveryFailed(f"{code} {text!a}", permanent=500 <= code < 600) from error
        except smtplib.SMTPDataError as error:
            raise DeliveryFailed(str(error), permanent=500 <= error.smtp_code < 600) from error
        except (OSError, smtplib.SMTPException, UnicodeError) as error:
            # a fault of the relay or of our account there: keep the e-mail until that is fixed
            raise DeliveryFailed(f"{type(error).__name__}: {error}", permanent=False) from error

    def _connect(self) -> "_Connection":
        if self.implicit_tls:
            return _TLSConnection(self)
        connection = _PlainConnection(self.host, self.port, timeout=SECONDS)
        try:
            connection.ehlo()
            if connection.has_extn("starttls") and self.starttls_enabled:
                connection.tls_name = self.tls_name
                connection.starttls(context=ssl.create_default_context())
                connection.ehlo()
            elif self.tls_required:
                raise smtplib.SMTPException(
                    f"{self.host} offers no STARTTLS, which require_transport_security demands"
                )
        except BaseException:
            connection.close()
            raise
        return connection


class _InUtf8(str):
    """A user name or password that the library would encode as ASCII. spec: RFC 4616 section 2"""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("utf-8", errors)


class _Connection(smtplib.SMTP):
    """Accepts user names and passwords that are not ASCII."""

    def auth(
        self, mechanism: str, authobject: Callable[..., Any], *, initial_response_ok: bool = True
    ) -> tuple[int, bytes]:
        def response(challenge: bytes | None = None) -> Any:
            text = authobject(challenge)
            return None if text is None else _InUtf8(text)

        return super().auth(mechanism, response, initial_response_ok=initial_response_ok)


class _PlainConnection(_Connection):
    """Expects the configured name in the certificate."""

    tls_name: str | None = None

    def starttls(  # type: ignore[override]
        self, *, context: ssl.SSLContext | None = None
    ) -> tuple[int, bytes]:
        if self.tls_name is not None:
            self._host = self.tls_name
        return super().starttls(context=context)


class _TLSConnection(_Connection, smtplib.SMTP_SSL):
    """Uses implicit TLS and expects the configured name in the certificate."""

    def __init__(self, relay: SMTPRelay) -> None:
        self._expected = relay.tls_name or relay.host
        super().__init__(
            relay.host, relay.port, timeout=SECONDS, context=ssl.create_default_context()
        )

    def _get_socket(self, host: str, port: int, timeout: float) -> ssl.SSLSocket:
        plain = smtplib.SMTP._get_socket(self, host, port, timeout)  # type: ignore[attr-defined]
        return self.context.wrap_socket(plain, server_hostname=self._expected)
