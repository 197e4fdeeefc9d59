"""What people are told on a page where a program would get an error: what is wrong, and what they can do."""

from federation.protocol.errors import (
    CaptchaInvalid,
    CaptchaNeeded,
    Exclusive,
    ExpiredAccount,
    InvalidUsername,
    LimitExceeded,
    MatrixError,
    NotFound,
    SessionExpired,
    ThreepidAuthFailed,
    ThreepidDenied,
    ThreepidInUse,
    TokenIncorrect,
    UserAwaitingApproval,
    UserDeactivated,
    UserInUse,
    UserLocked,
    UserSuspended,
    WeakPassword,
)
from homeserver.services.application_passwords import NameTaken, TooMany
from homeserver.services.approvals import BY_EMAIL
from homeserver.services.captcha import CaptchaUnavailable
from homeserver.services.languages import Language
from homeserver.services.own_account import WrongProof
from homeserver.services.passwords import PasswordTooShort
from homeserver.services.phone_validation import InvalidNumber, NumberDenied
from homeserver.services.profiles import NameNotAllowed
from homeserver.services.text_messages import MessageNotSent


class NoSuchSession(NotFound):
    """A page was asked for a session that who is signed in does not have."""


class PasswordsDiffer(MatrixError):
    """The new password was typed in two ways."""


def explain(error: MatrixError, language: Language) -> str:
    """A sentence or two in the reader's language; the text of the error itself for one that pages do not expect."""
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
            return _("You have as many passwords for programs as you may have. End one that you no longer need.")
        case LimitExceeded():
            wait = error.fields.get("retry_after_ms")
            minutes = max(1, -(-wait // 60000)) if isinstance(wait, int) else 1
            return _("Too many attempts. Wait %(minutes)s min, then try again.") % {"minutes": minutes}
        case UserAwaitingApproval():
            if error.fields.get("approval_notice_medium") == BY_EMAIL:
                return _(
                    "An administrator of this server looks at your account first. You get a letter when it is approved."
                )
            return _("An administrator of this server looks at your account first. Try again later.")
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
            return _("You have no such session. If it is one of another account of yours, sign in here as that one.")
        case PasswordsDiffer():
            return _("The two passwords differ. Type the new one again, twice.")
        case PasswordTooShort():
            return _("The password must have at least %(count)s characters.") % {"count": error.shortest}
        case WeakPassword():
            return _(
                "This password is too weak. Choose a longer one, with capital and small letters, digits and signs."
            )
        case UserInUse() | Exclusive():
            return _("This name is taken. Choose another one.")
        case InvalidUsername():
            return _("A name may have small letters a to z, digits, and the signs . _ = - / +")
        case InvalidNumber():
            return _("This is not a mobile number. Write it with the code of its country, such as +998 90 123 45 67.")
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
            return _("The address is not confirmed yet: open the link in the letter, and press the button there.")
        case _:
            return error.text
