"""What people are told on a page where a program would get an error: what is wrong, and what they can do."""

from federation.protocol.errors import LimitExceeded, MatrixError, UserDeactivated, UserLocked
from homeserver.services.languages import Language


def explain(error: MatrixError, language: Language) -> str:
    """A sentence or two in the reader's language; the text of the error itself for one that pages do not expect."""
    _ = language.gettext
    match error:
        case LimitExceeded():
            wait = error.fields.get("retry_after_ms")
            minutes = max(1, -(-wait // 60000)) if isinstance(wait, int) else 1
            return _("Too many attempts. Wait %(minutes)s min, then try again.") % {"minutes": minutes}
        case UserLocked():
            return _("This account is locked. Ask the people who run this server.")
        case UserDeactivated():
            return _("This account has been closed.")
        case _:
            return error.text
