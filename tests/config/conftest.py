"""A folder for the configuration files of a test."""

from pathlib import Path

import pytest

from tests.helpers.config_folder import ConfigFolder


@pytest.fixture
def folder(tmp_path: Path) -> ConfigFolder:
    return ConfigFolder(tmp_path)
