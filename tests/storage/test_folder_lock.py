"""A remover from a busy folder gets its turn."""

import os
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from storage.media.folder_lock import MAX_ATTEMPTS, PAUSE_SECONDS, FolderLock


def begin(taken: list[int | None], lock: FolderLock) -> None:
    Deferred.fromCoroutine(lock.lock_exclusive()).addCallback(taken.append)


def test_a_new_writer_waits_for_a_waiting_remover(tmp_path: Path) -> None:
    clock = Clock()
    lock, other = FolderLock(folder=tmp_path, clock=clock), FolderLock(folder=tmp_path, clock=clock)
    writing = lock.lock_shared()
    taken: list[int | None] = []
    begin(taken, other)
    clock.advance(PAUSE_SECONDS)
    assert taken == []
    begun: list[None] = []
    Deferred.fromCoroutine(lock.wait_for_remover()).addCallback(begun.append)
    clock.advance(PAUSE_SECONDS)
    assert begun == []
    os.close(writing)
    clock.advance(PAUSE_SECONDS)
    assert len(taken) == 1
    clock.advance(PAUSE_SECONDS)
    assert begun == [None]  # it now waits for the lock itself, in its thread
    assert taken[0] is not None
    os.close(taken[0])
    os.close(lock.lock_shared())


def test_a_remover_that_gives_up_releases_its_turn(tmp_path: Path) -> None:
    clock = Clock()
    lock = FolderLock(folder=tmp_path, clock=clock)
    writing = lock.lock_shared()
    taken: list[int | None] = []
    begin(taken, lock)
    clock.pump([PAUSE_SECONDS] * MAX_ATTEMPTS)
    assert taken == [None]
    begun: list[None] = []
    Deferred.fromCoroutine(lock.wait_for_remover()).addCallback(begun.append)
    assert begun == [None]
    os.close(writing)


def test_a_remover_waits_for_another_remover(tmp_path: Path) -> None:
    clock = Clock()
    lock, taken = FolderLock(folder=tmp_path, clock=clock), list[int | None]()
    begin(taken, lock)
    begin(taken, FolderLock(folder=tmp_path, clock=clock))
    assert len(taken) == 1
    assert taken[0] is not None
    os.close(taken[0])
    clock.advance(PAUSE_SECONDS)
    assert len(taken) == 2
    assert taken[1] is not None
    os.close(taken[1])
