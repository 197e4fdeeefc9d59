"""What several of these tests need."""

from collections.abc import Iterator

import pytest

from tests.helpers.object_store import Bucket, RunningObjectStore, running_object_store


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    """An object store that others wrote."""
    with running_object_store(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture
def bucket(running: RunningObjectStore) -> Bucket:
    return running.bucket()
