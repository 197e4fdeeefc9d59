"""Send to-device messages. spec: client-server-api#send-to-device-messaging"""

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.encryption.to_device import ToDevice


class MessagesBody(msgspec.Struct, frozen=True):
    """Raw message contents by user and device. `*` means every device of the user."""

    messages: dict[str, dict[str, msgspec.Raw]]


@endpoint(
    "PUT",
    "/_matrix/client/v3/sendToDevice/{event_type}/{txn_id}",
    "/_matrix/client/r0/sendToDevice/{event_type}/{txn_id}",
    auth=Auth.GUEST,
    max_body=4 * 1024 * 1024,
    while_suspended=True,
)
async def send_to_device(
    to_device: ToDevice, caller: Requester, *, event_type: str, txn_id: str, body: MessagesBody
) -> Empty:
    """Send messages to devices, once for each transaction ID."""
    await to_device.do_send(caller, event_type, txn_id, body.messages)
    return EMPTY
