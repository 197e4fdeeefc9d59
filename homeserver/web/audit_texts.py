"""Texts for the audit log on the account page."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from homeserver.services.audit.audit import SESSION_EXPIRED, AuditEvent
from homeserver.services.pages.languages import Language
from homeserver.services.pages.languages import mark_for_translation as _
from homeserver.services.upstream.identity import RefusalReason
from storage.accounts.audit import AuditRecord

TAKEN: Final = RefusalReason.TAKEN.value
TEXTS: Final[Mapping[str, str]] = {
    AuditEvent.REGISTERED.value: _("The account was created"),
    AuditEvent.SESSION_BEGAN.value: _("An app signed in"),
    AuditEvent.SESSION_ENDED.value: _("A session ended"),
    AuditEvent.BROWSER_SIGNED_IN.value: _("Signed in to this page"),
    AuditEvent.BROWSER_SIGNED_OUT.value: _("Signed out of this page"),
    AuditEvent.SIGN_IN_FAILED.value: _("A wrong password was typed"),
    AuditEvent.SIGN_IN_REFUSED.value: _(
        "A sign-in was refused, because the account could not be used"
    ),
    AuditEvent.CONFIRMATION_REFUSED.value: _(
        "Another person signed in to confirm an operation of yours; nothing was done"
    ),
    AuditEvent.NEW_ADDRESS.value: _("An app was used from a new place"),
    AuditEvent.TOKEN_REUSED.value: _(
        "A token of an app was used twice or wrongly. It was revoked, because it may have "
        "been stolen"
    ),
    AuditEvent.TOKEN_FOUND.value: _(
        "Somebody found a token of an app and used it to end its session"
    ),
    AuditEvent.APP_ALLOWED.value: _("An app was allowed"),
    AuditEvent.APP_DENIED.value: _("An app was denied"),
    AuditEvent.DATA_EXPORTED.value: _("The account data was downloaded"),
    AuditEvent.PASSWORD_CHANGED.value: _("The password was changed"),
    AuditEvent.PASSWORD_RESET_ASKED.value: _("A new password was requested"),
    AuditEvent.APPLICATION_PASSWORD_MADE.value: _("An application password was created"),
    AuditEvent.APPLICATION_PASSWORD_ENDED.value: _("An application password was revoked"),
    AuditEvent.ADDRESS_ADDED.value: _("An e-mail address was added"),
    AuditEvent.ADDRESS_REMOVED.value: _("An e-mail address was removed"),
    AuditEvent.NUMBER_ADDED.value: _("A phone number was added"),
    AuditEvent.NUMBER_REMOVED.value: _("A phone number was removed"),
    AuditEvent.ADDRESS_BOUND.value: _("The account can be found by an address"),
    AuditEvent.ADDRESS_UNBOUND.value: _("The account can no longer be found by an address"),
    AuditEvent.KEYS_RESET_ALLOWED.value: _("An app was allowed to replace the keys"),
    AuditEvent.KEYS_REPLACED.value: _("The keys of the account were replaced"),
    AuditEvent.LOGIN_TOKEN_GIVEN.value: _("An app received a token to sign in another one"),
    AuditEvent.REGISTRATION_TOKEN_MADE.value: _("A registration token was created"),
    AuditEvent.REGISTRATION_TOKEN_CHANGED.value: _("A registration token was changed"),
    AuditEvent.REGISTRATION_TOKEN_ENDED.value: _("A registration token was revoked"),
    AuditEvent.TERMS_ACCEPTED.value: _("The terms were accepted"),
    AuditEvent.APPROVED.value: _("An administrator approved the account"),
    AuditEvent.APPROVAL_WITHDRAWN.value: _("The account has to be approved again"),
    AuditEvent.LINKED.value: _("The account was linked to a sign-in service"),
    AuditEvent.UNLINKED.value: _("The link to a sign-in service was removed"),
    AuditEvent.RENEWED.value: _("The expiry of the account was changed"),
    AuditEvent.ADMIN_GRANTED.value: _("The account became an administrator"),
    AuditEvent.ADMIN_REVOKED.value: _("The account is no longer an administrator"),
    AuditEvent.USER_TYPE_CHANGED.value: _("An administrator changed the account type"),
    AuditEvent.LOCKED.value: _("The account was locked or suspended"),
    AuditEvent.SUSPENDED.value: _("The account was locked or suspended"),
    AuditEvent.UNLOCKED.value: _("The account was unlocked"),
    AuditEvent.UNSUSPENDED.value: _("The account was unlocked"),
    AuditEvent.FILE_HARMFUL.value: _("An uploaded file was found harmful and was blocked"),
}
"""The sentence for each event of the audit log."""
SPECIAL_TEXTS: Final[Mapping[tuple[str, str | None], str]] = {
    (AuditEvent.BROWSER_SIGNED_OUT.value, SESSION_EXPIRED): _(
        "Signed out of this page automatically, a day after signing in"
    ),
    (AuditEvent.SIGN_IN_REFUSED.value, TAKEN): _(
        "Somebody with the name of this account used a sign-in service and was refused"
    ),
}
"""The sentence for an event with a certain detail."""


def format_time(ts: int | None) -> str:
    """Format a time in UTC, the same for all languages."""
    return (
        "–" if ts is None else datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    )


def detail_for_owner(record: AuditRecord) -> str | None:
    """Return the detail that the owner sees: an app's name without its ID, or who signed in
    instead. The reason of a refusal is left out, since the page showed it."""
    if record.event in (AuditEvent.SIGN_IN_REFUSED.value, AuditEvent.BROWSER_SIGNED_OUT.value):
        return None
    if record.event == AuditEvent.CONFIRMATION_REFUSED.value:
        return (record.detail or "").rpartition(" (")[2].removesuffix(")")
    if record.event in (AuditEvent.APP_ALLOWED.value, AuditEvent.APP_DENIED.value):
        return (record.detail or "").rpartition(" (")[0]
    return record.detail


def describe_event(record: AuditRecord, language: Language) -> str:
    """Describe an event in a sentence."""
    text = SPECIAL_TEXTS.get((record.event, record.detail)) or TEXTS.get(record.event)
    return record.event if text is None else language.gettext(text)
