"""Options under their former names, which work for one release with a notice."""

from collections.abc import Iterator
from dataclasses import Field
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from homeserver.__main__ import main
from homeserver.config.configuration import GROUPS
from homeserver.config.limits import RateLimit
from homeserver.config.load import synapse_keys
from homeserver.config.option import get_description
from homeserver.config.read import format_place, iterate_options, types_of
from homeserver.config.sample import write_docs, write_sample
from homeserver.config.yaml_text import Place
from tests.helpers.config_folder import ConfigFolder

BASE = "server_name: a.b\n"
WORKS = "the former name works in this release and not in the next one"
LDAP = "ldap_providers:\n  - uri: ['ldaps://a.example']\n    base: dc=a\n"


def sections(kind: type[Any]) -> Iterator[type[Any]]:
    """The section and all sections in it, also those in lists and mappings."""
    yield kind
    for type_ in types_of(kind).values():
        for each in (type_, *get_args(type_)):
            if isinstance(each, type) and hasattr(each, "__dataclass_fields__"):
                yield from sections(each)


SECTIONS = sorted(
    {each for kind in GROUPS.values() for each in sections(kind)}, key=lambda each: each.__name__
)


def fields_of(kind: type[Any]) -> dict[str, Field[Any]]:
    fields: dict[str, Field[Any]] = kind.__dataclass_fields__
    return fields


def test_a_former_key_takes_effect_with_a_notice(folder: ConfigFolder) -> None:
    text = BASE + "media_free_disk_floor: 1G\n"
    assert folder.load(text).config.storage.media_min_free_disk == 1024**3
    assert folder.notices(text) == [
        f"homeserver.yaml:2: media_free_disk_floor: is now media_min_free_disk; {WORKS}"
    ]


def test_a_former_rate_limit_takes_effect_in_full(folder: ConfigFolder) -> None:
    text = BASE + "rc_key_strangers: {burst_count: 7}\nrc_invites:\n  false_promises:\n    {}\n"
    limits = folder.load(text).config.limits
    assert limits.rc_key_requests_to_new_servers == RateLimit(per_second=0.1, burst_count=7)
    assert limits.rc_invites.false_claims == RateLimit(per_second=0.05, burst_count=20)
    assert [notice.split(": is now ")[0] for notice in folder.notices(text)] == [
        "homeserver.yaml:2: rc_key_strangers",
        "homeserver.yaml:4: rc_invites.false_promises",
    ]


def test_a_former_key_of_a_section_takes_effect_beside_defaults(folder: ConfigFolder) -> None:
    text = BASE + "media_scanning: {larger_files: pass, time_limit: 5s}\n"
    scanning = folder.load(text).config.storage.media_scanning
    assert (scanning.oversized_files, scanning.timeout, scanning.concurrency) == ("pass", 5000, 4)


def test_a_former_key_in_a_list_of_sections_takes_effect(folder: ConfigFolder) -> None:
    text = BASE + LDAP + "    leavers: lock\n    leavers_at_most: 0.5\n"
    (provider,) = folder.load(text).config.upstream.ldap_providers
    assert (provider.removed_users, provider.removed_users_max_share) == ("lock", 0.5)
    assert folder.notices(text) == [
        "homeserver.yaml:5: ldap_providers[0].leavers: is now "
        f"ldap_providers[0].removed_users; {WORKS}",
        "homeserver.yaml:6: ldap_providers[0].leavers_at_most: is now "
        f"ldap_providers[0].removed_users_max_share; {WORKS}",
    ]


def test_an_option_under_both_names_is_refused(folder: ConfigFolder) -> None:
    text = BASE + "media_free_disk_floor: 1G\nmedia_min_free_disk: 2G\n"
    assert folder.errors(text) == [
        "homeserver.yaml:2: media_free_disk_floor: is the former name of media_min_free_disk, "
        "which is given too; remove media_free_disk_floor"
    ]
    text = BASE + LDAP + "    removed_users: lock\n    leavers: keep\n"
    assert folder.errors(text) == [
        "homeserver.yaml:6: ldap_providers[0].leavers: is the former name of "
        "ldap_providers[0].removed_users, which is given too; remove leavers"
    ]


