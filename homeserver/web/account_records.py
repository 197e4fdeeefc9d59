"""What happened to an account, in the words of people: for the list on their page."""

from datetime import UTC, datetime
from typing import Final

from homeserver.services.audit.audit import TIME_OVER, Happened
from homeserver.services.pages.languages import Language
from homeserver.services.upstream.identity import Reason
from storage.accounts.audit import AuditRecord

TAKEN: Final = Reason.TAKEN.value


def moment(ts: int | None) -> str:
    """A time as people of every language read it; of the server's clock, in UTC."""
    return (
        "–" if ts is None else datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    )


def detail_for_owner(record: AuditRecord) -> str | None:
    """What people are told more: of an app its name, without the id; who came in their stead; why
    they were refused, it has told them."""
    if record.event in (Happened.SIGN_IN_REFUSED.value, Happened.BROWSER_SIGNED_OUT.value):
        return None
    if record.event == Happened.CONFIRMATION_REFUSED.value:
        return (record.detail or "").rpartition(" (")[2].removesuffix(")")
    if record.event in (Happened.APP_ALLOWED.value, Happened.APP_DENIED.value):
        return (record.detail or "").rpartition(" (")[0]
    return record.detail


def describe(record: AuditRecord, language: Language) -> str:
    """What happened, in a sentence."""
    _ = language.gettext
    match record.event:
        case Happened.REGISTERED.value:
            return _("The account was made")
        case Happened.SESSION_BEGAN.value:
            return _("An app signed in")
        case Happened.SESSION_ENDED.value:
            return _("A session ended")
        case Happened.BROWSER_SIGNED_IN.value:
            return _("Signed in to this page")
        case Happened.BROWSER_SIGNED_OUT.value:
            if record.detail == TIME_OVER:
                return _("Signed out of this page by itself, a day after signing in")
            return _("Signed out of this page")
        case Happened.SIGN_IN_FAILED.value:
            return _("A wrong password was typed")
        case Happened.SIGN_IN_REFUSED.value:
            if record.detail == TAKEN:
                return _(
                    "Somebody with the name of this account came from a sign-in service, and was not let in"
                )
            return _("Somebody proved to be you, but the account could not be used")
        case Happened.CONFIRMATION_REFUSED.value:
            return _(
                "Somebody else signed in where you were to confirm something; nothing was done"
            )
        case Happened.NEW_ADDRESS.value:
            return _("An app was used from a new place")
        case Happened.TOKEN_REUSED.value:
            return _(
                "A secret of an app was used twice or wrongly; it is void now, in case it was stolen"
            )
        case Happened.TOKEN_FOUND.value:
            return _("Somebody found a secret of an app and ended its session with it")
        case Happened.APP_ALLOWED.value:
            return _("An app was allowed")
        case Happened.APP_DENIED.value:
            return _("An app was not let in")
        case Happened.DATA_EXPORTED.value:
            return _("A file with the data of the account was downloaded")
        case Happened.PASSWORD_CHANGED.value:
            return _("The password was changed")
        case Happened.PASSWORD_RESET_ASKED.value:
            return _("Somebody asked for a new password")
        case Happened.APPLICATION_PASSWORD_MADE.value:
            return _("A password for a program was made")
        case Happened.APPLICATION_PASSWORD_ENDED.value:
            return _("A password for a program was ended")
        case Happened.ADDRESS_ADDED.value:
            return _("An e-mail address was added")
        case Happened.ADDRESS_REMOVED.value:
            return _("An e-mail address was removed")
        case Happened.NUMBER_ADDED.value:
            return _("A telephone number was added")
        case Happened.NUMBER_REMOVED.value:
            return _("A telephone number was removed")
        case Happened.ADDRESS_BOUND.value:
            return _("Others can find the account by an address")
        case Happened.ADDRESS_UNBOUND.value:
            return _("Others can no longer find the account by an address")
        case Happened.KEYS_RESET_ALLOWED.value:
            return _("An app was allowed to replace the keys")
        case Happened.KEYS_REPLACED.value:
            return _("The keys of the account were replaced")
        case Happened.LOGIN_TOKEN_GIVEN.value:
            return _("An app was given a secret to let another one in")
        case Happened.REGISTRATION_TOKEN_MADE.value:
            return _("A registration token was made")
        case Happened.REGISTRATION_TOKEN_CHANGED.value:
            return _("A registration token was changed")
        case Happened.REGISTRATION_TOKEN_ENDED.value:
            return _("A registration token was taken away")
        case Happened.TERMS_ACCEPTED.value:
            return _("The terms were accepted")
        case Happened.APPROVED.value:
            return _("An administrator approved the account")
        case Happened.APPROVAL_WITHDRAWN.value:
            return _("The account has to be approved again")
        case Happened.LINKED.value:
            return _("The account was linked to a sign-in service")
        case Happened.UNLINKED.value:
            return _("The link to a sign-in service was removed")
        case Happened.RENEWED.value:
            return _("The end of the account was moved")
        case Happened.ADMIN_GRANTED.value:
            return _("The account became an administrator's")
        case Happened.ADMIN_REVOKED.value:
            return _("The account is an administrator's no more")
        case Happened.USER_TYPE_CHANGED.value:
            return _("An administrator changed the kind of the account")
        case Happened.LOCKED.value | Happened.SUSPENDED.value:
            return _("The account was locked or limited")
        case Happened.UNLOCKED.value | Happened.UNSUSPENDED.value:
            return _("The account was unlocked")
        case Happened.FILE_HARMFUL.value:
            return _("A file that was uploaded here was found harmful, and is held back")
        case _:
            return record.event
