"""The objects that a scenario works with, and the type of scenarios."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from bench_parts.measurement import Figures, Meter
from bench_parts.server import Server
from bench_parts.world import World


@dataclass(frozen=True, slots=True)
class Bench:
    """The objects that a scenario works with."""

    clock: IReactorTime
    server: Server
    meter: Meter
    world: World


Scenario = Callable[[Bench, Figures], Coroutine[Deferred[Any], Any, None]]
"""Runs a scenario and fills its figures."""
