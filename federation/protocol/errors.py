"""The errors of the Matrix APIs, each with its errcode and its HTTP status.

`MatrixError` is the response to a request that we received. `RemoteError` is the failure of a
request that we sent to another server. `RemoteError` does not derive from `MatrixError`, so that
the error of another server is never returned to a client by accident.

spec: client-server-api#standard-error-response, client-server-api#common-error-codes
"""

from collections.abc import Mapping
from typing import ClassVar


class MatrixError(Exception):
    """An error response: `errcode`, a text for people, an HTTP status, and further fields of the
    body."""

    errcode: ClassVar[str] = "M_UNKNOWN"
    status: ClassVar[int] = 400
    default_text: ClassVar[str] = "The request could not be carried out"

    headers: ClassVar[Mapping[str, str]] = {}
    """Headers of the response, besides those of every response."""

    def __init__(self, text: str | None = None, **fields: object) -> None:
        super().__init__(text or self.default_text)
        self.text = text or self.default_text
        self.fields = fields

    def body(self) -> Mapping[str, object]:
        """The JSON body of the answer."""
        return {"errcode": self.errcode, "error": self.text, **self.fields}


class Forbidden(MatrixError):
    errcode, status, default_text = "M_FORBIDDEN", 403, "You are not allowed to do this"


class UnknownToken(MatrixError):
    """Fields: `soft_logout: bool`."""

    errcode, status, default_text = "M_UNKNOWN_TOKEN", 401, "Unknown or expired access token"


class MissingToken(MatrixError):
    errcode, status, default_text = "M_MISSING_TOKEN", 401, "Missing access token"


class UserLocked(MatrixError):
    errcode, status, default_text = "M_USER_LOCKED", 401, "This account is locked"


class UserSuspended(MatrixError):
    errcode, status, default_text = (
        "M_USER_SUSPENDED",
        403,
        "This account is suspended and may only read",
    )


class CaptchaNeeded(MatrixError):
    errcode, status, default_text = "M_CAPTCHA_NEEDED", 400, "Solve the captcha first"


class CaptchaInvalid(MatrixError):
    errcode, status, default_text = (
        "M_CAPTCHA_INVALID",
        400,
        "The captcha was not solved; try it again",
    )


class ConsentNotGiven(MatrixError):
    """Fields: `consent_uri: str`, the page where the user agrees.

    COMPAT(Element Web, and whatever uses matrix-js-sdk): not in the specification, but what clients
    know.
    """

    errcode, status, default_text = (
        "M_CONSENT_NOT_GIVEN",
        403,
        "You have to agree to the terms of this server first",
    )


class UserAwaitingApproval(MatrixError):
    """Fields: `approval_notice_medium: str`, how the user hears of the approval. spec: MSC3866"""

    errcode, status = "ORG.MATRIX.MSC3866_USER_AWAITING_APPROVAL", 403
    default_text = "An administrator has to approve this account before it can be used"


class UserDeactivated(MatrixError):
    errcode, status, default_text = "M_USER_DEACTIVATED", 403, "This account has been deactivated"


class ExpiredAccount(MatrixError):
    errcode, status = "ORG_MATRIX_EXPIRED_ACCOUNT", 403
    default_text = "This account was good until a day that is over: renew it"


class BadJson(MatrixError):
    errcode, status, default_text = "M_BAD_JSON", 400, "The JSON does not have the expected form"


class BadEvent(BadJson):
    """A PDU that does not have the form of its room version, or is too large. It is dropped. spec:
    server-server-api#pdus"""

    errcode, status, default_text = (
        "M_BAD_JSON",
        400,
        "The event does not have the form of its room version",
    )


class EventTooLarge(BadEvent):
    """spec: client-server-api#size-limits"""

    errcode, status, default_text = "M_TOO_LARGE", 413, "The event is too large"


class NotJson(MatrixError):
    errcode, status, default_text = "M_NOT_JSON", 400, "The body is not valid JSON"


class NotFound(MatrixError):
    errcode, status, default_text = "M_NOT_FOUND", 404, "Not found"


class Unrecognized(MatrixError):
    errcode, status, default_text = "M_UNRECOGNIZED", 404, "Unrecognized request"


class MethodNotAllowed(MatrixError):
    errcode, status, default_text = "M_UNRECOGNIZED", 405, "This path does not take this method"


class LimitExceeded(MatrixError):
    """Fields: `retry_after_ms: int`."""

    errcode, status, default_text = "M_LIMIT_EXCEEDED", 429, "Too many requests"


