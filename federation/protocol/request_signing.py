"""Makes, parses and checks the `X-Matrix` header, with which a server signs a request.

The signature covers method, path with query, both server names and the body. This server writes the
header in the form that the oldest servers can read. It parses received headers strictly by RFC
9110, with the two exceptions of the specification (bare values may contain colons, `destination`
may be missing). A header that contains a parameter twice is refused, because two servers could read
it differently.

spec: server-server-api#request-authentication
"""

import re
from typing import Final

import msgspec

from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import InvalidParam, Unauthorized
from federation.protocol.ids import KeyID, ServerName, parse_key_id, parse_server_name
from federation.protocol.signing import SigningKey, is_signature_valid

MAX_HEADER_CHARS: Final = 2048
"""Far more than two server names, a key id and a signature need."""

_SCHEME = re.compile(r"X-Matrix +", re.IGNORECASE)
# RFC 9110 section 5.6.2 (token), 5.6.4 (quoted-string); bare values may have colons besides
_TOKEN_CHARS = "!#$%&'*+.^_`|~0-9A-Za-z-"
_PARAMETER = re.compile(
    rf"(?P<name>[{_TOKEN_CHARS}]+)="
    r'(?:"(?P<quoted>(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e])*)"'
    rf"|(?P<bare>[:{_TOKEN_CHARS}]+))"
)
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_ESCAPED = re.compile(r"\\(.)")


class RequestSignature(msgspec.Struct, frozen=True):
    """The fields of an `X-Matrix` header. `destination` is None for servers older than v1.3."""

    origin: ServerName
    destination: ServerName | None
    key_id: KeyID
    signature: str


def encode_request(
    *,
    method: str,
    uri: str,
    origin: str,
    destination: str | None,
    content: msgspec.Raw | object | None,
) -> bytes:
    """Return the bytes that the signature of a request covers.

    `uri` begins with `/_matrix/` and has the query. `content` is the body as JSON value, or None
    without a body. `msgspec.Raw` must be canonical JSON and is used unchanged. Raises `BadJson`.
    """
    fields = [b'"destination":' + encode_canonical(destination)] if destination is not None else []
    if content is not None:
        encoded = bytes(content) if isinstance(content, msgspec.Raw) else encode_canonical(content)
        fields.insert(0, b'"content":' + encoded)
    fields.append(b'"method":' + encode_canonical(method))
    fields.append(b'"origin":' + encode_canonical(origin))
    fields.append(b'"uri":' + encode_canonical(uri))
    return b"{" + b",".join(fields) + b"}"


def make_authorization(
    key: SigningKey,
    *,
    method: str,
    uri: str,
    origin: ServerName,
    destination: ServerName,
    content: msgspec.Raw | object | None,
) -> str:
    """The value of the `Authorization` header for a request of ours. Arguments as for
    `encode_request`."""
    signature = key.sign(
        encode_request(
            method=method, uri=uri, origin=origin, destination=destination, content=content
        )
    )
    return (
        f'X-Matrix origin="{origin}",destination="{destination}",'
        f'key="{key.key_id}",sig="{signature}"'
    )


def parse_authorization(header: str) -> RequestSignature:
    """Raises `Unauthorized` for what is no well-formed `X-Matrix` header."""
    scheme = _SCHEME.match(header)
    if scheme is None or len(header) > MAX_HEADER_CHARS:
        raise Unauthorized("The request has no X-Matrix signature")
    parameters = _parse_parameters(header, scheme.end())
    try:
        destination = parameters.get("destination")
        return RequestSignature(
            origin=parse_server_name(parameters["origin"]),
            destination=None if destination is None else parse_server_name(destination),
            key_id=parse_key_id(parameters["key"]),
            signature=parameters["sig"],
        )
    except KeyError as error:
        raise Unauthorized(f"The X-Matrix header lacks `{error.args[0]}`") from error
    except InvalidParam as error:
        raise Unauthorized(f"The X-Matrix header is not valid: {error.text}") from error


def check_request(
    claimed: RequestSignature,
    public_key: bytes,
    *,
    method: str,
    uri: str,
    destination: ServerName,
    content: msgspec.Raw | object | None,
) -> None:
    """Check that the request was signed with this key, and was meant for us (`destination`).

    That the key is the origin's, and valid now, is for the keyring to say. Raises `Unauthorized`,
    or `BadJson` for a body that has no canonical form.
    """
    if claimed.destination is not None and claimed.destination != destination:
        raise Unauthorized("The request is signed for another server")
    message = encode_request(
        method=method,
        uri=uri,
        origin=claimed.origin,
        destination=claimed.destination,
        content=content,
    )
    if not is_signature_valid(public_key, message, claimed.signature):
        raise Unauthorized("The signature of the request is wrong")


def _parse_parameters(header: str, position: int) -> dict[str, str]:
    parameters: dict[str, str] = {}
    while True:
        parameter = _PARAMETER.match(header, position)
        if parameter is None:
            raise Unauthorized("The X-Matrix header is malformed")
        name = parameter["name"].lower()
        if name in parameters:
            raise Unauthorized(f"The X-Matrix header has `{name}` twice")
        quoted, bare = parameter["quoted"], parameter["bare"]
        parameters[name] = bare if quoted is None else _ESCAPED.sub(r"\1", quoted)
        position = parameter.end()
        if position == len(header):
            return parameters
        comma = _COMMA.match(header, position)
        if comma is None:
            raise Unauthorized("The X-Matrix header is malformed")
        position = comma.end()
