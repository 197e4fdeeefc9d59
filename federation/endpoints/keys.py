"""This server's own keys, for whoever checks its signatures. spec: server-server-api#publishing-keys"""

import msgspec

from federation.own_keys import OwnKeys
from federation.protocol.endpoint import Auth, endpoint


@endpoint("GET", "/_matrix/key/v2/server", "/_matrix/key/v2/server/{key_id}", auth=Auth.NONE, resource="keys")
async def get_server_keys(keys: OwnKeys, *, key_id: str = "") -> msgspec.Raw:  # noqa: ARG001 - the path has it
    """All keys; the name of one in the path is deprecated and changes nothing."""
    return keys.get_document()
