"""What people are told on a page where a program would get an error: what is wrong, and what they
can do."""

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
    """A page was asked for a session that who is signed in does not have."""


class NotOffered(InvalidParam):
    """A form came with what its page does not offer."""


class PasswordsDiffer(MatrixError):
    """The new password was typed in two ways."""


def explain(error: MatrixError, language: Language) -> str:
    """A sentence or two in the reader's language, for any error: of one that pages do not expect,
    the text of the error itself is for those alone who read English."""
    _ = language.gettext
    match error:
        case WrongProof():
            return _("The password is wrong.")
        case CaptchaNeeded() | CaptchaInvalid():
            return _("Show first that you are no program: solve the riddle at the end of the form.")
        case CaptchaUnavailable():
            return _("At the moment nobody can check that you are no program. Try again later.")
        case NameTaken():
            return _("You have a password of this name already. Choose another name.")
        case TooMany():
            return _(
                "You have as many passwords for programs as you may have. End one that you no longer need."
            )
        case LimitExceeded():
            wait = error.fields.get("retry_after_ms")
            minutes = max(1, -(-wait // 60000)) if isinstance(wait, int) else 1
            return _("Too many attempts. Wait %(minutes)s min, then try again.") % {
                "minutes": minutes
            }
        case UserAwaitingApproval():
            if error.fields.get("approval_notice_medium") == BY_EMAIL:
                return _(
                    "An administrator of this server looks at your account first. You get a letter when it is approved."
                )
            return _(
                "An administrator of this server looks at your account first. Try again later."
            )
        case NameNotAllowed():
            return _("This server does not let people be called so. Choose another name.")
        case UserLocked():
            return _("This account is locked. Ask the people who run this server.")
        case UserSuspended():
            return _("Your account is limited for now: this cannot be changed.")
        case ExpiredAccount():
            return _(
                "The account was good until a day that is over. Open the link in the letter about it, or ask the people who run "
                "this server."
            )
        case UserDeactivated():
            return _("This account has been closed.")
        case NoSuchSession():
            return _(
                "You have no such session. If it is one of another account of yours, sign in here as that one."
            )
        case PasswordsDiffer():
            return _("The two passwords differ. Type the new one again, twice.")
        case PasswordTooShort():
            return _("The password must have at least %(count)s characters.") % {
                "count": error.shortest
            }
        case WeakPassword():
            return _(
                "This password is too weak. Choose a longer one, with capital and small letters, digits and signs."
            )
        case UserInUse() | Exclusive():
            return _("This name is taken. Choose another one.")
        case InvalidUsername():
            return _("A name may have small letters a to z, digits, and the signs . _ = - / +")
        case InvalidNumber():
            return _(
                "This is not a mobile number. Write it with the code of its country, such as +998 90 123 45 67."
            )
        case NumberDenied():
            return _("This number may not be used here.")
        case TokenIncorrect():
            return _("The code is wrong. Look at the message again.")
        case SessionExpired():
            return _("The code has grown old, or was wrong too often. Ask for a new one.")
        case MessageNotSent():
            return _("The message could not be sent. Try again later.")
        case ThreepidInUse():
            return _("This e-mail address belongs to an account already.")
        case ThreepidDenied():
            return _("This e-mail address may not be used here. Take that of your institution.")
        case ThreepidAuthFailed():
            return _(
                "The address is not confirmed yet: open the link in the letter, and press the button there."
            )
        case InvalidAddress():
            return _("This is no e-mail address. Look at it again.")
        case PasswordLength():
            return _("A password has 1 to %(count)s characters.") % {"count": LONGEST_PASSWORD}
        case WrongRegistrationToken():
            return _("This registration token is not valid (any more).")
        case NotOffered():
            return _("Choose one of those that the page offers.")
        case InvalidClient():
            return _(
                "This server does not know the app (any more). Go back to the app, and sign in anew there."
            )
        case WrongRedirect():
            return _("The app wants to be answered at an address that it has not registered here.")
        case OAuthError():
            return _(
                "The app has asked in a way that this server cannot answer. Go back to the app and begin again there."
            )
        case Unrecognized() | NotFound():
            return _("What you look for is not here (any more).")
        case Bug():
            return _(
                "Something went wrong on this server. The people who run it find out what, if you tell them this number: %(id)s"
            ) % {"id": error.fields["request_id"]}
        case _ if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return _("This server cannot do that now. Try again later.")
        case _:
            return (
                error.text
                if language.code == ENGLISH
                else _("Something that was given is not right.")
            )
