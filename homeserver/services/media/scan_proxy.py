"""The content scanner's API, for clients that ask it before they show a file: also of files that
are encrypted.

A client shows the key of an encrypted file, and what is inside is scanned. It gets the file as it
is kept, encrypted: what is decrypted goes to the scanners piece by piece and nowhere else.

source: the API of matrix-content-scanner, as its page docs/api.md tells it
"""

from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Final

from federation.api.request import RequestContext
from federation.protocol.errors import (
    LimitExceeded,
    MatrixError,
    MediaHarmful,
    MediaTooLargeToScan,
    NotFound,
    Unrecognized,
)
from federation.protocol.ids import ServerName
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.http.responses import Response
from homeserver.services.media.delivery import Asked, MediaDelivery
from homeserver.services.media.thumbnails import Method
from homeserver.services.scanning.encrypted_files import (
    EncryptedBodies,
    EncryptedFile,
    Malformed,
    NotForThisKey,
)
from homeserver.services.scanning.rules import TYPES
from homeserver.services.scanning.scanning import Scanning
from storage.media.media import Content

WAIT_MS: Final = 20_000
"""How long such a request waits for a file to come, for its scan, and for the scan of what is
inside: clients send no time."""
CLEAN: Final = "The file is clean"


class ScannerRefusal(MatrixError):
    """An error as the clients of this API read it: `reason` says what it is, and `info` why."""

    def body(self) -> Mapping[str, object]:
        return {"reason": self.errcode, "info": self.text, **super().body()}


class NotThere(ScannerRefusal):
    errcode, status, default_text = "M_NOT_FOUND", 404, "There is no such file"


class MediaRequestFailed(ScannerRefusal):
    errcode, status, default_text = (
        "MCS_MEDIA_REQUEST_FAILED",
        502,
        "The file could not be had, or not be scanned",
    )


class FailedToDecrypt(ScannerRefusal):
    errcode, status, default_text = (
        "MCS_MEDIA_FAILED_TO_DECRYPT",
        400,
        "The file does not have the hash that is given",
    )


class MediaNotClean(ScannerRefusal):
    errcode, status, default_text = (
        "MCS_MEDIA_NOT_CLEAN",
        403,
        "A scanner has found this file harmful",
    )


class TypeForbidden(ScannerRefusal):
    errcode, status, default_text = (
        "MCS_MIME_TYPE_FORBIDDEN",
        403,
        "Files of this type are not given out here",
    )


class BadDecryption(ScannerRefusal):
    errcode, status, default_text = (
        "MCS_BAD_DECRYPTION",
        403,
        "The encrypted body cannot be opened: ask for the public key again",
    )


class MalformedJSON(ScannerRefusal):
    errcode, status, default_text = "MCS_MALFORMED_JSON", 400, "The body is not what it should be"


