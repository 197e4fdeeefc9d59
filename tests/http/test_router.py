"""Routing requests to handlers, and the arguments that handlers receive."""

import json
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.api.request import Peer, RequestContext
from federation.protocol.canonical_json import MAX_SENT_DEPTH
from federation.protocol.ids import EventID
from homeserver.api.endpoint import Auth, BodyLimit, endpoint
from homeserver.api.requester import Requester
from homeserver.http.parameters import DeclarationError
from homeserver.http.rate_limits import RateLimiter
from homeserver.http.request_authorization import RequestAuthorizer
from homeserver.http.router import Handler, Router
from tests.helpers.http import Client, client_for
from tests.http import endpoints
from tests.http.conftest import TOKENS
from tests.http.endpoints import Bell

TAG = "/_matrix/client/v3/user/@alice:example.org/rooms/!r:example.org/tags/"
SEARCH = "/_matrix/client/v3/search?needed=x"
STATE = "/_matrix/client/v3/rooms/!r:example.org/state"


def test_path_body_and_caller_reach_the_handler(client: Client) -> None:
    response = client.request("PUT", TAG + "m.favourite", token="alice", json={"order": 0.5})
    assert response.status == 200
    assert response.json == {
        "caller": "@alice:example.org",
        "user": "@alice:example.org",
        "room": "!r:example.org",
        "tag": "m.favourite",
        "order": 0.5,
    }
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.body)


@pytest.mark.parametrize(
    ("segment", "value"),
    [
        ("u.a%2Fb", "u.a/b"),
        ("%F0%9F%92%A9", "💩"),
        ("a+b", "a+b"),
        ("100%", "100%"),
        ("%252F", "%2F"),
        ("a;b", "a;b"),
    ],
)
def test_a_segment_is_decoded_once_and_stays_one_segment(
    client: Client, segment: str, value: str
) -> None:
    assert client.request("PUT", TAG + segment, token="alice").json["tag"] == value


def test_the_last_segment_is_parsed_each_time(client: Client) -> None:
    """Matches are cached by the path before the last segment, which may be any text, also escaped
    or missing."""
    for segment in ("a", "b", "a%2Fb", "%F0%9F%92%A9", "c.d-e_f~", "b"):
        assert client.request("PUT", TAG + segment, token="alice").json["tag"] == unquote(segment)
    for path, status in ((TAG, 404), (TAG + "%FF", 400), (TAG + "a%00b", 400), (TAG + "a/b", 404)):
        assert client.request("PUT", path, token="alice").status == status
    assert client.request("DELETE", TAG + "a", token="alice").errcode == "M_UNRECOGNIZED"
    assert (
        client.request("PUT", TAG.replace("rooms/!r", "rooms/!s") + "a", token="alice").status
        == 200
    )


def test_encoded_literals_and_sigils_match_the_same_path(client: Client) -> None:
    path = "/%5Fmatrix/client/v3/rooms/%21r%3Aexample.org/state"
    assert client.request("GET", path).json == ["!r:example.org"]


@pytest.mark.parametrize("path", [TAG + "%FF", TAG + "a%00b"])
def test_a_path_that_is_not_text_is_refused(client: Client, path: str) -> None:
    response = client.request("PUT", path, token="alice")
    assert (response.status, response.errcode) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (STATE + "/m.room.name/key", ["!r:example.org", "m.room.name", "key"]),
        (STATE + "/m.room.name/", ["!r:example.org", "m.room.name", ""]),
        (STATE + "/m.room.name", ["!r:example.org", "m.room.name", ""]),
        (STATE, ["!r:example.org"]),
        (STATE + "/", ["!r:example.org"]),
    ],
)
def test_a_state_key_may_be_empty_or_left_out(
    client: Client, path: str, expected: list[str]
) -> None:
    assert client.request("GET", path).json == expected


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nothing",
        "/_matrix/client/v3/searches",
        "/_matrix/client/v3/search/more",
        "//",
        STATE + "/a/b/c",
        "*",
    ],
)
def test_unknown_paths_are_unrecognized(client: Client, path: str) -> None:
    response = client.request("GET", path)
    assert (response.status, response.errcode) == (404, "M_UNRECOGNIZED")


def test_a_wrong_method_gets_the_allowed_ones(client: Client) -> None:
    response = client.request("DELETE", TAG + "x")
    assert (response.status, response.errcode, response.headers["allow"]) == (
        405,
        "M_UNRECOGNIZED",
        "PUT, OPTIONS",
    )


def test_an_unstable_path_reaches_the_same_endpoint(client: Client) -> None:
    assert (
        client.request("GET", "/_matrix/client/unstable/org.example/search?needed=1").json["needed"]
        == "1"
    )


