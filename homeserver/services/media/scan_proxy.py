"""Implements the API of matrix-content-scanner, a proxy for media: clients ask it whether a file is
harmful, or download files through it and get only harmless ones.

For an encrypted file, the client sends the key, and the server decrypts the file to scan it. The
client gets the encrypted file. The plaintext is only streamed to the scanners.

source: the API of matrix-content-scanner, in its docs/api.md
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
from homeserver.services.media.delivery import MediaDelivery, MediaRequest
from homeserver.services.media.thumbnails import Method
from homeserver.services.scanning.encrypted_files import (
    DecryptionFailed,
    EncryptedBodyReader,
    EncryptedFile,
    MalformedScanRequest,
)
from homeserver.services.scanning.rules import TYPE_SCANNER
from homeserver.services.scanning.scanning import MediaScanner
from storage.media.media import MediaContent

WAIT_MS: Final = 20_000
"""Time limit of such a request for an upload, and for each of the two scans: clients send no
timeout."""
CLEAN: Final = "The file is clean"


class ScannerRefusal(MatrixError):
    """An error in the format of this API: `reason` is the error code, `info` the text."""

    def body(self) -> Mapping[str, object]:
        return {"reason": self.errcode, "info": self.text, **super().body()}


class ScannedFileNotFound(ScannerRefusal):
    errcode, status, default_text = "M_NOT_FOUND", 404, "There is no such file"


class MediaRequestFailed(ScannerRefusal):
    errcode, status, default_text = (
        "MCS_MEDIA_REQUEST_FAILED",
        502,
        "The file could not be fetched or scanned",
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
        "Files of this type are not served here",
    )


class BadDecryption(ScannerRefusal):
    errcode, status, default_text = (
        "MCS_BAD_DECRYPTION",
        403,
        "The encrypted body cannot be decrypted: request the public key again",
    )


class MalformedJSON(ScannerRefusal):
    errcode, status, default_text = "MCS_MALFORMED_JSON", 400, "The body is malformed"


class ContentScannerAPI:
    """Implements the API. Without `scanner` it is disabled: everything raises Unrecognized."""

    def __init__(
        self,
        *,
        delivery: MediaDelivery,
        bodies: EncryptedBodyReader,
        limiter: RateLimiter,
        scanner: MediaScanner | None,
    ) -> None:
        self._delivery = delivery
        self._bodies = bodies
        self._limiter = limiter
        self._scanning = scanner

    def get_public_key(self) -> str:
        """Return the public key for encrypted bodies. Raises Unrecognized."""
        self._get_scanner()
        return self._bodies.public_key

    async def download(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> Response:
        """Return a clean file. Raises ScannerRefusal, LimitExceeded."""
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
        """Return a thumbnail of a clean image. Raises ScannerRefusal, LimitExceeded."""
        await self._check(server, media_id, caller, context)
        request = _media_request(caller, context)
        try:
            return await self._delivery.thumbnail(
                server, media_id, size, method, request, animated=animated
            )
        except MatrixError as error:
            raise _refusal(error) from error

    async def scan(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> tuple[bool, str]:
        """Return whether a file is clean, and a sentence about it. Raises ScannerRefusal,
        LimitExceeded."""
        return await _verdict(self._check(server, media_id, caller, context))

    async def download_encrypted(
        self, body: bytes, caller: Requester | None, context: RequestContext
    ) -> Response:
        """Return an encrypted file whose plaintext is clean. Raises ScannerRefusal,
        LimitExceeded."""
        file = self._parse(body)
        await self._check_decrypted(file, caller, context)
        return await self._download(file.server_name, file.media_id, caller, context)

    async def scan_encrypted(
        self, body: bytes, caller: Requester | None, context: RequestContext
    ) -> tuple[bool, str]:
        """Return whether the plaintext of an encrypted file is clean, and a sentence about it.
        Raises ScannerRefusal, LimitExceeded."""
        return await _verdict(self._check_decrypted(self._parse(body), caller, context))

    def _get_scanner(self) -> MediaScanner:
        if self._scanning is None:
            raise Unrecognized("This server does not scan files")
        return self._scanning

    def _parse(self, body: bytes) -> EncryptedFile:
        self._get_scanner()
        try:
            return self._bodies.parse(body)
        except MalformedScanRequest as error:
            raise MalformedJSON(str(error)) from error
        except DecryptionFailed as error:
            raise BadDecryption from error

    async def _check(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> MediaContent:
        scanning = self._get_scanner()
        try:
            file = await self._delivery.get_content(
                server, media_id, _media_request(caller, context)
            )
            await scanning.check_content(file.content, WAIT_MS, file.owner)
        except MediaHarmful as error:
            raise await self._harmful_error(scanning, server, media_id, caller, context) from error
        except MatrixError as error:
            raise _refusal(error) from error
        return file.content

    async def _harmful_error(
        self,
        scanning: MediaScanner,
        server: ServerName,
        media_id: str,
        caller: Requester | None,
        context: RequestContext,
    ) -> ScannerRefusal:
        """Return the error for the kind of finding."""
        request = _media_request(caller, context, include_quarantined=True)
        file = await self._delivery.get_content(server, media_id, request)
        row = await scanning.get_state(file.content.hash)
        return _finding_error("" if row is None or row.finding is None else row.finding)

    async def _check_decrypted(
        self, file: EncryptedFile, caller: Requester | None, context: RequestContext
    ) -> None:
        scanning = self._get_scanner()
        content = await self._check(file.server_name, file.media_id, caller, context)
        if content.hash != file.hash:
            raise FailedToDecrypt
        by = None if caller is None or caller.is_guest else caller.user_id
        requester = address_key(context.client_ip) if caller is None else caller.user_id

        def check_rate() -> None:
            if caller is None or caller.rate_limited:
                self._limiter.check(Limit.MEDIA_SCAN, requester)

        try:
            found = await scanning.scan_decrypted(
                content, file.key, file.iv, WAIT_MS, requester, by, check_rate
            )
        except MatrixError as error:
            raise _refusal(error) from error
        if found is not None:
            raise _finding_error(found)

    async def _download(
        self, server: ServerName, media_id: str, caller: Requester | None, context: RequestContext
    ) -> Response:
        try:
            return await self._delivery.download(
                server, media_id, "", _media_request(caller, context)
            )
        except MatrixError as error:
            raise _refusal(error) from error


def _media_request(
    caller: Requester | None, context: RequestContext, *, include_quarantined: bool = False
) -> MediaRequest:
    user_id = "" if caller is None else caller.user_id
    return MediaRequest(
        context.client_ip,
        caller is not None,
        WAIT_MS,
        include_quarantined=include_quarantined,
        user_id=user_id,
    )


async def _verdict(checking: Coroutine[Any, Any, object]) -> tuple[bool, str]:
    try:
        await checking
    except (MediaNotClean, TypeForbidden) as error:
        return False, error.text
    return True, CLEAN


def _finding_error(found: str) -> ScannerRefusal:
    scanner, _, what = found.partition(": ")
    return (
        TypeForbidden(f"Files of the type {what} are not served here")
        if scanner == TYPE_SCANNER
        else MediaNotClean()
    )


def _refusal(error: MatrixError) -> MatrixError:
    """Return the same refusal as an error of this API."""
    match error:
        case NotFound():
            return ScannedFileNotFound(error.text)
        case MediaHarmful() | MediaTooLargeToScan():
            return MediaNotClean(error.text)
        case LimitExceeded() | Unrecognized():
            return error
    if error.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        return error  # an error of the request, such as an invalid thumbnail size
    return MediaRequestFailed(error.text)
