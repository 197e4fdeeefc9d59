"""Converts requests into the arguments of handlers.

A handler's signature is read once, at start-up. The resulting `Binding` then makes the arguments of
each call. An invalid request gets a Matrix error; if a parameter is wrong, the error names it. A
wrong declaration of an endpoint raises `DeclarationError`, which stops start-up.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    BinaryIO,
    Final,
    Literal,
    NewType,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import inspect as kinds

from federation.api.endpoint import QueryNames
from federation.api.request import Peer, RequestContext
from federation.protocol.canonical_json import MAX_DEPTH, MAX_SENT_DEPTH, check_text_depth
from federation.protocol.errors import BadJson, InvalidParam, MatrixError, MissingParam, NotJson
from federation.protocol.ids import (
    DeviceID,
    EventID,
    KeyID,
    RoomAlias,
    RoomID,
    ServerName,
    UserID,
    parse_device_id,
    parse_event_id,
    parse_key_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
)
from homeserver.api.endpoint import OPTIONAL_AUTH, Auth, Endpoint
from homeserver.api.requester import Requester
from homeserver.http.request_head import URI_CHARACTERS
from storage.cache import LRU

MAX_QUERY_FIELDS: Final = 200
MAX_CACHED_FIELD: Final = 2048
"""The longest query field that is cached, in bytes."""
CACHED_FIELDS: Final = 64
_FLAT: Final = (
    kinds.StrType,
    kinds.IntType,
    kinds.FloatType,
    kinds.BoolType,
    kinds.NoneType,
    kinds.LiteralType,
    kinds.RawType,
)
"""Types of msgspec whose values do not nest or are not decoded."""
_MAX_INT_DIGITS: Final = 16

TextParser = Callable[[str], object]

_IDENTIFIER_PARSERS: Final[Mapping[object, TextParser]] = MappingProxyType(
    {
        UserID: parse_user_id,
        RoomID: parse_room_id,
        EventID: parse_event_id,
        RoomAlias: parse_room_alias,
        ServerName: parse_server_name,
        DeviceID: parse_device_id,
        KeyID: parse_key_id,
    }
)
"""The parsers of the protocol core, so a malformed identifier never reaches a handler."""

_REQUIRED: Final = object()
_REQUEST_TYPES: Final = (Requester, RequestContext, Peer)


class DeclarationError(Exception):
    """An endpoint is declared wrongly. The text is a sentence for the developer."""


class _Parameter(msgspec.Struct, frozen=True):
    name: str
    wire_names: tuple[str, ...]
    parse: TextParser
    repeated: bool
    default: object

    def from_text(self, text: str) -> object:
        try:
            return self.parse(text)
        except MatrixError as error:
            raise InvalidParam(f"{self.wire_names[0]}: {error.text}") from None
        except ValueError as error:
            raise InvalidParam(f"{self.wire_names[0]}: {error}") from None

    def from_query(self, values: Sequence[str], query: Mapping[str, Sequence[str]]) -> object:
        """Parse the values of one of the parameter's names; the first name that is present
        counts."""
        if len(self.wire_names) > 1:
            values = next(query[name] for name in self.wire_names if name in query)
        return (
            [self.from_text(value) for value in values]
            if self.repeated
            else self.from_text(values[0])
        )


class _QueryReader:
    """Reads the query parameters of one handler."""

    __slots__ = ("_are_plain", "_by_name", "_cacheable", "cached", "required")

    def __init__(self, *, parameters: Sequence[_Parameter], cacheable: bool) -> None:
        """`cacheable`: parsed values may be cached, except tokens."""
        self._by_name = {name: each for each in parameters for name in each.wire_names}
        self.required = [each for each in parameters if each.default is _REQUIRED]
        """The parameters that the query must have."""
        self._are_plain = not any(each.repeated or len(each.wire_names) > 1 for each in parameters)
        self._cacheable = cacheable
        self.cached: LRU[str, tuple[str, object]] = LRU(max_entries=CACHED_FIELDS)
        """Parsed arguments by raw field: clients send the same filter and timeout with each
        /sync."""

    def read(self, query: bytes, arguments: dict[str, object]) -> None:
        """Add the arguments that a query holds. Raises `InvalidParam`."""
        if not self._are_plain or query.translate(None, URI_CHARACTERS) or b"%00" in query:
            self.read_fields(find_fields(query), arguments)
            return
        parts = query.decode().split("&")
        if len(parts) > MAX_QUERY_FIELDS:
            raise _too_many()
        for part in parts:
            known = self.cached.get(part)
            if known is None:
                self._read_field(part, arguments)
            elif known[0] not in arguments:  # the first value counts
                arguments[known[0]] = known[1]

    def _read_field(self, part: str, arguments: dict[str, object]) -> None:
        name, _, value = part.partition("=")
        has_escapes = "%" in part or "+" in part
        if has_escapes:
            name, value = _unescape(name), _unescape(value)
        parameter = self._by_name.get(name)
        if parameter is None or parameter.name in arguments:
            return
        argument = arguments[parameter.name] = parameter.from_text(value)
        # other fields parse quickly, and most differ each time
        costs = has_escapes or parameter.parse is not str
        if (
            costs
            and self._cacheable
            and not name.endswith("oken")
            and len(part) <= MAX_CACHED_FIELD
        ):
            self.cached.put(part, (parameter.name, argument))

    def read_fields(
        self, fields: Mapping[str, Sequence[str]], arguments: dict[str, object]
    ) -> None:
        """Add the arguments that parsed fields hold. Raises `InvalidParam`."""
        for name, values in fields.items():
            parameter = self._by_name.get(name)
            if parameter is not None:
                arguments[parameter.name] = parameter.from_query(values, fields)


class Binding(msgspec.Struct, frozen=True):
    """The information to call one handler."""

    positional: tuple[Any, ...]
    """The types of the positional parameters: services, and special types that the request fills
    in."""
    filled_positions: tuple[tuple[int, object], ...]
    """The positions and types of the special types."""
    parsed_in_path: tuple[_Parameter, ...]
    """The path parameters that are not plain text."""
    query: _QueryReader
    decode_body: Callable[[bytes], object] | None
    takes_file: bool
    optional_in_path: frozenset[str]

    def make_keywords(
        self, path_names: tuple[str, ...], path_values: list[str], query: bytes
    ) -> dict[str, object]:
        """Return the keyword arguments of a request, without `body`. Raises `InvalidParam`,
        `MissingParam`."""
        arguments: dict[str, object] = {}
        if path_values:
            arguments.update(zip(path_names, path_values, strict=True))
            for parameter in self.parsed_in_path:
                if parameter.name in arguments:
                    arguments[parameter.name] = parameter.from_text(str(arguments[parameter.name]))
        if query:
            self.query.read(query, arguments)
        for parameter in self.query.required:
            if parameter.name not in arguments:
                raise MissingParam(f"The query parameter {parameter.wire_names[0]} is missing")
        return arguments


def find_fields(query: bytes) -> Mapping[str, Sequence[str]]:
    """Return all values of each field of a query. Raises `InvalidParam`."""
    fields: dict[str, list[str]] = {}
    try:
        parts = query.decode().split("&")
    except UnicodeDecodeError:
        raise _not_text() from None
    if len(parts) > MAX_QUERY_FIELDS:
        raise _too_many()
    has_escapes = b"%" in query or b"+" in query
    for part in parts:
        if part:
            name, _, value = part.partition("=")
            if has_escapes:
                name, value = _unescape(name), _unescape(value)
            fields.setdefault(name, []).append(value)
    if b"\0" in query or b"%00" in query:
        raise InvalidParam("The query contains a NUL character")
    return fields


def _too_many() -> InvalidParam:
    return InvalidParam("The query has too many fields")


def _not_text() -> InvalidParam:
    return InvalidParam("The query is not valid UTF-8")


def _unescape(text: str) -> str:
    """Decode percent escapes and plus signs. Raises `InvalidParam`."""
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise _not_text() from None


def known_services(services: Mapping[type, object]) -> Mapping[Any, object]:
    """Return the values that positional parameters may have: services by type, and the special
    types, which stand for themselves."""
    return {**services, **{each: each for each in _REQUEST_TYPES}}


def find_services(
    declaration: Endpoint, binding: Binding, known: Mapping[Any, object]
) -> tuple[object, ...]:
    """Return the positional arguments of a handler. Special types stand for themselves until the
    request fills them in. Raises `DeclarationError`."""
    try:
        return tuple([known[each] for each in binding.positional])
    except KeyError as missing:
        type_, at = missing.args[0], binding.positional.index(missing.args[0])
        where = f"{declaration.handler.__module__}.{declaration.handler.__qualname__}"
        name = list(_signature(declaration.handler))[at]
        raise DeclarationError(
            f"{where}: no such service is provided: {getattr(type_, '__name__', type_)} ({name})"
        ) from None


def bind(declaration: Endpoint) -> Binding:
    """Read the signature of a handler. Raises `DeclarationError`."""
    handler = declaration.handler
    where = f"{handler.__module__}.{handler.__qualname__}"
    signature = _signature(handler)
    in_path = [path_names(path) for path in declaration.paths]
    named = set().union(*in_path)
    positional: list[object] = []
    path_parameters: dict[str, _Parameter] = {}
    query_parameters: list[_Parameter] = []
    decode_body: Callable[[bytes], object] | None = None
    takes_file = False
    for name, (parameter, hint) in signature.items():
        if hint is None:
            raise DeclarationError(f"{where}: the parameter {name} has no type")
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            positional.append(_kind(where, name, hint, declaration.auth))
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise DeclarationError(
                f"{where}: the parameter {name} is neither a service nor a part of the request"
            )
        elif name == "body":
            takes_file = hint is BinaryIO
            may_be_empty = parameter.default is not inspect.Parameter.empty
            max_depth = MAX_DEPTH if declaration.auth is Auth.SERVER else MAX_SENT_DEPTH
            decode_body = (
                None if takes_file else _body_decoder(where, hint, may_be_empty, max_depth)
            )
        else:
            default = (
                _REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
            )
            described = _describe(where, name, hint, default)
            if name in named:
                path_parameters[name] = described
            else:
                query_parameters.append(described)
    for path, names in zip(declaration.paths, in_path, strict=True):
        if not path.startswith("/"):
            raise DeclarationError(f"{where}: the path {path} does not begin with a slash")
        for name in names:
            if name not in path_parameters:
                raise DeclarationError(
                    f"{where}: the path {path} has {{{name}}}, but there is no parameter {name}"
                )
        for name in named - names:
            if path_parameters[name].default is _REQUIRED:
                raise DeclarationError(
                    f"{where}: the path {path} leaves out {name}, which has no default"
                )
    optional = frozenset(
        name for name, found in path_parameters.items() if found.default is not _REQUIRED
    )
    return Binding(
        positional=tuple(positional),
        filled_positions=tuple(
            (at, each) for at, each in enumerate(positional) if each in _REQUEST_TYPES
        ),
        parsed_in_path=tuple(each for each in path_parameters.values() if each.parse is not str),
        # unauthenticated requests carry secrets: codes, sessions, secrets of a browser
        query=_QueryReader(
            parameters=query_parameters,
            cacheable=declaration.auth not in (Auth.NONE, *OPTIONAL_AUTH),
        ),
        decode_body=decode_body,
        takes_file=takes_file,
        optional_in_path=optional,
    )


@cache
def _signature(handler: Callable[..., Any]) -> Mapping[str, tuple[inspect.Parameter, Any]]:
    """Return each parameter with its type, or None if it has none. Cached, since a process with
    several servers asks for the same handlers again."""
    hints = get_type_hints(handler, include_extras=True)
    return {
        name: (each, hints.get(name))
        for name, each in inspect.signature(handler).parameters.items()
    }


def path_names(path: str) -> set[str]:
    """Return the parameter names in a declared path."""
    return {segment[1:-1] for segment in path.split("/") if segment.startswith("{")}


def _kind(where: str, name: str, hint: Any, auth: Auth) -> object:
    """Return the type of a positional parameter: a service, or a type that the request fills in."""
    if hint is RequestContext:
        return hint
    if hint is Peer:
        if auth is not Auth.SERVER:
            raise DeclarationError(f"{where}: takes a Peer, but its auth is {auth.value}")
        return hint
    inner, optional = _without_none(hint)
    if inner is Requester:
        if auth in (Auth.NONE, Auth.SERVER):
            raise DeclarationError(f"{where}: takes a Requester, but its auth is {auth.value}")
        if (auth in OPTIONAL_AUTH) is not optional:
            raise DeclarationError(
                f"{where}: {name} must be `Requester | None` if, and only if, auth is optional"
            )
        return inner
    return hint


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, UnionType):
        rest = [each for each in get_args(hint) if each is not NoneType]
        if len(rest) == 1:
            return rest[0], True
    return hint, False


def _describe(where: str, name: str, hint: Any, default: object) -> _Parameter:
    wire_names: tuple[str, ...] = (name.rstrip("_"),)
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        for extra in extras:
            if isinstance(extra, QueryNames):
                wire_names = extra.names
    hint, _ = _without_none(hint)
    repeated = get_origin(hint) is list
    if repeated:
        (hint,) = get_args(hint)
    parse = _text_parser(hint)
    if parse is None:
        raise DeclarationError(
            f"{where}: the parameter {name} has the type {hint}, which cannot be read from text"
        )
    return _Parameter(name, wire_names, parse, repeated, default)


def _text_parser(hint: Any) -> TextParser | None:
    if isinstance(hint, NewType):
        return _IDENTIFIER_PARSERS.get(hint)
    if hint is str:
        return str
    if hint is bool:
        return _parse_bool
    if hint is int:
        return _parse_int
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choice({str(member.value): member for member in hint})
    if get_origin(hint) is Literal:
        return _choice({str(value): value for value in get_args(hint)})
    return None


def _parse_bool(text: str) -> bool:
    if text == "true":
        return True
    if text == "false":
        return False
    raise ValueError("must be true or false")


def _parse_int(text: str) -> int:
    digits = text[1:] if text.startswith("-") else text
    if not (digits.isdigit() and digits.isascii() and len(digits) <= _MAX_INT_DIGITS):
        raise ValueError("must be a whole number")
    return int(text)


def _choice(choices: Mapping[str, object]) -> TextParser:
    def parse(text: str) -> object:
        try:
            return choices[text]
        except KeyError:
            raise ValueError(f"must be one of {', '.join(choices)}") from None

    return parse


def _body_decoder(
    where: str, hint: Any, may_be_empty: bool, max_depth: int
) -> Callable[[bytes], object]:
    if hint is bytes:
        return bytes
    is_struct = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
    if is_struct or hint is dict or get_origin(hint) is dict or hint is msgspec.Raw:
        return json_decoder(hint, may_be_empty=may_be_empty, max_depth=max_depth)
    raise DeclarationError(f"{where}: a body of the type {hint} cannot be read")


def json_decoder(
    hint: Any, *, may_be_empty: bool, max_depth: int = MAX_SENT_DEPTH
) -> Callable[[bytes], Any]:
    """Return a decoder for bodies of that type. It raises BadJson, NotJson.

    `may_be_empty`: an empty body stands for `{}`. Otherwise it is refused, so that a truncated
    request cannot set a state to `{}`. `max_depth`: the limit of nesting. The reader of a Raw
    inside the body has to check its content.
    """
    is_raw = hint is msgspec.Raw
    # msgspec does not decode the content of a Raw, and would accept text that is not UTF-8
    decoder = msgspec.json.Decoder(dict if is_raw else hint)
    may_be_deep = _takes_any(kinds.type_info(decoder.type))

    def decode(body: bytes) -> object:
        if not body:
            if not may_be_empty:
                raise NotJson("The body is empty but must be a JSON object")
            body = b"{}"
        try:
            decoded: object = decoder.decode(body)
        except msgspec.ValidationError as error:
            raise BadJson(str(error)) from None
        except RecursionError:
            raise BadJson("The JSON is nested too deep") from None
        except UnicodeDecodeError:
            raise NotJson("The body is not valid UTF-8") from None
        except ValueError as error:
            raise NotJson(f"The body is not valid JSON: {error}") from None
        if may_be_deep:
            check_text_depth(body, max_depth)
        return msgspec.Raw(body) if is_raw else decoded

    return decode


def _takes_any(kind: kinds.Type, enclosing: tuple[type, ...] = ()) -> bool:
    """Return whether values of the type can nest without limit: they hold any value, or one of
    their own type."""
    match kind:
        case kinds.AnyType():
            return True
        case kinds.StructType():
            inner = (*enclosing, kind.cls)
            return kind.cls in enclosing or any(
                _takes_any(field.type, inner) for field in kind.fields
            )
        case kinds.DictType():
            return _takes_any(kind.value_type, enclosing)
        case kinds.UnionType():
            return any(_takes_any(each, enclosing) for each in kind.types)
        case kinds.ListType() | kinds.VarTupleType():
            return _takes_any(kind.item_type, enclosing)
    return not isinstance(kind, _FLAT)
