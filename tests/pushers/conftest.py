"""A push gateway in memory."""

import pytest

from tests.helpers.push_gateway import PushGateway


@pytest.fixture
def gateway() -> PushGateway:
    return PushGateway()
