"""User-interactive authentication (UIA): confirm an operation in stages.

Laws:
- A session is bound to one operation: method, path, further details and user. For any other
  operation it counts as unknown.
- A confirmation is valid for one operation, once. Usually `check` ends the session. A caller that
  must answer a repeated request in the same way keeps the session instead. In the write of the
  operation it calls `claim`, which stores the result for the repeated request.
- An ended session is never restored, whatever requests were in progress.
- A request without `auth` is never confirmed.
- A stage may reserve something, such as one use of a registration token. The reservation is part of
  the write that completes the stage. If `check` ends the session, all its reservations are
  consumed. If the session is kept, `claim` consumes the reservations of the stages in the
  confirmation. It releases the reservations of other stages, which a concurrent request may have
  completed in the meantime. If the session expires unused, all its reservations are released.
- The session ID is a secret, as its holder may continue the session: only its hash is stored.

spec: client-server-api#user-interactive-authentication-api
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import BadJson, LimitExceeded, MatrixError
from federation.protocol.ids import UserID
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_secret
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.uia import UIASessionRow, UIAStore

Flows = Sequence[Sequence[str]]
"""Alternative flows: for each, the names of its stages in order."""
AuthData = Mapping[str, object]
"""The `auth` of a request."""

_completed_decoder: Final = msgspec.json.Decoder(dict[str, str])


class UIAOperation(msgspec.Struct, frozen=True):
    """An operation to confirm."""

    name: str
    """Method, path and the parameters that the confirmation covers: `DELETE device ABCDEF`."""
    user_id: UserID | None
    """The user who has to confirm; None before the account exists."""
    address: str
    """The client's IP address; a session is not bound to it."""


class AuthenticationRequired(MatrixError):
    """401 with the flows; with the error of a stage if one failed, else without errcode."""

    status = 401

    def __init__(self, state: Mapping[str, object], error: MatrixError | None = None) -> None:
        super().__init__("Confirm who you are" if error is None else error.text)
        self._state = state
        self.error = error
        """The error of the stage that failed."""

    @property
    def session_id(self) -> str:
        """The session to continue."""
        return str(self._state["session"])

    def body(self) -> Mapping[str, object]:
        """Return flows, params, session and completed, as the specification has them."""
        if self.error is None:
            return self._state
        return {**self.error.body(), **self._state}


