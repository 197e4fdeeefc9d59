"""Texts for errors on pages: the problem, and what the user can do."""

from http import HTTPStatus

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
from homeserver.http.responses import Bug
from homeserver.services.accounts.self_service import WrongProof
from homeserver.services.login.application_passwords import NameTaken, TooMany
from homeserver.services.login.approvals import BY_EMAIL
from homeserver.services.login.captcha import CaptchaUnavailable
from homeserver.services.login.passwords import LONGEST_PASSWORD, PasswordLength, PasswordTooShort
from homeserver.services.login.uia_stages import WrongRegistrationToken
from homeserver.services.oauth.errors import InvalidClient, OAuthError, WrongRedirect
from homeserver.services.pages.languages import ENGLISH, Language
from homeserver.services.profiles.profiles import NameNotAllowed
from homeserver.services.threepids.email_validation import InvalidAddress
from homeserver.services.threepids.phone_validation import InvalidNumber, NumberDenied
from homeserver.services.threepids.sms import MessageNotSent


class NoSuchSession(NotFound):
    """The requested session does not belong to the signed-in user."""


class NotOffered(InvalidParam):
    """A form has a value that its page does not offer."""


class PasswordsDiffer(MatrixError):
    """The two entries of the new password differ."""


def explain(error: MatrixError, language: Language) -> str:
    """Explain an error in the user's language, in a sentence or two. For an error without its own
    text here, English readers get the error's text and others a general one."""
    _ = language.gettext
    match error:
        case WrongProof():
            return _("The password is wrong.")
        case CaptchaNeeded() | CaptchaInvalid():
            return _("Solve the captcha at the end of the form first.")
        case CaptchaUnavailable():
            return _("The captcha cannot be checked now. Try again later.")
        case NameTaken():
            return _("You already have a password with this name. Choose another name.")
        case TooMany():
            return _(
                "You have the maximum number of application passwords. Revoke one that you no "
                "longer need."
            )
        case LimitExceeded():
            wait = error.fields.get("retry_after_ms")
            minutes = max(1, -(-wait // 60000)) if isinstance(wait, int) else 1
            return _("Too many attempts. Try again in %(minutes)s min.") % {"minutes": minutes}
        case UserAwaitingApproval():
            if error.fields.get("approval_notice_medium") == BY_EMAIL:
                return _(
                    "An administrator of this server has to approve your account. We will e-mail "
                    "you when it is approved."
                )
            return _(
                "An administrator of this server has to approve your account. Try again later."
            )
        case NameNotAllowed():
            return _("This name is not allowed on this server. Choose another name.")
        case UserLocked():
            return _("This account is locked. Please contact the administrators of this server.")
        case UserSuspended():
            return _("Your account is suspended, so this cannot be changed.")
        case ExpiredAccount():
            return _(
                "The account has expired. Open the link in the e-mail about it, or contact the "
                "administrators of this server."
            )
        case UserDeactivated():
            return _("This account has been closed.")
        case NoSuchSession():
            return _(
                "You have no such session. If it belongs to another account of yours, sign in "
                "with that account."
            )
        case PasswordsDiffer():
            return _("The two passwords differ. Type the new password again, twice.")
        case PasswordTooShort():
            return _("The password must have at least %(count)s characters.") % {
                "count": error.shortest
            }
        case WeakPassword():
            return _(
                "This password is too weak. Choose a longer one, with upper-case and lower-case "
                "letters, digits and symbols."
            )
        case UserInUse() | Exclusive():
            return _("This name is taken. Choose another one.")
        case InvalidUsername():
            return _("A user name may contain the letters a to z, digits, and . _ = - / +")
        case InvalidNumber():
            return _(
                "This is not a mobile number. Include the country code, for example +998 90 123 "
                "45 67."
            )
        case NumberDenied():
            return _("This number is not allowed here.")
        case TokenIncorrect():
            return _("The code is wrong. Check the message again.")
        case SessionExpired():
            return _("The code has expired, or was wrong too often. Request a new one.")
        case MessageNotSent():
            return _("The message could not be sent. Try again later.")
        case ThreepidInUse():
            return _("This e-mail address already belongs to an account.")
        case ThreepidDenied():
            return _(
                "This e-mail address is not allowed here. Use the address of your institution."
            )
        case ThreepidAuthFailed():
            return _(
                "The address is not confirmed yet. Open the link in the e-mail, and press the "
                "button there."
            )
        case InvalidAddress():
            return _("This is not a valid e-mail address.")
        case PasswordLength():
            return _("A password must have 1 to %(count)s characters.") % {
                "count": LONGEST_PASSWORD
            }
        case WrongRegistrationToken():
            return _("This registration token is not valid.")
        case NotOffered():
            return _("Choose one of the offered values.")
        case InvalidClient():
            return _("This server does not know the app. Return to the app and sign in again.")
        case WrongRedirect():
            return _("The app uses a return address that it did not register here.")
        case OAuthError():
            return _("The app sent an invalid request. Return to the app and start again.")
        case Unrecognized() | NotFound():
            return _("This page does not exist.")
        case Bug():
            return _(
                "Something went wrong on this server. To report the problem to its "
                "administrators, give them this number: %(id)s"
            ) % {"id": error.fields["request_id"]}
        case _ if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return _("This is not possible now. Try again later.")
        case _:
            return error.text if language.code == ENGLISH else _("The request is not valid.")
