"""What a store of objects can do, such as S3. Every call waits, so it belongs to a thread."""

from pathlib import Path
from typing import Literal, Protocol

import msgspec


class S3Config(msgspec.Struct, frozen=True):
    """Where a store that speaks S3 is. What is None is as boto3 finds it (environment,
    instance)."""

    bucket: str
    endpoint_url: str | None
    region_name: str | None
    access_key_id: str | None
    secret_access_key: str | None
    addressing_style: Literal["auto", "path", "virtual"]
    encryption: Literal["none", "AES256", "aws:kms", "customer"]
    kms_key_id: str | None
    """The key of `aws:kms`; None: the bucket's."""
    customer_key: bytes | None
    """The 32 bytes of `customer`, which the store does not keep."""
    storage_class: str | None
    connections: int
    """How many threads use it."""
    patience: float
    """After so many seconds of silence a thread gives up at the latest."""


class ObjectStoreFailed(OSError):
    """The store could not be reached, or refused. The text says why, for the operator."""


class Progress(Protocol):
    """Hears how writing an object goes."""

    def note(self, count: int) -> None:
        """So many bytes have gone; fewer than none: those go again."""

    def expect_silence(self, seconds: float) -> None:
        """From now on none move, for so long at most: all are there, and the store joins them."""


class ObjectStream(Protocol):
    """An object, from somewhere in it to its end."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most so many; none at the end. Raises ObjectStoreFailed."""
        ...

    def close(self) -> None:
        """Read no more."""


class ObjectStore(Protocol):
    """A store of objects. All of it raises ObjectStoreFailed."""

    def put(self, name: str, path: Path, progress: Progress) -> None:
        """Keep a file under a name. When it returns, the object is durable. What `progress` raises
        ends the writing."""

    def open(self, name: str, offset: int) -> ObjectStream | None:
        """An object from there on; None when there is none."""

    def remove(self, name: str, *, is_whole: bool) -> None:
        """Take away an object; one that is not whole, with the parts that have come. That it is not
        there is no error."""

    def address(self, name: str, type: str, disposition: str) -> str | None:
        """Where anybody may fetch an object for some minutes, told this type and disposition; None
        if nowhere."""