class UIAStage(Protocol):
    """An authentication type."""

    name: str

    def params(self) -> Mapping[str, object] | None:
        """Return the parameters that clients need for this stage."""
        ...

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        """Check the `auth` of a request, and return the result to store.

        Raises `MatrixError` if the check fails.
        """
        ...

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        """Reserve what the stage consumes, in the write that completes it. Raises `MatrixError`."""
        ...

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Release the reservation when the session ends without success."""
        ...


class Confirmation(msgspec.Struct, frozen=True):
    """A confirmed operation."""

    completed: Mapping[str, str]
    """Completed stages with their results."""
    session_id: str | None
    """The session, where `check` left it in place."""
    result: str | None = None
    """The result of the operation, where this session confirmed it before."""


class UIASessionUsed(Exception):
    """Another request in the same session carried the operation out first."""


class _Session(msgspec.Struct, frozen=True):
    """A session with its ID, which is not stored."""

    session_id: str
    row: UIASessionRow


class UIA:
    """Requires and checks confirmations. `lifetime`: of a session, in seconds."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        secret_text: SecretGenerator,
        database: Database,
        store: UIAStore,
        stages: Sequence[UIAStage],
        lifetime: float = 15 * 60,
    ) -> None:
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._store = store
        self._stages = {stage.name: stage for stage in stages}
        self._lifetime = lifetime

    async def check(
        self,
        operation: UIAOperation,
        flows: Flows,
        auth: AuthData | None,
        *,
        keep_session: bool = False,
    ) -> Confirmation:
        """Return the confirmation of an operation, once a flow is complete.

        Until then raises `AuthenticationRequired`, `BadJson` for a malformed `auth`, and
        `LimitExceeded` where a stage is tried too often.
        `keep_session`: leave the session in place, for `claim` and for a repeated request.
        """
        if auth is None:
            raise self._required(flows, await self._begin(operation), {})
        session = await self._find(operation, auth)
        completed = {} if session is None else _completed_decoder.decode(session.row.completed)
        name = auth.get("type")
        if name is not None and not isinstance(name, str):
            raise BadJson("auth.type must be a string")
        if name is not None and name not in completed:
            if name not in _next_stages(flows, completed):
                session = session or await self._begin(operation)
                error = BadJson(f"The stage {name[:100]} is not part of any flow at this point")
                raise self._required(flows, session, completed, error)
            try:
                result = await self._stages[name].check(auth, operation)
                session, completed = await self._complete(operation, session, name, result)
            except LimitExceeded:
                raise  # 429 even during UIA, so that clients back off
            except MatrixError as error:
                session = session or await self._begin(operation)
                raise self._required(flows, session, completed, error) from None
        if not any(set(flow) <= completed.keys() for flow in flows) or not flows:
            session = session or await self._begin(operation)
            raise self._required(flows, session, completed)
        if session is None:
            return Confirmation(completed, None)
        if not keep_session and not await self._database.write(
            "end_uia", self._store.remove_session, session.row.session_hash
        ):
            # A concurrent request has used the session.
            raise self._required(flows, await self._begin(operation), {})
        return Confirmation(
            completed, session.session_id if keep_session else None, session.row.result
        )

    async def get_operation(self, session_id: str) -> UIAOperation | None:
        """Return the operation that a session confirms; None for an unknown session."""
        session = await self._get(session_id)
        return None if session is None else _operation_of(session, "")

    async def do_complete_stage(
        self, session_id: str, name: str, auth: AuthData | None = None, address: str = ""
    ) -> bool:
        """Complete a stage outside the client, for the user of the session.

        The client then continues with only the session. Return False if the session has ended.
        `auth`: checked by the stage, which may raise `MatrixError`; None where the caller has
        verified the stage itself.
        """
        session = await self._get(session_id)
        if session is None:
            return False
        if name in _completed_decoder.decode(session.row.completed):
            return True
        operation = _operation_of(session, address)
        result = "" if auth is None else await self._stages[name].check(auth, operation)
        _, completed = await self._complete(operation, session, name, result)
        return bool(completed)

    async def do_accept_stage(self, session_id: str, name: str) -> None:
        """Complete a stage that only needs acceptance, on a page, for the holder of the session."""
        session = await self._get(session_id)
        if session is not None:
            operation = _operation_of(session, "")
            await self._complete(
                operation, session, name, await self._stages[name].check({}, operation)
            )

    def claim(self, txn: WriteTransaction, confirmation: Confirmation, result: str) -> None:
        """Consume the confirmation in the write of the operation.

        Stores `result` for a repeated request. Releases reservations of the session that
        `confirmation` does not name. Raises `UIASessionUsed` if another request in the session came
        first.
        """
        if confirmation.session_id is None:
            return
        session_hash = hash_secret(confirmation.session_id)
        row = self._store.get_session_in(txn, session_hash, 0)
        if row is None or not self._store.set_result(txn, session_hash, result):
            raise UIASessionUsed
        self._release(txn, row, consumed=confirmation.completed)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` expired sessions, release their reservations; return the number."""
        return await self._database.write("sweep_uia", self._sweep, self._oldest(), limit)

    def _sweep(self, txn: WriteTransaction, oldest: int, limit: int) -> int:
        rows = self._store.remove_old_sessions(txn, oldest, limit)
        for row in rows:
            if row.result is None:
                self._release(txn, row)
        return len(rows)

    def _release(
        self,
        txn: WriteTransaction,
        row: UIASessionRow,
        consumed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Release the reservations of a session, except those of the `consumed` stages."""
        for name, result in _completed_decoder.decode(row.completed).items():
            if name in self._stages and name not in consumed:
                self._stages[name].release(txn, result)

    async def _get(self, session_id: str) -> _Session | None:
        row = await self._store.get_session(hash_secret(session_id), self._oldest())
        return None if row is None else _Session(session_id, row)

    async def _find(self, operation: UIAOperation, auth: AuthData) -> _Session | None:
        session_id = auth.get("session")
        if session_id is None:
            return None
        if not isinstance(session_id, str):
            raise BadJson("auth.session must be a string")
        session = await self._get(session_id)
        if (
            session is None
            or session.row.operation != operation.name
            or session.row.user_id != operation.user_id
        ):
            return None
        return session

    async def _begin(self, operation: UIAOperation) -> _Session:
        session = self._new_session(operation)
        await self._database.write("begin_uia", self._store.add_session, session.row)
        return session

    async def _complete(
        self, operation: UIAOperation, session: _Session | None, name: str, result: str
    ) -> tuple[_Session | None, dict[str, str]]:
        """Complete a stage in a session; begin one if there is none.

        Writes nothing without a session and a result. Writes nothing, and completes nothing, in a
        session that has ended in the meantime.
        """
        if session is None and not result:
            return None, {name: result}
        found = session or self._new_session(operation)
        row = found.row

        def write(txn: WriteTransaction) -> dict[str, str]:
            now = None if session is None else self._store.get_session_in(txn, row.session_hash, 0)
            if now is None and session is not None:
                return {}
            completed = {} if now is None else _completed_decoder.decode(now.completed)
            if now is not None and now.result is not None:
                return completed  # the session is used: reserve nothing more for it
            if name not in completed:
                self._stages[name].reserve(txn, result)
                completed[name] = result
            if now is None:
                self._store.add_session(txn, _with_completed(row, completed))
            else:
                self._store.set_completed(
                    txn, row.session_hash, msgspec.json.encode(completed).decode()
                )
            return completed

        completed = await self._database.write("complete_uia_stage", write)
        if not completed:
            return None, completed
        return _Session(found.session_id, _with_completed(row, completed)), completed

    def _new_session(self, operation: UIAOperation) -> _Session:
        session_id = self._secret_text.session_id()
        now = int(self._clock.seconds() * 1000)
        return _Session(
            session_id,
            UIASessionRow(
                hash_secret(session_id), now, operation.name, operation.user_id, completed="{}"
            ),
        )

    def _oldest(self) -> int:
        return int((self._clock.seconds() - self._lifetime) * 1000)

    def _required(
        self,
        flows: Flows,
        session: _Session,
        completed: Mapping[str, str],
        error: MatrixError | None = None,
    ) -> AuthenticationRequired:
        names = {name for flow in flows for name in flow}
        params = {name: self._stages[name].params() for name in sorted(names)}
        state: dict[str, object] = {
            "flows": [{"stages": list(flow)} for flow in flows],
            "params": {name: value for name, value in params.items() if value is not None},
            "session": session.session_id,
        }
        if completed or error is not None:
            state["completed"] = list(completed)
        return AuthenticationRequired(state, error)


def _operation_of(session: _Session, address: str) -> UIAOperation:
    return UIAOperation(session.row.operation, UserID(session.row.user_id or "") or None, address)


def _with_completed(row: UIASessionRow, completed: Mapping[str, str]) -> UIASessionRow:
    return msgspec.structs.replace(row, completed=msgspec.json.encode(completed).decode())


def _next_stages(flows: Flows, completed: Mapping[str, str]) -> set[str]:
    """Return the next stage of each flow whose first stages are the completed ones."""
    done = list(completed)
    return {
        flow[len(done)]
        for flow in flows
        if len(flow) > len(done) and set(flow[: len(done)]) == set(done)
    }
