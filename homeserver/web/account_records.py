"""Texts for the audit log on the account page."""

from datetime import UTC, datetime
from typing import Final

from homeserver.services.audit.audit import TIME_OVER, Happened
from homeserver.services.pages.languages import Language
from homeserver.services.upstream.identity import Reason
from storage.accounts.audit import AuditRecord

TAKEN: Final = Reason.TAKEN.value


def moment(ts: int | None) -> str:
    """Format a time in UTC, the same for all languages."""
    return (
        "–" if ts is None else datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    )


def detail_for_owner(record: AuditRecord) -> str | None:
    """Return the detail that the owner sees: an app's name without its id, or who signed in
    instead. The reason of a refusal is left out, since the page showed it."""
    if record.event in (Happened.SIGN_IN_REFUSED.value, Happened.BROWSER_SIGNED_OUT.value):
        return None
    if record.event == Happened.CONFIRMATION_REFUSED.value:
        return (record.detail or "").rpartition(" (")[2].removesuffix(")")
    if record.event in (Happened.APP_ALLOWED.value, Happened.APP_DENIED.value):
        return (record.detail or "").rpartition(" (")[0]
    return record.detail


def describe(record: AuditRecord, language: Language) -> str:
    """Describe an event in a sentence."""
    _ = language.gettext
    match record.event:
        case Happened.REGISTERED.value:
            return _("The account was created")
        case Happened.SESSION_BEGAN.value:
            return _("An app signed in")
        case Happened.SESSION_ENDED.value:
            return _("A session ended")
        case Happened.BROWSER_SIGNED_IN.value:
            return _("Signed in to this page")
        case Happened.BROWSER_SIGNED_OUT.value:
            if record.detail == TIME_OVER:
                return _("Signed out of this page automatically, a day after signing in")
            return _("Signed out of this page")
        case Happened.SIGN_IN_FAILED.value:
            return _("A wrong password was typed")
        case Happened.SIGN_IN_REFUSED.value:
            if record.detail == TAKEN:
                return _(
                    "Somebody with the name of this account used a sign-in service and was refused"
                )
            return _("A sign-in was refused, because the account could not be used")
        case Happened.CONFIRMATION_REFUSED.value:
            return _("Another person signed in to confirm an operation of yours; nothing was done")
        case Happened.NEW_ADDRESS.value:
            return _("An app was used from a new place")
        case Happened.TOKEN_REUSED.value:
            return _(
                "A token of an app was used twice or wrongly. It was revoked, because it may have "
                "been stolen"
            )
        case Happened.TOKEN_FOUND.value:
            return _("Somebody found a token of an app and used it to end its session")
        case Happened.APP_ALLOWED.value:
            return _("An app was allowed")
        case Happened.APP_DENIED.value:
            return _("An app was denied")
        case Happened.DATA_EXPORTED.value:
            return _("The account data was downloaded")
        case Happened.PASSWORD_CHANGED.value:
            return _("The password was changed")
        case Happened.PASSWORD_RESET_ASKED.value:
            return _("A new password was requested")
        case Happened.APPLICATION_PASSWORD_MADE.value:
            return _("An application password was created")
        case Happened.APPLICATION_PASSWORD_ENDED.value:
            return _("An application password was revoked")
        case Happened.ADDRESS_ADDED.value:
            return _("An e-mail address was added")
        case Happened.ADDRESS_REMOVED.value:
            return _("An e-mail address was removed")
        case Happened.NUMBER_ADDED.value:
            return _("A phone number was added")
        case Happened.NUMBER_REMOVED.value:
            return _("A phone number was removed")
        case Happened.ADDRESS_BOUND.value:
            return _("The account can be found by an address")
        case Happened.ADDRESS_UNBOUND.value:
            return _("The account can no longer be found by an address")
        case Happened.KEYS_RESET_ALLOWED.value:
            return _("An app was allowed to replace the keys")
        case Happened.KEYS_REPLACED.value:
            return _("The keys of the account were replaced")
        case Happened.LOGIN_TOKEN_GIVEN.value:
            return _("An app received a token to sign in another one")
        case Happened.REGISTRATION_TOKEN_MADE.value:
            return _("A registration token was created")
        case Happened.REGISTRATION_TOKEN_CHANGED.value:
            return _("A registration token was changed")
        case Happened.REGISTRATION_TOKEN_ENDED.value:
            return _("A registration token was revoked")
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
            return _("The expiry of the account was changed")
        case Happened.ADMIN_GRANTED.value:
            return _("The account became an administrator")
        case Happened.ADMIN_REVOKED.value:
            return _("The account is no longer an administrator")
        case Happened.USER_TYPE_CHANGED.value:
            return _("An administrator changed the account type")
        case Happened.LOCKED.value | Happened.SUSPENDED.value:
            return _("The account was locked or suspended")
        case Happened.UNLOCKED.value | Happened.UNSUSPENDED.value:
            return _("The account was unlocked")
        case Happened.FILE_HARMFUL.value:
            return _("An uploaded file was found harmful and was blocked")
        case _:
            return record.event