class MediaProxy:
    """Answers. Without `scanning` there is no such API: all of it raises Unrecognized."""

    def __init__(
        self,
        delivery: MediaDelivery,
        bodies: EncryptedBodies,
        limiter: RateLimiter,
        scanning: Scanning | None,
    ) -> None:
        self._delivery = delivery
        self._bodies = bodies
        self._limiter = limiter
        self._scanning = scanning

    def get_public_key(self) -> str:
        """The key for which bodies may be encrypted. Raises Unrecognized."""
        self._on()
        return self._bodies.public_key

    async def download(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> Response:
        """A file that is clean. Raises ScannerRefusal, LimitExceeded."""
        await self._check(server, media_id, caller, context)
        return await self._download(server, media_id, caller, context)

    async def thumbnail(
        self,
        server: ServerName,
        media_id: str,
        size: tuple[int, int],
        method: Method,
        caller: Requester | None,
        context: RequestContext,
        *,
        animated: bool,
    ) -> Response:
        """A small picture of an image that is clean. Raises ScannerRefusal, LimitExceeded."""
        await self._check(server, media_id, caller, context)
        asked = _asked(caller, context)
        try:
            return await self._delivery.thumbnail(
                server, media_id, size, method, asked, animated=animated
            )
        except MatrixError as error:
            raise _refusal(error) from error

    async def scan(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> tuple[bool, str]:
        """Whether a file is clean, and a sentence about it. Raises ScannerRefusal,
        LimitExceeded."""
        return await _verdict(self._check(server, media_id, caller, context))

    async def download_encrypted(
        self, body: bytes, caller: Requester | None, context: RequestContext
    ) -> Response:
        """An encrypted file, as it is kept, that is clean inside. Raises ScannerRefusal,
        LimitExceeded."""
        file = self._parse(body)
        await self._check_inside(file, caller, context)
        return await self._download(file.server_name, file.media_id, caller, context)

    async def scan_encrypted(
        self, body: bytes, caller: Requester | None, context: RequestContext
    ) -> tuple[bool, str]:
        """Whether what is inside of an encrypted file is clean, and a sentence. Raises
        ScannerRefusal, LimitExceeded."""
        return await _verdict(self._check_inside(self._parse(body), caller, context))

    def _on(self) -> Scanning:
        if self._scanning is None:
            raise Unrecognized("This server scans no files")
        return self._scanning

    def _parse(self, body: bytes) -> EncryptedFile:
        self._on()
        try:
            return self._bodies.parse(body)
        except Malformed as error:
            raise MalformedJSON(str(error)) from error
        except NotForThisKey as error:
            raise BadDecryption from error

    async def _check(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> Content:
        scanning = self._on()
        try:
            file = await self._delivery.get_content(server, media_id, _asked(caller, context))
            await scanning.require(file.content, WAIT_MS, file.whose)
        except MediaHarmful as error:
            raise await self._harmful(scanning, server, media_id, caller, context) from error
        except MatrixError as error:
            raise _refusal(error) from error
        return file.content

    async def _harmful(
        self,
        scanning: Scanning,
        server: ServerName,
        media_id: str,
        caller: Requester | None,
        context: RequestContext,
    ) -> ScannerRefusal:
        """Which sort of harmful it is."""
        asked = _asked(caller, context, held_too=True)
        file = await self._delivery.get_content(server, media_id, asked)
        row = await scanning.get_state(file.content.hash)
        return _found("" if row is None or row.found is None else row.found)

    async def _check_inside(
        self, file: EncryptedFile, caller: Requester | None, context: RequestContext
    ) -> None:
        scanning = self._on()
        content = await self._check(file.server_name, file.media_id, caller, context)
        if content.hash != file.hash:
            raise FailedToDecrypt
        by = None if caller is None or caller.is_guest else caller.user_id
        asker = address_key(context.client_ip) if caller is None else caller.user_id

        def check_rate() -> None:
            if caller is None or caller.rate_limited:
                self._limiter.check(Limit.MEDIA_SCAN, asker)

        try:
            found = await scanning.require_inside(
                content, file.key, file.iv, WAIT_MS, asker, by, check_rate
            )
        except MatrixError as error:
            raise _refusal(error) from error
        if found is not None:
            raise _found(found)

    async def _download(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> Response:
        try:
            return await self._delivery.download(server, media_id, "", _asked(caller, context))
        except MatrixError as error:
            raise _refusal(error) from error


def _asked(caller: Requester | None, context: RequestContext, *, held_too: bool = False) -> Asked:
    user_id = "" if caller is None else caller.user_id
    return Asked(context.client_ip, caller is not None, WAIT_MS, held_too=held_too, user_id=user_id)


async def _verdict(checking: Coroutine[Any, Any, object]) -> tuple[bool, str]:
    try:
        await checking
    except (MediaNotClean, TypeForbidden) as error:
        return False, error.text
    return True, CLEAN


def _found(found: str) -> ScannerRefusal:
    scanner, _, what = found.partition(": ")
    return (
        TypeForbidden(f"Files of the type {what} are not given out here")
        if scanner == TYPES
        else MediaNotClean()
    )


def _refusal(error: MatrixError) -> MatrixError:
    """The same no in this API's words."""
    match error:
        case NotFound():
            return NotThere(error.text)
        case MediaHarmful() | MediaTooLargeToScan():
            return MediaNotClean(error.text)
        case LimitExceeded() | Unrecognized():
            return error
    if error.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        return error  # of the request, such as a size of no thumbnail
    return MediaRequestFailed(error.text)
