"""Server discovery, contact of the operator and key of the policy server:
`/.well-known/matrix/server`, `…/support` and `…/policy_server`.

(For clients see `client.py`.)
"""

from federation.protocol.ids import ServerName, host_of, is_user_id


class ServerDiscovery:
    """The documents. None: this server does not serve that document."""

    def __init__(
        self,
        *,
        server_name: ServerName,
        delegates_to_443: bool = False,
        admin_contact: str | None = None,
        support_page: str | None = None,
        policy_server_public_key: str | None = None,
    ) -> None:
        """`admin_contact`: a user ID, an e-mail address, a `mailto:` URI or the `https://` URL of a
        page. `policy_server_public_key`: Ed25519, in unpadded base64."""
        self.server: dict[str, object] | None = None
        if delegates_to_443:
            self.server = {"m.server": f"{host_of(server_name)}:443"}
        self.support = _support(admin_contact, support_page)
        self.policy_server: dict[str, object] | None = None
        if policy_server_public_key is not None:
            self.policy_server = {"public_keys": {"ed25519": policy_server_public_key}}


def _support(contact: str | None, page: str | None) -> dict[str, object] | None:
    """Build the support document. spec: client-server-api#getwell-knownmatrixsupport"""
    contacts = []
    if contact is not None:
        address = contact.removeprefix("mailto:")
        if is_user_id(contact):
            contacts.append({"matrix_id": contact, "role": "m.role.admin"})
        elif "@" in address and "://" not in address:
            contacts.append({"email_address": address, "role": "m.role.admin"})
        else:
            page = page or contact
    document: dict[str, object] = {}
    if contacts:
        document["contacts"] = contacts
    if page is not None:
        document["support_page"] = page
    return document or None