def test_head_is_get_without_a_body(client: Client) -> None:
    head, get = client.request("HEAD", STATE), client.request("GET", STATE)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(get.body))


def test_query_parameters_have_their_types(client: Client) -> None:
    query = (
        "&limit=-3&full=true&colour=blue&dir=b&server=a&server=b%20c&at=!r:x.org&from=t1"
        "&org.example.use_after=true"
    )
    assert client.request("GET", SEARCH + query).json == {
        "needed": "x",
        "limit": -3,
        "full": True,
        "colour": "blue",
        "dir": "b",
        "server": ["a", "b c"],
        "at": "!r:x.org",
        "from": "t1",
        "after": True,
    }


def test_a_repeated_query_gives_the_same_arguments(client: Client) -> None:
    """Parsed fields are cached for one endpoint only, and errors are not cached."""
    for _ in range(3):
        response = client.request("GET", SEARCH + "&limit=5&server=a")
        assert (response.json["needed"], response.json["limit"], response.json["server"]) == (
            "x",
            5,
            ["a"],
        )
        assert client.request("GET", STATE + "?needed=x&limit=5&server=a").json == [
            "!r:example.org"
        ]
        assert client.request("GET", SEARCH + "&limit=many").status == 400
        assert (
            client.request("GET", "/_matrix/client/v3/search?limit=5").errcode == "M_MISSING_PARAM"
        )


def test_cached_fields_belong_to_one_endpoint_and_errors_are_not_cached(client: Client) -> None:
    known = "/_matrix/client/v3/known"
    for _ in range(3):
        assert client.request("GET", known + "?needed=%78&limit=5", token="alice").json == ["x", 5]
        assert client.request("GET", known + "_too?needed=%78&limit=5", token="alice").json == [
            "x",
            "5",
        ]
        assert client.request("GET", known + "?needed=%78&limit=many", token="alice").status == 400
        assert (
            client.request("GET", known + "_too?limit=5", token="alice").errcode
            == "M_MISSING_PARAM"
        )


def cached_fields(client: Client) -> set[str]:
    """Return the query fields that are cached."""
    table = client.site.router._table  # private: the router lists paths, not bindings
    routes = [route for leaf in table.leaves() for route in leaf.values()]
    return {part for route in routes for part in route.binding.query.cached}


@pytest.mark.parametrize(
    ("path", "token"),
    [
        ("/_matrix/client/v3/search?needed={}", None),
        ("/_matrix/client/v3/who?code={}", None),
        ("/_matrix/client/v3/anybody?code={}", "alice"),
        ("/_matrix/client/v3/known?needed=x&access_token={}", "alice"),
        ("/_matrix/client/v3/known?needed=x&loginToken={}", "alice"),
    ],
)
@pytest.mark.parametrize("secret", ["secret", "secret%3D", "4%2F0AfJ"])
def test_secrets_in_queries_are_not_cached(
    client: Client, path: str, token: str | None, secret: str
) -> None:
    """Unauthenticated requests carry codes and sessions, also escaped."""
    client.request("GET", path.format("x"), token=token)
    before = cached_fields(client)
    assert client.request("GET", path.format(secret), token=token).status == 200
    assert cached_fields(client) == before
    client.request("GET", f"/_matrix/client/v3/known?needed=%31{secret}{hash(path)}", token="alice")
    assert cached_fields(client) != before, "a harmless field is cached"


def test_query_parameters_have_their_defaults(client: Client) -> None:
    response = client.request("GET", SEARCH).json
    assert (response["limit"], response["full"], response["server"], response["at"]) == (
        10,
        False,
        [],
        None,
    )


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("&limit=many", "limit"),
        ("&limit=" + "9" * 400, "limit"),
        ("&limit=1_0", "limit"),
        ("&limit=", "limit"),
        ("&full=1", "full"),
        ("&colour=green", "colour"),
        ("&dir=x", "dir"),
        ("&at=nonsense", "at"),
        ("&from=%FF", "query"),
        ("&from=%00", "query"),
        ("&a=1" * 300, "query"),
    ],
)
def test_a_bad_query_parameter_is_named(client: Client, query: str, named: str) -> None:
    response = client.request("GET", SEARCH + query)
    assert (response.status, response.errcode) == (400, "M_INVALID_PARAM")
    assert named in response.json["error"]


def test_a_missing_query_parameter_is_named(client: Client) -> None:
    response = client.request("GET", "/_matrix/client/v3/search")
    assert (response.status, response.errcode) == (400, "M_MISSING_PARAM")
    assert "needed" in response.json["error"]


