"""Wires the services by which users manage their accounts: deactivation, devices, account data,
push rules, filters."""

from collections.abc import Mapping, Sequence

from twisted.logger import Logger

from federation.http_client.client import WebClient
from homeserver.cluster.jobs import Job
from homeserver.config.server import ServerNameOptions
from homeserver.services.account_data.account_data import AccountData
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.accounts.threepids import Threepids
from homeserver.services.administration.moderation import AccountModeration
from homeserver.services.devices.devices import Devices
from homeserver.services.filters.filters import Filters
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.login_tokens import LoginTokens
from homeserver.services.oauth.metadata import ACCOUNT_PATH
from homeserver.services.push.push_rules import PushRules, push_rules_content
from homeserver.services.push.stored_rules import PUSH_RULES
from homeserver.services.rooms.forget_on_leave import ForgetOnLeave
from homeserver.services.threepids.identity_bindings import IdentityBindings
from homeserver.services.threepids.validation import PASSWORD_RESET
from homeserver.services.upstream.accounts import UpstreamStages
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.email import EmailParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.login import LoginParts
from homeserver.wiring.oauth import has_own_pages
from homeserver.wiring.presence import PresenceParts
from homeserver.wiring.push_rules import PushRuleParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_services import RoomServiceParts
from storage.account_data.account_data import AccountDataStore
from storage.directory.shadow_ban import ShadowRoomStore
from storage.encryption.key_backups import KeyBackupStore
from storage.filters.filters import FilterStore
from storage.login.openid_tokens import OpenIDTokenStore
from storage.push.event_push_actions import EventPushActionStore
from storage.rooms.delayed_events import DelayedEventStore
from storage.threepids.identity_bindings import IdentityBindingStore
from storage.upstream.external_ids import ExternalIdStore


