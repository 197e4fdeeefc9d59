"""Who takes things away from a busy folder gets a turn."""

import os
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from storage.media.folder_lock import PATIENCE, PAUSE_SECONDS, FolderLock


def begin(taken: list[int | None], lock: FolderLock) -> None:
    Deferred.fromCoroutine(lock.take_alone()).addCallback(taken.append)


def test_who_would_begin_to_write_lets_who_waits_go_first(tmp_path: Path) -> None:
    clock = Clock()
    lock, other = FolderLock(tmp_path, clock), FolderLock(tmp_path, clock)
    writing = lock.share()
    taken: list[int | None] = []
    begin(taken, other)
    clock.advance(PAUSE_SECONDS)
    assert taken == []
    begun: list[None] = []
    Deferred.fromCoroutine(lock.let_go_first()).addCallback(begun.append)
    clock.advance(PAUSE_SECONDS)
    assert begun == []
    os.close(writing)
    clock.advance(PAUSE_SECONDS)
    assert len(taken) == 1
    clock.advance(PAUSE_SECONDS)
    assert begun == [None]  # it waits for the lock itself now, in its thread
    assert taken[0] is not None
    os.close(taken[0])
    os.close(lock.share())


def test_patience_ends_and_the_turn_with_it(tmp_path: Path) -> None:
    clock = Clock()
    lock = FolderLock(tmp_path, clock)
    writing = lock.share()
    taken: list[int | None] = []
    begin(taken, lock)
    clock.pump([PAUSE_SECONDS] * PATIENCE)
    assert taken == [None]
    begun: list[None] = []
    Deferred.fromCoroutine(lock.let_go_first()).addCallback(begun.append)
    assert begun == [None]
    os.close(writing)


def test_who_takes_away_waits_for_another_who_does(tmp_path: Path) -> None:
    clock = Clock()
    lock, taken = FolderLock(tmp_path, clock), list[int | None]()
    begin(taken, lock)
    begin(taken, FolderLock(tmp_path, clock))
    assert len(taken) == 1
    assert taken[0] is not None
    os.close(taken[0])
    clock.advance(PAUSE_SECONDS)
    assert len(taken) == 2
    assert taken[1] is not None
    os.close(taken[1])