def test_an_identifier_in_the_path_is_checked(client: Client) -> None:
    response = client.request("GET", "/_matrix/client/v3/rooms/nonsense/state")
    assert (response.status, response.errcode) == (400, "M_INVALID_PARAM")
    assert "room_id" in response.json["error"]


def test_an_empty_body_is_an_empty_object_if_the_body_is_optional(client: Client) -> None:
    assert client.request("PUT", TAG + "x", token="alice").json["order"] is None
    assert client.request("POST", "/_matrix/client/v3/object").errcode == "M_NOT_JSON"


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        (b"{", "M_NOT_JSON"),
        (b"nonsense", "M_NOT_JSON"),
        (b"", "M_NOT_JSON"),
        (b'{"a": "\xff"}', "M_NOT_JSON"),
        (b'{"a": "\\ud800"}', "M_NOT_JSON"),
        (b"{} {}", "M_NOT_JSON"),
        (b'{"a": NaN}', "M_NOT_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b"null", "M_BAD_JSON"),
        (b"[" * 60_000, "M_BAD_JSON"),
    ],
)
@pytest.mark.parametrize("path", ["/_matrix/client/v3/object", "/_matrix/client/v3/raw"])
def test_a_body_that_is_not_an_object_is_refused(
    client: Client, path: str, body: bytes, errcode: str
) -> None:
    response = client.request("POST", path, body=body)
    assert (response.status, response.errcode) == (400, errcode)


def test_huge_numbers_are_accepted_or_refused(client: Client) -> None:
    for number in (b"1e999", b"-1e999", b"9" * 5000, b"-" + b"9" * 30, b"0." + b"1" * 5000):
        for path in ("object", "raw"):
            response = client.request(
                "POST", "/_matrix/client/v3/" + path, body=b'{"a":%s}' % number
            )
            assert response.status in (200, 400), (path, number[:10], response.body[:200])


def test_deep_nesting_is_refused(client: Client) -> None:
    for body in (
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"a":' + b"[" * 25_000 + b"]" * 25_000 + b"}",
    ):
        for path in ("object", "raw"):
            response = client.request("POST", "/_matrix/client/v3/" + path, body=body)
            assert (response.status, response.errcode) == (400, "M_BAD_JSON")


@pytest.mark.parametrize("path", ["object", "raw"])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"}]\\"":', b"}")])
def test_the_nesting_limit_does_not_depend_on_the_python_version(
    client: Client, path: str, opening: bytes, closing: bytes
) -> None:
    for depth, status in ((MAX_SENT_DEPTH, 200), (MAX_SENT_DEPTH + 1, 400), (900, 400)):
        body = b'{"a":%b0%b}' % (opening * (depth - 1), closing * (depth - 1))
        assert client.request("POST", "/_matrix/client/v3/" + path, body=body).status == status, (
            depth
        )


def test_a_body_may_be_wide(client: Client) -> None:
    body = b'{"a":[%b]}' % b",".join([b'{"b":["{"]}'] * 1000)
    for path in ("object", "raw"):
        assert client.request("POST", "/_matrix/client/v3/" + path, body=body).status == 200


def test_a_schema_error_names_its_place(client: Client) -> None:
    response = client.request("PUT", TAG + "x", token="alice", json={"words": ["a", 3]})
    assert (response.status, response.errcode) == (400, "M_BAD_JSON")
    assert "$.words[1]" in response.json["error"]


def test_raw_bytes_pass_unchanged(client: Client) -> None:
    body = b' {"b" : 1.0, "a":[ ]} '
    assert client.request("POST", "/_matrix/client/v3/raw", body=body).body.strip() == body.strip()


def test_the_content_type_does_not_matter(client: Client) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.request(
        "POST", "/_matrix/client/v3/object", json={"a": 1}, headers=headers
    ).json == {"a": 1}


def test_a_file_is_not_json_and_may_be_large(client: Client) -> None:
    response = client.request(
        "POST", "/_matrix/media/v3/upload?filename=x", body=b"\xff" * (2 << 20)
    )
    assert response.json == {"bytes": 2 << 20, "filename": "x"}


def test_routes_are_listed_with_all_their_paths() -> None:
    router = Router(
        sources=[endpoints],
        services={Bell: Bell()},
        authorizer=RequestAuthorizer(limiter=_limiter(), tokens=TOKENS),
    )
    assert ("GET", "/_matrix/client/unstable/org.example/search") in router.routes()
    assert (
        "PUT",
        "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}",
    ) in router.routes()


# Declarations that stop start-up.


def _limiter() -> RateLimiter:
    no_clock: Any = None
    return RateLimiter(clock=no_clock, rates={})