class TooSlow(MatrixError):
    errcode, status, default_text = (
        "M_UNKNOWN",
        408,
        "The body of the request took too long to come",
    )


class UserLimitExceeded(MatrixError):
    """A limit of the user's account. Fields: `info_uri: str`, a page about it. spec:
    client-server-api#common-error-codes"""

    errcode, status, default_text = (
        "M_USER_LIMIT_EXCEEDED",
        403,
        "You have reached a limit of your account",
    )


class InvalidParam(MatrixError):
    errcode, status, default_text = "M_INVALID_PARAM", 400, "A parameter has an invalid value"


class MissingParam(MatrixError):
    errcode, status, default_text = "M_MISSING_PARAM", 400, "A parameter is missing"


class TooLarge(MatrixError):
    errcode, status, default_text = "M_TOO_LARGE", 413, "The request is too large"


class NotYetUploaded(MatrixError):
    errcode, status, default_text = "M_NOT_YET_UPLOADED", 504, "The file has not been uploaded yet"


class MediaHarmful(MatrixError):
    """A scanner has found something in the file."""

    errcode, status, default_text = (
        "M_FORBIDDEN",
        403,
        "A scanner has found this file harmful: it is held back",
    )


class MediaTooLargeToScan(MatrixError):
    errcode, status, default_text = (
        "M_FORBIDDEN",
        403,
        "This file is too large to be scanned, and is not given out",
    )


class ScannersUnavailable(MatrixError):
    errcode, status, default_text = (
        "M_UNKNOWN",
        503,
        "This file cannot be scanned at the moment: try again in a while",
    )


class MediaTooLarge(MatrixError):
    """A file of another server that this one does not pass on."""

    errcode, status, default_text = "M_TOO_LARGE", 502, "The file is too large for this server"


class CannotOverwriteMedia(MatrixError):
    errcode, status, default_text = (
        "M_CANNOT_OVERWRITE_MEDIA",
        409,
        "A file has already been uploaded there",
    )


class CannotThumbnail(MatrixError):
    errcode, status, default_text = "M_UNKNOWN", 400, "No thumbnail can be made of this file"


class ConcurrentWrite(MatrixError):
    """Somebody else has written first; `M_CONCURRENT_WRITE` once the specification has it. spec:
    MSC4388 #unstable-prefix"""

    errcode, status = "IO_ELEMENT_MSC4388_CONCURRENT_WRITE", 409
    default_text = "It was changed in the meantime; read it again"


class UserInUse(MatrixError):
    errcode, status, default_text = "M_USER_IN_USE", 400, "This user name is taken"


class InvalidUsername(MatrixError):
    errcode, status, default_text = "M_INVALID_USERNAME", 400, "This user name is not valid"


class Exclusive(MatrixError):
    errcode, status, default_text = (
        "M_EXCLUSIVE",
        400,
        "This name belongs to an application service",
    )


class WeakPassword(MatrixError):
    errcode, status, default_text = "M_WEAK_PASSWORD", 400, "This password is too weak"


class ProfileTooLarge(MatrixError):
    errcode, status, default_text = (
        "M_PROFILE_TOO_LARGE",
        400,
        "A profile may not be larger than 64 KiB",
    )


class KeyTooLarge(MatrixError):
    errcode, status, default_text = (
        "M_KEY_TOO_LARGE",
        400,
        "The name of a profile field may not be longer than 255 bytes",
    )


class ServerNotTrusted(MatrixError):
    errcode, status, default_text = (
        "M_SERVER_NOT_TRUSTED",
        403,
        "This server does not trust the other one",
    )


class ThreepidInUse(MatrixError):
    errcode, status, default_text = (
        "M_THREEPID_IN_USE",
        400,
        "This address belongs to an account already",
    )


class ThreepidNotFound(MatrixError):
    errcode, status, default_text = "M_THREEPID_NOT_FOUND", 400, "No account has this address"


class ThreepidDenied(MatrixError):
    errcode, status, default_text = (
        "M_THREEPID_DENIED",
        403,
        "This server does not take this address",
    )


class ThreepidAuthFailed(MatrixError):
    errcode, status, default_text = (
        "M_THREEPID_AUTH_FAILED",
        401,
        "The address has not been confirmed",
    )


class ThreepidMediumNotSupported(MatrixError):
    errcode, status, default_text = (
        "M_THREEPID_MEDIUM_NOT_SUPPORTED",
        400,
        "This server takes no such addresses",
    )


