"""Texts for errors on pages: the problem, and what the user can do."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from federation.protocol.errors import (
    CaptchaInvalid,
    CaptchaNeeded,
    Exclusive,
    ExpiredAccount,
    InvalidParam,
    InvalidUsername,
    LimitExceeded,
    MatrixError,
    NotFound,
    SessionExpired,
    ThreepidAuthFailed,
    ThreepidDenied,
    ThreepidInUse,
    TokenIncorrect,
    Unrecognized,
    UserAwaitingApproval,
    UserDeactivated,
    UserInUse,
    UserLocked,
    UserSuspended,
    WeakPassword,
)
from homeserver.http.responses import InternalServerError
from homeserver.services.accounts.self_service import WrongPassword
from homeserver.services.login.application_passwords import (
    ApplicationPasswordNameInUse,
    TooManyApplicationPasswords,
)
from homeserver.services.login.approvals import NOTICE_BY_EMAIL
from homeserver.services.login.captcha import CaptchaUnavailable
from homeserver.services.login.passwords import (
    MAX_PASSWORD_LENGTH,
    InvalidPasswordLength,
    PasswordTooShort,
)
from homeserver.services.login.uia_stages import WrongRegistrationToken
from homeserver.services.oauth.errors import InvalidClient, InvalidRedirectURI, OAuthError
from homeserver.services.pages.languages import ENGLISH, Language
from homeserver.services.pages.languages import mark_for_translation as _
from homeserver.services.profiles.profiles import NameNotAllowed
from homeserver.services.threepids.email_validation import InvalidEmailAddress
from homeserver.services.threepids.phone_validation import InvalidNumber, NumberDenied
from homeserver.services.threepids.sms import MessageNotSent


class NoSuchSession(NotFound):
    """The requested session does not belong to the signed-in user."""


class NotAnOption(InvalidParam):
    """A form has a value that its page does not offer."""


class PasswordsDiffer(MatrixError):
    """The two entries of the new password differ."""


TEXTS: Final[Sequence[tuple[type[MatrixError], str]]] = (
    (WrongPassword, _("The password is wrong.")),
    (CaptchaNeeded, _("Solve the captcha at the end of the form first.")),
    (CaptchaInvalid, _("Solve the captcha at the end of the form first.")),
    (CaptchaUnavailable, _("The captcha cannot be checked now. Try again later.")),
    (
        ApplicationPasswordNameInUse,
        _("You already have a password with this name. Choose another name."),
    ),
    (
        TooManyApplicationPasswords,
        _(
            "You have the maximum number of application passwords. Revoke one that you no "
            "longer need."
        ),
    ),
    (LimitExceeded, _("Too many attempts. Try again in %(minutes)s min.")),
    (
        UserAwaitingApproval,
        _("An administrator of this server has to approve your account. Try again later."),
    ),
    (NameNotAllowed, _("This name is not allowed on this server. Choose another name.")),
    (UserLocked, _("This account is locked. Please contact the administrators of this server.")),
    (UserSuspended, _("Your account is suspended, so this cannot be changed.")),
    (
        ExpiredAccount,
        _(
            "The account has expired. Open the link in the e-mail about it, or contact the "
            "administrators of this server."
        ),
    ),
    (UserDeactivated, _("This account has been closed.")),
    (
        NoSuchSession,
        _(
            "You have no such session. If it belongs to another account of yours, sign in "
            "with that account."
        ),
    ),
    (PasswordsDiffer, _("The two passwords differ. Type the new password again, twice.")),
    (PasswordTooShort, _("The password must have at least %(count)s characters.")),
    (
        WeakPassword,
        _(
            "This password is too weak. Choose a longer one, with upper-case and lower-case "
            "letters, digits and symbols."
        ),
    ),
    (UserInUse, _("This name is taken. Choose another one.")),
    (Exclusive, _("This name is taken. Choose another one.")),
    (InvalidUsername, _("A user name may contain the letters a to z, digits, and . _ = - / +")),
    (
        InvalidNumber,
        _("This is not a mobile number. Include the country code, for example +998 90 123 45 67."),
    ),
    (NumberDenied, _("This number is not allowed here.")),
    (TokenIncorrect, _("The code is wrong. Check the message again.")),
    (SessionExpired, _("The code has expired, or was wrong too often. Request a new one.")),
    (MessageNotSent, _("The message could not be sent. Try again later.")),
    (ThreepidInUse, _("This e-mail address already belongs to an account.")),
    (
        ThreepidDenied,
        _("This e-mail address is not allowed here. Use the address of your institution."),
    ),
    (
        ThreepidAuthFailed,
        _(
            "The address is not confirmed yet. Open the link in the e-mail, and press the "
            "button there."
        ),
    ),
    (InvalidEmailAddress, _("This is not a valid e-mail address.")),
    (InvalidPasswordLength, _("A password must have 1 to %(count)s characters.")),
    (WrongRegistrationToken, _("This registration token is not valid.")),
    (NotAnOption, _("Choose one of the offered values.")),
    (InvalidClient, _("This server does not know the app. Return to the app and sign in again.")),
    (InvalidRedirectURI, _("The app uses a return address that it did not register here.")),
    (OAuthError, _("The app sent an invalid request. Return to the app and start again.")),
    (Unrecognized, _("This page does not exist.")),
    (NotFound, _("This page does not exist.")),
    (
        InternalServerError,
        _(
            "Something went wrong on this server. To report the problem to its "
            "administrators, give them this number: %(id)s"
        ),
    ),
)
"""The text for each error; the first class that fits counts."""
APPROVAL_BY_EMAIL: Final = _(
    "An administrator of this server has to approve your account. We will e-mail you when it is "
    "approved."
)


def explain(error: MatrixError, language: Language) -> str:
    """Explain an error in the user's language, in a sentence or two. For an error without its own
    text here, English readers get the error's text and others a general one."""
    if isinstance(error, UserAwaitingApproval) and _is_announced_by_email(error):
        return language.gettext(APPROVAL_BY_EMAIL)
    for kind, text in TEXTS:
        if isinstance(error, kind):
            return language.gettext(text) % _values(error)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return language.gettext(_("This is not possible now. Try again later."))
    if language.code == ENGLISH:
        return error.text
    return language.gettext(_("The request is not valid."))


def _is_announced_by_email(error: UserAwaitingApproval) -> bool:
    return error.fields.get("approval_notice_medium") == NOTICE_BY_EMAIL


def _values(error: MatrixError) -> Mapping[str, object]:
    """Return the values of the placeholders in the text of an error."""
    match error:
        case LimitExceeded():
            wait = error.fields.get("retry_after_ms")
            return {"minutes": max(1, -(-wait // 60_000)) if isinstance(wait, int) else 1}
        case PasswordTooShort():
            return {"count": error.shortest}
        case InvalidPasswordLength():
            return {"count": MAX_PASSWORD_LENGTH}
        case InternalServerError():
            return {"id": error.fields["request_id"]}
        case _:
            return {}
