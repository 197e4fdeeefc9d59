"""A folder with configuration files that a test writes and loads."""

from pathlib import Path

import pytest

from homeserver.config.load import ConfigError, LoadedConfig, load_config


class ConfigFolder:
    """A folder with configuration files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        (self.path / name).write_text(text, encoding="utf-8")
        return self.path / name

    def load(self, text: str, environment: dict[str, str] | None = None) -> LoadedConfig:
        return load_config([self.write("homeserver.yaml", text)], environment or {})

    def errors(self, text: str) -> list[str]:
        with pytest.raises(ConfigError) as refused:
            self.load(text)
        return [line.removeprefix(f"{self.path}/") for line in refused.value.lines]

    def notices(self, text: str) -> list[str]:
        return [line.removeprefix(f"{self.path}/") for line in self.load(text).notices]
