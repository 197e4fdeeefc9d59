"""Converts failures of the media store (a folder or S3, not the database) into Matrix errors, and
logs their causes."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from twisted.logger import Logger

from federation.protocol.errors import MatrixError, StoreFull, StoreUnavailable

_FULL_ERRNOS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = Logger(namespace="homeserver.media")


def media_store_error(error: OSError) -> MatrixError:
    """Log the cause for the operator, and return a Matrix error for the client."""
    if error.errno in _FULL_ERRNOS:
        _log.error("the media store is full: {error}", error=error)
        return StoreFull()
    _log.error("the media store failed: {error}", error=error)
    return StoreUnavailable()


@contextmanager
def convert_store_errors() -> Iterator[None]:
    """Convert OSError into a Matrix error."""
    try:
        yield
    except OSError as error:
        raise media_store_error(error) from error
