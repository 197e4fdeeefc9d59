"""Lists all endpoints, by the modules that declare them."""

from types import ModuleType

from federation.endpoints import devices as server_devices
from federation.endpoints import events as federation_events
from federation.endpoints import invites as federation_invites
from federation.endpoints import keys as server_keys
from federation.endpoints import media as federation_media
from federation.endpoints import membership as federation_membership
from federation.endpoints import queries as federation_queries
from federation.endpoints import spaces as federation_spaces
from federation.endpoints import transactions as federation_transactions
from federation.endpoints import version as server_version
from homeserver.admin import account_validity as admin_account_validity
from homeserver.admin import application_passwords as admin_application_passwords
from homeserver.admin import approvals as admin_approvals
from homeserver.admin import audit as admin_audit
from homeserver.admin import consents as admin_consents
from homeserver.admin import destinations, federation_policy, media_batches, register
from homeserver.admin import devices as admin_devices
from homeserver.admin import external_ids as admin_external_ids
from homeserver.admin import media as admin_media
from homeserver.admin import media_scans as admin_media_scans
from homeserver.admin import purges as admin_purges
from homeserver.admin import pushers as admin_pushers
from homeserver.admin import registration_tokens as admin_registration_tokens
from homeserver.admin import reports as admin_reports
from homeserver.admin import user_actions as admin_user_actions
from homeserver.admin import users as admin_users
from homeserver.api.endpoint import find_declaration
from homeserver.client import (
    account,
    account_data,
    account_moderation,
    account_validity,
    capabilities,
    dehydrated_devices,
    delayed_events,
    devices,
    filters,
    initial_sync,
    key_backups,
    keys,
    login,
    logout,
    media,
    media_proxy,
    mutual_rooms,
    notifications,
    openid,
    own_media,
    presence,
    profiles,
    push_rules,
    pushers,
    receipts,
    registration,
    relations,
    rendezvous,
    reports,
    retention,
    room_creation,
    room_directory,
    room_events,
    room_membership,
    room_previews,
    room_upgrades,
    search,
    sliding_sync,
    spaces,
    sync,
    tags,
    third_party_networks,
    thread_subscriptions,
    threepids,
    timestamp_to_event,
    to_device,
    url_previews,
    user_directory,
    versions,
    voip,
    well_known,
)
from homeserver.http import probes
from homeserver.oauth import clients as oauth_clients
from homeserver.oauth import metadata as oauth_metadata
from homeserver.oauth import tokens as oauth_tokens
from homeserver.web import account as account_page
from homeserver.web import application_passwords as application_passwords_page
from homeserver.web import (
    approvals,
    auth_fallback,
    authorize,
    confirm_email,
    device_link,
    landing,
    login_fallback,
    logo,
    renew_account,
    reset_password,
    sign_in,
    sso,
    terms,
    unsubscribe,
    upstream,
    upstream_callbacks,
)
from homeserver.web import register as register_page

SOURCES: tuple[ModuleType, ...] = (
    server_devices,
    federation_events,
    federation_invites,
    federation_media,
    federation_membership,
    federation_queries,
    federation_spaces,
    federation_transactions,
    server_keys,
    server_version,
    admin_account_validity,
    admin_application_passwords,
    admin_approvals,
    admin_audit,
    admin_consents,
    admin_devices,
    admin_external_ids,
    admin_media,
    media_batches,
    admin_media_scans,
    admin_purges,
    admin_pushers,
    admin_registration_tokens,
    admin_reports,
    admin_user_actions,
    admin_users,
    account,
    account_data,
    account_moderation,
    account_page,
    approvals,
    account_validity,
    application_passwords_page,
    auth_fallback,
    authorize,
    capabilities,
    confirm_email,
    dehydrated_devices,
    delayed_events,
    devices,
    timestamp_to_event,
    filters,
    key_backups,
    keys,
    landing,
    device_link,
    login,
    logo,
    login_fallback,
    logout,
    media,
    media_proxy,
    mutual_rooms,
    initial_sync,
    openid,
    own_media,
    presence,
    probes,
    profiles,
    notifications,
    oauth_clients,
    oauth_metadata,
    oauth_tokens,
    push_rules,
    pushers,
    receipts,
    destinations,
    federation_policy,
    register,
    register_page,
    registration,
    relations,
    rendezvous,
    renew_account,
    reports,
    reset_password,
    retention,
    room_creation,
    room_directory,
    room_events,
    room_membership,
    room_previews,
    room_upgrades,
    search,
    sign_in,
    sliding_sync,
    spaces,
    sso,
    sync,
    tags,
    terms,
    thread_subscriptions,
    threepids,
    third_party_networks,
    to_device,
    unsubscribe,
    upstream,
    upstream_callbacks,
    url_previews,
    user_directory,
    versions,
    voip,
    well_known,
)
"""All modules that declare endpoints."""


def declared_routes() -> list[tuple[str, str]]:
    """Return method and path of each endpoint, sorted by path. Needs neither configuration nor
    database."""
    declarations = [
        declaration
        for source in SOURCES
        for value in vars(source).values()
        if (declaration := find_declaration(value)) is not None
        and value.__module__ == source.__name__
    ]
    return sorted(
        ((declaration.method, path) for declaration in declarations for path in declaration.paths),
        key=lambda route: (route[1], route[0]),
    )
