"""The sample file and the page of options match the code."""

import re
from pathlib import Path

import pytest

from homeserver.config.configuration import GROUPS
from homeserver.config.load import load_config
from homeserver.config.read import iterate_options
from homeserver.config.sample import write_docs, write_sample

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "text"),
    [("homeserver.yaml.sample", write_sample()), ("docs/operators/configuration.md", write_docs())],
)
def test_generated_files_are_current(name: str, text: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == text, "run scripts/write_sample_config"


def test_the_sample_is_a_valid_configuration(tmp_path: Path) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(write_sample(), encoding="utf-8")
    assert load_config([path], {}).config.server_name == "example.org"


def test_every_line_of_the_sample_can_be_uncommented(tmp_path: Path) -> None:
    text = re.sub(r"^#(?! \S|#)", "", write_sample(), flags=re.MULTILINE)
    assert "\nbcrypt_rounds: 12\n" in text
    path = tmp_path / "homeserver.yaml"
    path.write_text(text.replace('  name: "sqlite3"', "  name: psycopg2"), encoding="utf-8")
    loaded = load_config([path], {})
    assert loaded.config.sessions.session_lifetime == 24 * 3600 * 1000
    assert loaded.config.storage.database.args["cp_max"] == 8


def test_every_option_is_in_the_sample_and_the_page() -> None:
    sample, docs = write_sample(), write_docs()
    for kind in GROUPS.values():
        for place, _kind, declared in iterate_options(kind):
            assert re.search(
                rf"^# *{place[-1]}:|^{place[-1]}:|{place[-1]}: [0-9.]+", sample, re.MULTILINE
            )
            if declared.name not in ("per_second", "burst_count"):
                assert f"### `{'.'.join(str(step) for step in place)}`" in docs
