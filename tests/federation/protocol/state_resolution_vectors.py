"""Disputes as JSON files, in the form of `vectors/state-res-vectors.json`.

A case that a law finds is kept by `write_vector`: complete events, so that it outlives the
strategies it came from.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from federation.protocol.events import Event, StateKey, encode_pdu, parse_event
from federation.protocol.ids import EventID
from federation.protocol.room_versions import ROOM_VERSIONS
from tests.federation.protocol.room_strategies import Dispute, GrownRoom

VECTORS: Final = Path(__file__).parent / "vectors"
FOUND: Final = VECTORS / "state-resolution"

State = dict[StateKey, EventID]


def read_vectors() -> Iterator[tuple[str, Dispute, State]]:
    """A name, the dispute, the resolved state: of the scenarios that came with the specification,
    and of those found."""
    for scenario in json.loads((VECTORS / "state-res-vectors.json").read_text())["scenarios"]:
        yield (
            f"{scenario['name']}-in-{scenario['room_version']}",
            _read_dispute(scenario),
            _read_state(scenario["resolved"]),
        )
    for path in sorted(FOUND.glob("*.json")):
        scenario = json.loads(path.read_text())
        yield path.stem, _read_dispute(scenario), _read_state(scenario["resolved"])


def write_vector(name: str, what: str, dispute: Dispute) -> None:
    """Keep a dispute as `vectors/state-resolution/NAME.json`, with the oracle's answer and a
    sentence on what it shows."""
    scenario = {
        "name": name,
        "room_version": dispute.room.version.identifier,
        "what": what,
        "events": [
            {"event_id": event_id, "pdu": json.loads(encode_pdu(event))}
            for event_id, event in dispute.room.events.items()
        ],
        "rejected": sorted(dispute.rejected),
        "state_sets": [_write_state(state) for state in dispute.state_sets],
        "resolved": _write_state(dispute.oracle().resolve()),
    }
    FOUND.mkdir(exist_ok=True)
    (FOUND / f"{name}.json").write_text(json.dumps(scenario, indent=1, ensure_ascii=False) + "\n")


def _read_dispute(scenario: Any) -> Dispute:
    version = ROOM_VERSIONS[scenario["room_version"]]
    events: dict[EventID, Event] = {}
    for entry in scenario["events"]:
        event = parse_event(version, entry["pdu"])
        assert event.event_id == entry["event_id"]
        events[event.event_id] = event
    create = next(event for event in events.values() if event.type == "m.room.create")
    states = [_read_state(state) for state in scenario["state_sets"]]
    return Dispute(
        GrownRoom(version, create, events), states, frozenset(scenario.get("rejected", ()))
    )


def _read_state(entries: list[list[str]]) -> State:
    return {StateKey(type, state_key): EventID(event_id) for type, state_key, event_id in entries}


def _write_state(state: Mapping[StateKey, EventID]) -> list[list[str]]:
    return [[*key, event_id] for key, event_id in sorted(state.items())]
