"""What people are told when the disk, or the object store, cannot keep or give what they want."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from twisted.logger import Logger

from federation.protocol.errors import MatrixError, StoreFull, StoreUnavailable

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = Logger(namespace="homeserver.media")


def store_error(error: OSError) -> MatrixError:
    """A refusal in place of this error, of which the operator reads in the log."""
    if error.errno in _FULL:
        _log.error("there is no room for files: {error}", error=error)
        return StoreFull()
    _log.error("the store of files failed: {error}", error=error)
    return StoreUnavailable()


@contextmanager
def telling_of_the_store() -> Iterator[None]:
    """Turns OSError into that."""
    try:
        yield
    except OSError as error:
        raise store_error(error) from error