def _build(handler: Any) -> None:
    Router(
        sources=[handler],
        services={},
        authorizer=RequestAuthorizer(limiter=_limiter(), tokens=TOKENS),
    )


def _missing_parameter() -> Any:
    @endpoint("GET", "/a/{b}", auth=Auth.NONE)
    async def get_a() -> None: ...

    return get_a


def _missing_service() -> Any:
    @endpoint("GET", "/a", auth=Auth.NONE)
    async def get_a(bell: Bell) -> None: ...

    return get_a


def _unreadable_type() -> Any:
    @endpoint("GET", "/a", auth=Auth.NONE)
    async def get_a(*, when: complex) -> None: ...

    return get_a


def _untyped() -> Any:
    async def get_a(*, when) -> None: ...  # type: ignore[no-untyped-def]

    return endpoint("GET", "/a", auth=Auth.NONE)(get_a)


def _requester_without_auth() -> Any:
    @endpoint("GET", "/a", auth=Auth.NONE)
    async def get_a(caller: Requester) -> None: ...

    return get_a


def _not_optional() -> Any:
    @endpoint("GET", "/a", auth=Auth.OPTIONAL)
    async def get_a(caller: Requester) -> None: ...

    return get_a


def _no_checker() -> Any:
    @endpoint("GET", "/a", auth=Auth.SERVER)
    async def get_a(peer: Peer) -> None: ...

    return get_a


def _alias_leaves_out_too_much() -> Any:
    @endpoint("GET", "/a/{event_id}", "/a", auth=Auth.NONE)
    async def get_a(*, event_id: EventID) -> None: ...

    return get_a


def _relative() -> Any:
    @endpoint("GET", "a", auth=Auth.NONE)
    async def get_a(context: RequestContext) -> None: ...

    return get_a


def _body_of_text() -> Any:
    @endpoint("PUT", "/a", auth=Auth.NONE)
    async def put_a(*, body: str) -> None: ...

    return put_a


def _unknown_limit() -> Any:
    @endpoint("PUT", "/a", auth=Auth.NONE, max_body=BodyLimit.UPLOAD)
    async def put_a(*, body: bytes) -> None: ...

    return put_a


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (_missing_parameter, "no parameter b"),
        (_missing_service, "no such service is provided: Bell"),
        (_unreadable_type, "cannot be read from text"),
        (_untyped, "has no type"),
        (_requester_without_auth, "auth is none"),
        (_not_optional, "must be `Requester | None`"),
        (_no_checker, "there is no checker for it"),
        (_alias_leaves_out_too_much, "leaves out event_id"),
        (_relative, "does not begin with a slash"),
        (_body_of_text, "cannot be read"),
        (_unknown_limit, "the size of max_upload_size is not given"),
    ],
)
def test_a_wrong_declaration_is_a_clear_error(declare: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        _build(declare())


def test_two_handlers_for_one_path_are_refused() -> None:
    with pytest.raises(DeclarationError, match="is already"):
        Router(
            sources=[_same(), _same()],
            services={},
            authorizer=RequestAuthorizer(limiter=_limiter()),
        )


def _same() -> Handler:
    @endpoint("GET", "/a", auth=Auth.NONE)
    async def get_a() -> None: ...

    return get_a


# Any request gets a Matrix response.

_ANY = client_for([endpoints], {Bell: Bell()}, tokens=TOKENS)
_PATHS = [
    TAG + "x",
    SEARCH,
    STATE,
    "/_matrix/client/v3/object",
    "/_matrix/client/v3/raw",
    "/_matrix/client/v3/who",
]
_TARGETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)


@settings(max_examples=200, deadline=None)
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "BREW"]),
    path=st.one_of(
        _TARGETS.map("/".__add__), st.tuples(st.sampled_from(_PATHS), _TARGETS).map("".join)
    ),
    body=st.one_of(st.none(), st.binary(max_size=100)),
    token=st.sampled_from([None, "alice", "nobody"]),
)
def test_any_path_and_body_get_a_matrix_response(
    method: str, path: str, body: bytes | None, token: str | None
) -> None:
    _check(method, path, body, token)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(_PATHS), value=_JSON)
def test_any_json_gets_a_matrix_response(path: str, value: object) -> None:
    _check(
        "PUT" if "tags" in path else "POST",
        path,
        json.dumps(value).encode("utf-8", "surrogatepass"),
        "alice",
    )


def _check(method: str, path: str, body: bytes | None, token: str | None) -> None:
    response = _ANY.request(method, path, body=body, token=token)
    assert response.status < 500
    if response.status >= 400 and method != "HEAD":
        assert response.errcode.startswith("M_")
        assert isinstance(response.json["error"], str)
