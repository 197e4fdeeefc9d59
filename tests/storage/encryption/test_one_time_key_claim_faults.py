"""One-time keys when writes are undone and retried: no key is claimed twice, and keys are claimed
in order if every outcome is known."""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.device_keys import DeviceKeyStore, NewKeys
from storage.engine.database import WriteTransaction
from tests.helpers.stepped_database import SteppedDatabase
from tests.helpers.write_faults import FAULTS, UNNOTICED_FAULTS, Faults

ALICE: Final = "@alice:example.org"
KINDS: Final = [
    "claims",
    "claims",
    "claims",
    "uploads",
    "claims, raises",
    "uploads, raises",
    "breaks",
    "is there",
]
INSERT: Final = "INSERT INTO jobs (name, progress) VALUES ('there', '')"


def make_write(
    kind: str, store: DeviceKeyStore, device_id: str, ids: list[str]
) -> Callable[[WriteTransaction], Any]:
    def fn(txn: WriteTransaction) -> bytes | None:
        key: bytes | None = None
        if kind.startswith("claims"):
            (key,) = store.claim_keys(txn, [(ALICE, device_id, "curve")], 0)
        elif kind.startswith("uploads"):
            store.upload_keys(
                txn,
                ALICE,
                device_id,
                NewKeys(None, {("curve", each): b"{}" for each in ids}, {}),
                0,
            )
        elif kind == "breaks":
            txn.query("SELECT 1")
            txn.execute_later(INSERT)
        else:
            assert not txn.execute(f"{INSERT} ON CONFLICT DO NOTHING", ())
        if kind.endswith("raises"):
            raise ValueError
        return key

    return fn


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(
        st.tuples(
            st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
            st.dictionaries(st.integers(1, 6), st.sampled_from(FAULTS), max_size=2),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_key_is_claimed_twice(
    faulty: tuple[SteppedDatabase, Faults | None], batches: list[tuple[list[str], dict[int, str]]]
) -> None:
    stepped, faults = faulty
    store, devices = DeviceKeyStore(stepped.database), DeviceStore(stepped.database)

    def run(name: str, fn: Callable[[WriteTransaction], Any]) -> object:
        stepped.queue(name, fn)
        stepped.step()
        return stepped.results[name]

    run("clear", lambda txn: txn.execute("DELETE FROM jobs"))
    run("there", lambda txn: txn.execute(INSERT))
    device_id = f"D{stepped.database.streams.current()}"
    run("device", lambda txn: devices.add_device(txn, DeviceRow(ALICE, device_id, None, 0)))
    left = deque(f"{number}" for number in range(3))
    run("first", make_write("uploads", store, device_id, [*left]))
    given_out: list[bytes] = []
    is_sure = True
    for at, (kinds, plan) in enumerate(batches):
        writes = [
            (f"{number}", kind, [f"{at}.{number}.{each}" for each in "ab"])
            for number, kind in enumerate(kinds)
        ]
        stepped.results.clear()
        for name, kind, ids in writes:
            stepped.queue(name, make_write(kind, store, device_id, ids))
        if faults is not None:
            faults.begin(plan)
        stepped.step()
        if faults is not None:
            is_sure = (
                is_sure
                and {fault for at, fault in plan.items() if at <= faults.sent} <= UNNOTICED_FAULTS
            )
            faults.begin({})
        for name, kind, ids in writes:
            result = stepped.results[name]
            if kind == "uploads" and not isinstance(result, type):
                left.extend(ids)
            if kind != "claims" or isinstance(result, type):
                continue
            if is_sure:
                assert result == (b'"%b":{}' % left.popleft().encode() if left else None)
            if isinstance(result, bytes):
                given_out.append(result)
    assert len(set(given_out)) == len(given_out)
