"""A mail server of the tests' own on this machine.

with mail_server(handler) as port:
    …  # `handler` hears what aiosmtpd tells: `handle_DATA` and the like
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiosmtpd.controller import Controller

from tests.helpers.ports import free_port

SECONDS_TO_START: Final = 180.0


@contextmanager
def mail_server(handler: object, **options: Any) -> Iterator[int]:
    """Start a mail server, and stop it at the end; yields its port. `options`: passed to
    aiosmtpd."""
    port = free_port()
    controller = Controller(
        handler, hostname="127.0.0.1", port=port, ready_timeout=SECONDS_TO_START, **options
    )
    controller.start()
    try:
        yield port
    finally:
        controller.stop()
