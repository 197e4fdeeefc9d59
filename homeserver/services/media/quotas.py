"""Upload quotas: bytes of a user per period and in total, and the size of one file by its type.

All are checked before the server starts to store a file, so that a refusal costs little. The quotas
per period and in total are checked again in the write that stores the file, because the same user
may upload several files at once.
"""

from collections.abc import Mapping, Sequence

import msgspec

from federation.protocol.errors import TooLarge, UserLimitExceeded
from federation.protocol.ids import UserID
from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.media.media import MediaStore


class UploadQuota(msgspec.Struct, frozen=True):
    """A number of bytes per period."""

    period_ms: int
    size: int


class UploadQuotas:
    """Refuses uploads that exceed a quota."""

    def __init__(
        self,
        *,
        database: Database,
        store: MediaStore,
        quotas: Sequence[UploadQuota],
        total: int | None,
        by_type: Mapping[str, int],
        info_uri: str,
    ) -> None:
        """`total`: bytes that a user may have in total. `by_type`: the largest file by type, or by
        its first half (`video/*`).

        `info_uri`: a page about these limits.
        """
        self._database = database
        self._store = store
        self._allowances = tuple(quotas)
        self._total = total
        self._by_type = {type.lower(): size for type, size in by_type.items()}
        self._info_uri = info_uri

    async def check_upload(self, user_id: UserID, type: str, size: int, now_ms: int) -> None:
        """Raises TooLarge, UserLimitExceeded."""
        kind = type.partition(";")[0].strip().lower()
        limit = self._by_type.get(kind, self._by_type.get(f"{kind.partition('/')[0]}/*"))
        if limit is not None and size > limit:
            raise TooLarge(f"Files of the type {kind} may have at most {_format_size(limit)}")
        if self._allowances or self._total is not None:
            await self._database.read("check_media_quotas", self.check_in, user_id, size, now_ms)

    def check_in(self, txn: Transaction, user_id: UserID, size: int, now_ms: int) -> None:
        """Check, in a transaction, the quotas that count all files of the user. Raises what
        `check_upload` raises."""
        starts = [now_ms - allowance.period_ms for allowance in self._allowances]
        if self._total is not None:
            starts.append(0)
        if not starts:
            return
        sums = self._store.sum_sizes(txn, user_id, starts)
        for allowance, used in zip(self._allowances, sums, strict=False):
            if used + size > allowance.size:
                raise UserLimitExceeded(
                    f"You may upload {_format_size(allowance.size)} in"
                    f" {_format_duration(allowance.period_ms)}, and have uploaded"
                    f" {_format_size(used)}; this file has {_format_size(size)}",
                    info_uri=self._info_uri,
                )
        if self._total is not None and sums[-1] + size > self._total:
            raise UserLimitExceeded(
                f"You may have {_format_size(self._total)} of files here, and have"
                f" {_format_size(sums[-1])}; this file has {_format_size(size)}."
                " Delete files to free space",
                info_uri=self._info_uri,
            )


def _format_size(size: int) -> str:
    """Format a size for people."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size} bytes"


def _format_duration(milliseconds: int) -> str:
    """Format a duration for people."""
    for seconds, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if milliseconds >= seconds * 1000:
            return f"{milliseconds / seconds / 1000:g} {unit}"
    return f"{milliseconds / 1000:g} seconds"