class UserDataParts:
    """The services by which users manage their accounts. Public attributes are for the router."""

    log = Logger()

    def __init__(
        self,
        *,
        base: Foundation,
        web: WebClient,
        accounts: AccountParts,
        login: LoginParts,
        email: EmailParts,
        push: PushRuleParts,
        rooms: RoomDataParts,
        presence: PresenceParts,
        devices: DeviceParts,
        services: RoomServiceParts,
    ) -> None:
        """`web` sends requests to the identity server."""
        config, clock, database = base.config, base.clock, base.database
        limiter, identity = base.limiter, base.identity
        self._forget_on_leave: ForgetOnLeave | None = None
        if config.rooms.forget_rooms_on_leave:
            self._forget_on_leave = ForgetOnLeave(
                store=rooms.membership_store, streams=database.streams, clock=clock
            )
        self._renewals = accounts.renewals
        store = AccountDataStore(database)
        self.bindings = IdentityBindings(
            clock=clock,
            database=database,
            web=web,
            store=IdentityBindingStore(database),
            identity=identity,
            limiter=limiter,
            url=config.name.default_identity_server,
        )
        self.deactivation = Deactivation(
            clock=clock,
            database=database,
            accounts=accounts.stores.accounts,
            account_data=store,
            profiles=accounts.stores.profiles,
            sessions=accounts.sessions,
            threepids=email.threepids,
            rooms=services.memberships,
            user_stores=[
                presence.presence,
                push.threads,
                DelayedEventStore(database),
                OpenIDTokenStore(database),
                accounts.stores.pushers,
                EventPushActionStore(database),
                accounts.stores.validity,
                KeyBackupStore(database=database),
                devices.cross_signing_store,
                ShadowRoomStore(database),
            ],
            bindings=self.bindings,
        )
        self.confirmation = AccountConfirmation(
            clock=clock,
            accounts=accounts.stores.accounts,
            sign_in=login.sign_in,
            uia=login.uia,
            account_page=(config.name.public_baseurl or "").rstrip("/") + ACCOUNT_PATH,
            other_proofs=UpstreamStages(
                links=ExternalIdStore(database),
                in_browsers=config.upstream.browser_ids,
                by_password=config.upstream.directory_ids,
                by_plugins=accounts.plugins.check_passwords,
            ),
            confirmations=accounts.stores.confirmations,
            confirmed_for_ms=config.sessions.ui_auth.session_timeout,
        )
        self.accounts = Accounts(
            clock=clock,
            database=database,
            accounts=accounts.stores.accounts,
            passwords=accounts.passwords,
            sessions=accounts.sessions,
            sign_in=login.sign_in,
            uia=login.uia,
            confirmation=self.confirmation,
            deactivation=self.deactivation,
            threepids=email.threepids,
            by_email=email.outbox is not None,
            by_phone=login.phones.supports_purpose(PASSWORD_RESET),
        )
        self.threepids = Threepids(
            now_ms=base.now_ms,
            database=database,
            store=email.threepids,
            confirmation=self.confirmation,
            validations=email.validations,
            address_stores=[accounts.stores.pushers],
            bindings=self.bindings,
            users_may_change=config.mail.enable_3pid_changes,
        )
        self.moderation = AccountModeration(
            accounts=self.accounts,
            devices=accounts.stores.devices,
            last_seen=accounts.last_seen,
            identity=identity,
        )
        self.login_tokens = LoginTokens(
            clock=clock,
            secret_text=accounts.secret_text,
            database=database,
            store=accounts.stores.login_tokens,
            upstream_sessions=accounts.stores.upstream_sessions,
            account_store=accounts.stores.accounts,
            confirmation=self.confirmation,
            sign_in=login.sign_in,
            sessions=accounts.sessions,
            limiter=limiter,
            application_passwords=accounts.application_passwords,
            issued_to_sessions=config.sessions.login_via_existing_session.enabled,
            requires_confirmation=config.sessions.login_via_existing_session.require_ui_auth,
            lifetime_ms=config.sessions.login_via_existing_session.token_timeout,
            issued_to_browsers=bool(config.upstream.browser_ids)
            or (has_own_pages(config) and login.sign_in.password_login),
        )
        self.devices = Devices(
            database=database,
            devices=accounts.stores.devices,
            sessions=accounts.sessions,
            confirmation=self.confirmation,
            last_seen=accounts.last_seen,
        )
        info_uri = config.name.public_baseurl or f"https://{config.server_name}/"
        self.account_data = AccountData(
            database=database,
            store=store,
            max_entries=config.users.max_account_data_entries,
            max_bytes=config.users.max_account_data_size,
            info_uri=info_uri,
            computed={PUSH_RULES: push_rules_content},
        )
        self.push_rules = PushRules(database=database, account_data=store, changes=push.changes)
        self.filters = Filters(
            store=FilterStore(database), now_ms=base.now_ms, capacity=base.sizes.filter_bytes
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("leave_rooms_of_deactivated_accounts", self.deactivation.do_leave_rooms, 600.0),
            Job("set_account_expiry", self._renewals.do_set_missing_expiries, 60.0),
            Job("mark_expired_accounts", self._renewals.do_mark_expired, 60.0),
            Job("unbind_threepids", self.bindings.do_unbind_due, 60.0),
            Job("send_renewal_emails", self._renewals.do_send_emails, 300.0),
            *(
                []
                if self._forget_on_leave is None
                else [Job("forget_left_rooms", self._forget_on_leave.do_forget, 60.0)]
            ),
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (
            self.account_data,
            self.accounts,
            self.bindings,
            self.devices,
            self.filters,
            self.login_tokens,
            self.moderation,
            self.push_rules,
            self.threepids,
        )


def read_identity_server(name: ServerNameOptions) -> Mapping[str, object]:
    """Return the identity server entry for the client discovery document; empty if there is no such
    server."""
    url = name.default_identity_server
    return {} if url is None else {"m.identity_server": {"base_url": url}}
