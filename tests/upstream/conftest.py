"""An identity provider in memory."""

import pytest

from tests.helpers.openid import OpenIDProvider


@pytest.fixture
def provider() -> OpenIDProvider:
    return OpenIDProvider()
