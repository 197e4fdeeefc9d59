"""User-interactive authentication: confirming, in stages, that one may do an operation.

Laws:
- A session is bound to one operation: method, path, further particulars and user. Shown for
  another, it is unknown.
- A confirmation is good for one operation, once: `check` ends the session, unless the caller keeps
  it to answer a repeated request in the same way; then the operation claims it (`claim`) in the
  write in which it is done.
- A session that has ended never comes back, whatever was under way in it.
- A request without `auth` is never let through.
- What a stage holds back (a use of a registration token) is written together with the stage's
  completion. The operation that claims the session uses it, or it is given back: also what was
  completed beside, in another flow, by a request that came at the same time.
- Whoever has the id of a session may go on with it: its hash is kept, and not itself.

spec: client-server-api#user-interactive-authentication-api
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import BadJson, LimitExceeded, MatrixError
from federation.protocol.ids import UserID
from homeserver.services.tokens.secret_tokens import SecretText, hash_secret
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.uia import UIASessionRow, UIAStore

Flows = Sequence[Sequence[str]]
"""Names of stages, in order, for each way to the goal."""
AuthData = Mapping[str, object]
"""The `auth` of a request."""

_completed_decoder: Final = msgspec.json.Decoder(dict[str, str])


class Operation(msgspec.Struct, frozen=True):
    """What is to be confirmed."""

    name: str
    """Fixed, with what matters of the request: `DELETE device ABCDEF`."""
    user_id: UserID | None
    """Who is to confirm it; None where there is no user yet."""
    address: str
    """Where the request comes from; a session is not bound to it."""


class AuthenticationRequired(MatrixError):
    """401 with the flows. Where a stage failed, its error is in it; else there is no errcode."""

    status = 401

    def __init__(self, state: Mapping[str, object], error: MatrixError | None = None) -> None:
        super().__init__("Confirm who you are" if error is None else error.text)
        self._state = state
        self.error = error
        """Why a stage failed."""

    @property
    def session_id(self) -> str:
        """The session in which to go on."""
        return str(self._state["session"])

    def body(self) -> Mapping[str, object]:
        """See the specification: flows, params, session and completed."""
        if self.error is None:
            return self._state
        return {**self.error.body(), **self._state}


class Stage(Protocol):
    """One kind of proof."""

    name: str

    def params(self) -> Mapping[str, object] | None:
        """What clients have to know beforehand."""
        ...

    async def check(self, auth: AuthData, operation: Operation) -> str:
        """Check the proof, and return what is to be kept of it. Raises `MatrixError` where it
        fails."""
        ...

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Hold back what the proof is worth, in the write that completes the stage. Raises
        `MatrixError`."""
        ...

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Give back what was held, when the session ends without success."""
        ...


class Confirmation(msgspec.Struct, frozen=True):
    """An operation is confirmed."""

    completed: Mapping[str, str]
    """Stages, with what was kept of each."""
    session_id: str | None
    """The session, where it was kept."""
    result: str | None = None
    """What the operation made when this session confirmed it before."""


class SessionUsed(Exception):
    """Another request, in the same session, was there first."""


class _Session(msgspec.Struct, frozen=True):
    """One, with its id, which is not kept."""

    session_id: str
    row: UIASessionRow


class UIA:
    """Asks for confirmation, and checks it. `lifetime`: how long a session lives, in seconds."""

    def __init__(
        self,
        clock: IReactorTime,
        secret_text: SecretText,
        database: Database,
        store: UIAStore,
        stages: Sequence[Stage],
        *,
        lifetime: float = 15 * 60,
    ) -> None:
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._store = store
        self._stages = {stage.name: stage for stage in stages}
        self._lifetime = lifetime

    async def check(
        self, operation: Operation, flows: Flows, auth: AuthData | None, *, keep: bool = False
    ) -> Confirmation:
        """Return once the operation is confirmed; until then raise `AuthenticationRequired`, or
        `BadJson` for a malformed `auth`, and `LimitExceeded` where a stage is tried too often.

        `keep`: leave the session in place, for `claim` and for a repeated request.
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
                error = BadJson(f"The stage {name[:100]} is not one of those to do now")
                raise self._required(flows, session, completed, error)
            try:
                result = await self._stages[name].check(auth, operation)
                session, completed = await self._complete(operation, session, name, result)
            except LimitExceeded:
                raise  # whoever asks too often is to wait, whatever they ask
            except MatrixError as error:
                session = session or await self._begin(operation)
                raise self._required(flows, session, completed, error) from None
        if not any(set(flow) <= completed.keys() for flow in flows) or not flows:
            session = session or await self._begin(operation)
            raise self._required(flows, session, completed)
        if session is None:
            return Confirmation(completed, None)
        if not keep and not await self._database.write(
            "end_uia", self._store.remove_session, session.row.session_hash
        ):
            # Another request has used it up in the meantime.
            raise self._required(flows, await self._begin(operation), {})
        return Confirmation(completed, session.session_id if keep else None, session.row.result)

    async def get_operation(self, session_id: str) -> Operation | None:
        """What a session is to confirm, and who; None where there is no such session."""
        session = await self._get(session_id)
        return None if session is None else _operation_of(session, "")

    async def do_prove(
        self, session_id: str, name: str, auth: AuthData | None = None, address: str = ""
    ) -> bool:
        """Note that a stage was done elsewhere, by the user of the session, who goes on with the
        session alone; False where there is no such session any more. `auth`: what the stage checks
        first, of which it raises `MatrixError`; None where it was seen otherwise that it is
        done."""
        session = await self._get(session_id)
        if session is None:
            return False
        if name in _completed_decoder.decode(session.row.completed):
            return True
        operation = _operation_of(session, address)
        result = "" if auth is None else await self._stages[name].check(auth, operation)
        _, completed = await self._complete(operation, session, name, result)
        return bool(completed)

    async def do_agree(self, session_id: str, name: str) -> None:
        """Note that a stage was done on a page, by whoever has the session, with what its check
        says."""
        session = await self._get(session_id)
        if session is not None:
            operation = _operation_of(session, "")
            await self._complete(
                operation, session, name, await self._stages[name].check({}, operation)
            )

    def claim(self, txn: WriteTransaction, confirmation: Confirmation, result: str) -> None:
        """Use the confirmation up, in the write in which the operation is done, and note what it
        makes, for a repeated request. What the session holds and `confirmation` does not name is
        given back. Raises `SessionUsed`, so that of many requests in one session one is done."""
        if confirmation.session_id is None:
            return
        session_hash = hash_secret(confirmation.session_id)
        row = self._store.get_session_in(txn, session_hash, 0)
        if row is None or not self._store.set_result(txn, session_hash, result):
            raise SessionUsed
        self._give_back(txn, row, but=confirmation.completed)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` sessions that have grown old, and give back what they held; how many
        there were."""
        return await self._database.write("sweep_uia", self._sweep, self._oldest(), limit)

    def _sweep(self, txn: WriteTransaction, oldest: int, limit: int) -> int:
        rows = self._store.remove_old_sessions(txn, oldest, limit)
        for row in rows:
            if row.result is None:
                self._give_back(txn, row)
        return len(rows)

    def _give_back(
        self,
        txn: WriteTransaction,
        row: UIASessionRow,
        but: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """What a session holds, but for these stages."""
        for name, result in _completed_decoder.decode(row.completed).items():
            if name in self._stages and name not in but:
                self._stages[name].remove(txn, result)

    async def _get(self, session_id: str) -> _Session | None:
        row = await self._store.get_session(hash_secret(session_id), self._oldest())
        return None if row is None else _Session(session_id, row)

    async def _find(self, operation: Operation, auth: AuthData) -> _Session | None:
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

    async def _begin(self, operation: Operation) -> _Session:
        session = self._new_session(operation)
        await self._database.write("begin_uia", self._store.add_session, session.row)
        return session

    async def _complete(
        self, operation: Operation, session: _Session | None, name: str, result: str
    ) -> tuple[_Session | None, dict[str, str]]:
        """Note that a stage is done. Where there is no session and nothing to hold, nothing is
        written; where it has ended in the meantime, neither, and no stage is done."""
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
                return completed  # it has confirmed what it was for: nothing more is held for it
            if name not in completed:
                self._stages[name].add(txn, result)
                completed[name] = result
            if now is None:
                self._store.add_session(txn, _filled(row, completed))
            else:
                self._store.set_completed(
                    txn, row.session_hash, msgspec.json.encode(completed).decode()
                )
            return completed

        completed = await self._database.write("complete_uia_stage", write)
        if not completed:
            return None, completed
        return _Session(found.session_id, _filled(row, completed)), completed

    def _new_session(self, operation: Operation) -> _Session:
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


def _operation_of(session: _Session, address: str) -> Operation:
    return Operation(session.row.operation, UserID(session.row.user_id or "") or None, address)


def _filled(row: UIASessionRow, completed: Mapping[str, str]) -> UIASessionRow:
    return msgspec.structs.replace(row, completed=msgspec.json.encode(completed).decode())


def _next_stages(flows: Flows, completed: Mapping[str, str]) -> set[str]:
    """What may be done now: in each flow that begins with what is done, the stage after it."""
    done = list(completed)
    return {
        flow[len(done)]
        for flow in flows
        if len(flow) > len(done) and set(flow[: len(done)]) == set(done)
    }
