"""The interface of an object store such as S3. Every call blocks, so calls run in threads."""

from pathlib import Path
from typing import Literal, Protocol

import msgspec


class S3Config(msgspec.Struct, frozen=True):
    """The address and credentials of an S3 store. boto3 fills in fields that are None (from the
    environment or the cloud instance)."""

    bucket: str
    endpoint_url: str | None
    region_name: str | None
    access_key_id: str | None
    secret_access_key: str | None
    addressing_style: Literal["auto", "path", "virtual"]
    encryption: Literal["none", "AES256", "aws:kms", "customer"]
    kms_key_id: str | None
    """The key of `aws:kms`; None: that of the bucket."""
    customer_key: bytes | None
    """The 32 bytes of `customer`, which the store does not keep."""
    storage_class: str | None
    connections: int
    """The number of threads that use it."""
    max_silence: float
    """Seconds of silence after which a thread gives up."""


class ObjectStoreFailed(OSError):
    """The store could not be reached, or refused the call. The text tells the operator why."""


class UploadProgress(Protocol):
    """Receives the progress of an upload."""

    def record(self, count: int) -> None:
        """Record that bytes were sent; negative: they are sent again."""

    def expect_silence(self, seconds: float) -> None:
        """Expect that no bytes move for at most `seconds`: all are sent, and the store joins
        them."""


class ObjectStream(Protocol):
    """An object, from an offset to its end."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size`; none at the end. Raises ObjectStoreFailed."""
        ...

    def close(self) -> None:
        """Stop reading."""


class ObjectStore(Protocol):
    """A store of objects. All methods raise ObjectStoreFailed."""

    def put(self, name: str, path: Path, progress: UploadProgress) -> None:
        """Store a file under a name. On return, the object is durable. An error of `progress`
        aborts the upload."""

    def open(self, name: str, offset: int) -> ObjectStream | None:
        """Open an object at an offset; None if it does not exist."""

    def remove(self, name: str, *, is_complete: bool) -> None:
        """Delete an object; an incomplete one with its uploaded parts. A missing object is no
        error."""

    def get_url(self, name: str, type: str, disposition: str) -> str | None:
        """Return a URL where anybody can fetch an object for some minutes, with this type and
        disposition; None if there is none."""