def test_a_wrong_value_under_a_former_name_is_found_in_its_line(folder: ConfigFolder) -> None:
    text = BASE + "bcrypt_rounds: 4\nregistration_approval_letters:\n  admin@a.b: [en]\n"
    (wrong,) = folder.errors(text)
    assert wrong.startswith("homeserver.yaml:4: registration_approval_emails.admin@a.b: got ['en']")
    text = BASE + LDAP + "    leavers_at_most: 2\n"
    assert folder.errors(text) == [
        "homeserver.yaml:5: ldap_providers[0].removed_users_max_share: got 2; must be at most 1.0"
    ]


def test_a_misspelt_former_key_suggests_the_current_one(folder: ConfigFolder) -> None:
    (wrong,) = folder.errors(BASE + "media_free_disk_flor: 1G")
    assert wrong.endswith("did you mean media_min_free_disk?")
    (wrong,) = folder.errors(BASE + "media_min_fre_disk: 1G")
    assert wrong.endswith("did you mean media_min_free_disk?")
    (wrong,) = folder.errors(BASE + LDAP + "    leaver: lock\n")
    assert wrong.endswith("did you mean removed_users?")


def test_config_check_names_former_keys_of_every_file(folder: ConfigFolder) -> None:
    first = folder.write("homeserver.yaml", BASE)
    other = folder.write("other.yaml", "\n\nmedia_free_disk_floor: 1G\n")
    result = CliRunner().invoke(main, ["config", "check", "-c", str(first), "-c", str(other)])
    assert f"other.yaml:3: media_free_disk_floor: is now media_min_free_disk; {WORKS}" in (
        result.output
    )


def test_former_names_in_the_environment_take_effect(
    folder: ConfigFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = fields_of(type(folder.load(BASE).config.registration))
    description = get_description(declared["registration_shared_secret"])
    renamed = {"registration_shared_secret": description}
    former, current = "MAHALLA_JOINING_SECRET", "MAHALLA_REGISTRATION_SHARED_SECRET"
    monkeypatch.setattr(
        "homeserver.config.read.get_description",
        lambda field: (
            get_description(field)
            if field.name not in renamed
            else type(description)(description.help, formerly="joining_secret")
        ),
    )
    loaded = folder.load(BASE, {former: "s"})
    assert loaded.config.registration.registration_shared_secret == "s"
    (notice,) = loaded.notices
    assert notice.endswith(f"the environment variable {former} is now {current}; {WORKS}")
    folder.write("secret", "from a file")
    loaded = folder.load(BASE, {f"{former}_FILE": str(folder.path / "secret")})
    assert loaded.config.registration.registration_shared_secret == "from a file"
    loaded = folder.load(BASE + "joining_secret_path: secret\n")
    assert loaded.config.registration.registration_shared_secret == "from a file"
    assert "joining_secret_path: is now registration_shared_secret_path" in loaded.notices[0]
    with pytest.raises(Exception, match=f"{current} and by its former name {former}"):
        folder.load(BASE, {former: "s", current: "t"})


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_a_former_name_is_no_other_option(kind: type[Any]) -> None:
    former = [get_description(each).formerly for each in fields_of(kind).values()]
    named = [name for name in former if name is not None]
    assert len(named) == len(set(named))
    assert not set(named) & set(fields_of(kind))


def test_former_names_at_the_top_are_unique_and_unknown_to_synapse() -> None:
    current: list[Place] = []
    former: list[str] = []
    for kind in GROUPS.values():
        for place, _kind, declared in iterate_options(kind):
            current.append(place)
            if (name := get_description(declared).formerly) is not None:
                former.append(format_place((*place[:-1], name)))
    assert former
    assert len(former) == len(set(former))
    assert not set(former) & {*map(format_place, current), *synapse_keys()}


def test_the_sample_has_no_former_names() -> None:
    sample, docs = write_sample(), write_docs()
    assert "media_free_disk_floor" not in sample
    assert "### `media_free_disk_floor`" not in docs
    assert "formerly `media_free_disk_floor`" in docs
