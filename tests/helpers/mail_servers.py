"""Runs an SMTP server on loopback.

with mail_server(handler) as port:
    …  # `handler` has the hooks of aiosmtpd, such as `handle_DATA`
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiosmtpd.controller import Controller

from tests.helpers.ports import free_port

SECONDS_TO_START: Final = 180.0


@contextmanager
def mail_server(handler: object, **options: Any) -> Iterator[int]:
    """Run a mail server while the context is open. Yields its port. `options` go to aiosmtpd."""
    port = free_port()
    controller = Controller(
        handler, hostname="127.0.0.1", port=port, ready_timeout=SECONDS_TO_START, **options
    )
    controller.start()
    try:
        yield port
    finally:
        controller.stop()