class TokenIncorrect(MatrixError):
    errcode, status, default_text = "M_TOKEN_INCORRECT", 400, "The code is wrong"


class SessionExpired(MatrixError):
    errcode, status, default_text = (
        "M_SESSION_EXPIRED",
        400,
        "The code has grown old, or was wrong too often",
    )


class RoomInUse(MatrixError):
    errcode, status, default_text = "M_ROOM_IN_USE", 400, "This alias is taken"


class InvalidRoomState(MatrixError):
    errcode, status, default_text = (
        "M_INVALID_ROOM_STATE",
        400,
        "The initial state of the room is not valid",
    )


class UnsupportedRoomVersion(MatrixError):
    errcode, status, default_text = (
        "M_UNSUPPORTED_ROOM_VERSION",
        400,
        "This server does not support the room version",
    )


class IncompatibleRoomVersion(MatrixError):
    """Fields: `room_version: str`."""

    errcode, status, default_text = (
        "M_INCOMPATIBLE_ROOM_VERSION",
        400,
        "You do not support this room's version",
    )


class BadState(MatrixError):
    errcode, status, default_text = "M_BAD_STATE", 400, "The state does not allow this change"


class BadAlias(MatrixError):
    errcode, status, default_text = "M_BAD_ALIAS", 400, "An alias does not point to this room"


class GuestAccessForbidden(MatrixError):
    errcode, status, default_text = "M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may not do this"


class InviteBlocked(MatrixError):
    """spec: client-server-api#invite-permission"""

    errcode, status, default_text = "M_INVITE_BLOCKED", 403, "This user takes no invites from you"


class UnableToAuthoriseJoin(MatrixError):
    errcode, status, default_text = (
        "M_UNABLE_TO_AUTHORISE_JOIN",
        400,
        "This server cannot authorise the join",
    )


class UnableToGrantJoin(MatrixError):
    errcode, status, default_text = (
        "M_UNABLE_TO_GRANT_JOIN",
        400,
        "This server may not grant the join",
    )


class DuplicateAnnotation(MatrixError):
    errcode, status, default_text = (
        "M_DUPLICATE_ANNOTATION",
        400,
        "You have already sent this reaction",
    )


class InvalidSignature(MatrixError):
    errcode, status, default_text = "M_INVALID_SIGNATURE", 400, "A signature is missing or wrong"


class WrongRoomKeysVersion(MatrixError):
    """Fields: `current_version: str`."""

    errcode, status, default_text = (
        "M_WRONG_ROOM_KEYS_VERSION",
        403,
        "This is not the current version of the backup",
    )


class StateIncomplete(MatrixError):
    """The request needs the complete state of a room that has partial state."""

    errcode, status, default_text = (
        "M_UNKNOWN",
        504,
        "The members of this room are still being fetched from other servers: try again in a while",
    )


class OtherServerFailed(MatrixError):
    """The request needs another server, and none could serve it."""

    errcode, status, default_text = (
        "M_UNKNOWN",
        502,
        "Another server could not be reached, or answered wrongly",
    )


class StoreFull(MatrixError):
    """Files can be read, but no new ones can be stored."""

    errcode, status, default_text = (
        "M_UNKNOWN",
        507,
        "This server has no room for more files at the moment",
    )


class StoreUnavailable(MatrixError):
    errcode, status, default_text = (
        "M_UNKNOWN",
        503,
        "This server cannot reach its files at the moment: try again",
    )


class UnknownPos(MatrixError):
    """The client has to start a new connection."""

    errcode, status, default_text = (
        "M_UNKNOWN_POS",
        400,
        "This position is unknown or has expired: start a new connection",
    )


class Unauthorized(MatrixError):
    """A server's signature is missing or wrong."""

    errcode, status, default_text = "M_UNAUTHORIZED", 401, "The request is not validly signed"


class RemoteError(Exception):
    """A server that we asked failed or misbehaved. `retryable`: the same request may succeed later.
    Its text begins with the server's name; `reason` is the text without it."""

    def __init__(self, destination: str, text: str, *, retryable: bool) -> None:
        super().__init__(f"{destination}: {text}")
        self.destination = destination
        self.reason = text
        self.retryable = retryable


class AnswerTooLong(RemoteError):
    """The answer is longer than the limit."""

    def __init__(self, destination: str, text: str) -> None:
        super().__init__(destination, text, retryable=False)
