"""Export of an account's data for its owner, without messages, which belong to rooms."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import RoomID, ServerName, UserID
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.self_service import AccountSelfService
from homeserver.services.audit.audit import DEDUPLICATION_MS, Audit, AuditEvent, record_event
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.rooms.membership import RoomMemberships
from storage.account_data.account_data import AccountDataStore
from storage.accounts.policy_consents import PolicyConsentStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.lists import MediaListStore, MediaOrder
from storage.threepids.identity_bindings import IdentityBindingStore
from storage.upstream.external_ids import ExternalIdStore

MAX_ROWS: Final = 10_000
"""Maximum number of audit records, and of files, in one export: the newest."""


class AccountExport:
    """Creates exports."""

    # More than ten: it collects what every topic stores of a user.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        server_name: ServerName,
        own_account: AccountSelfService,
        accounts: Accounts,
        profiles: Profiles,
        account_data: AccountDataStore,
        rooms: RoomMemberships,
        application_passwords: ApplicationPasswords,
        consents: PolicyConsentStore,
        links: ExternalIdStore,
        bindings: IdentityBindingStore,
        audit: Audit,
        files: MediaListStore,
    ) -> None:
        self._clock = clock
        self._database = database
        self._server_name = server_name
        self._own_account = own_account
        self._accounts = accounts
        self._profiles = profiles
        self._account_data = account_data
        self._rooms = rooms
        self._programs = application_passwords
        self._consents = consents
        self._links = links
        self._bindings = bindings
        self._audit = audit
        self._files = files

    async def do_export(self, user_id: UserID, ip: str) -> Mapping[str, Any]:
        """Return the export as a JSON object; times are milliseconds since 1970.

        Files are listed with their total number and size; the owner downloads them one by one.
        The export is recorded in the audit log first, with the client's address `ip`.
        """
        await self._database.write("note_export", self._record, user_id, ip)
        account = await self._accounts.get_account(user_id)
        overview = await self._own_account.get_overview(user_id)
        data = await self._account_data.get_account_data(user_id)
        rooms: Sequence[RoomID] = await self._rooms.get_joined_rooms(user_id)
        return {
            "user_id": user_id,
            "created_ts": account.created_ts,
            "expires_ts": overview.expires_ts,
            "profile": await self._profiles.get_profile(user_id, user_id),
            "addresses": overview.addresses,
            "telephone_numbers": overview.numbers,
            "identity_servers": [
                {"medium": row.medium, "address": row.address, "id_server": row.id_server}
                for row in await self._bindings.get_bindings(user_id)
            ],
            "sign_in_services": [
                {"provider": row.provider, "subject": row.subject, "linked_ts": row.linked_ts}
                for row in (await self._links.get_links_of_users([user_id])).get(user_id, [])
            ],
            "consents": [
                {"policy": row.policy_id, "version": row.version, "ts": row.ts}
                for row in (await self._consents.get_consents([user_id])).get(user_id, [])
            ],
            "devices": [
                {
                    "device_id": device.row.device_id,
                    "display_name": device.row.display_name,
                    "created_ts": device.row.created_ts,
                    "last_seen_ts": device.row.last_seen_ts,
                    "last_seen_ip": device.row.last_seen_ip,
                    "last_seen_program": device.row.last_seen_user_agent,
                    "app": None if device.client is None else device.client.name,
                }
                for device in overview.devices
            ],
            "application_passwords": [
                {
                    "name": row.name,
                    "created_ts": row.created_ts,
                    "expires_ts": row.expires_ts,
                    "last_used_ts": row.used_ts,
                }
                for row in await self._programs.get_passwords(user_id)
            ],
            "records": [
                {
                    "ts": row.ts,
                    "event": row.event,
                    "address": row.address,
                    "device_id": row.device_id,
                    "detail": row.detail,
                }
                for row in await self._audit.get_records_for_owner(user_id, MAX_ROWS)
            ],
            "files": await self._list_files(user_id),
            "joined_rooms": rooms,
            "account_data": {
                type_: msgspec.Raw(content) for type_, content in data.global_data.items()
            },
            "room_account_data": {
                room_id: {type_: msgspec.Raw(content) for type_, content in entries.items()}
                for room_id, entries in data.rooms.items()
            },
        }

    def _record(self, txn: WriteTransaction, user_id: UserID, ip: str) -> None:
        now = int(self._clock.seconds() * 1000)
        record_event(
            txn, user_id, AuditEvent.DATA_EXPORTED, now, ip=ip, unless_since=now - DEDUPLICATION_MS
        )

    async def _list_files(self, user_id: UserID) -> Mapping[str, Any]:
        page = await self._files.get_uploads(
            user_id, MediaOrder("created_ts", descending=True), 0, MAX_ROWS
        )
        return {
            "count": page.count,
            "size": page.size,
            "newest": [
                {
                    "uri": f"mxc://{self._server_name}/{row.media_id}",
                    "name": row.content.name,
                    "type": row.content.type,
                    "size": row.content.size,
                    "created_ts": row.created_ts,
                }
                for row in page.rows
                if row.content is not None
            ],
        }
