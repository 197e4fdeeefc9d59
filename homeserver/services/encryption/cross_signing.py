"""Cross-signing: the keys with which users sign their devices and each other's master keys.

spec: client-server-api#cross-signing
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from federation.devices.published_keys import PublishedKeyCache
from federation.protocol.device_keys import decode_ed25519, parse_cross_signing_key
from federation.protocol.errors import (
    Forbidden,
    InvalidParam,
    InvalidSignature,
    MatrixError,
    MissingParam,
    NotFound,
)
from federation.protocol.ids import KeyID, UserID
from federation.protocol.signing import is_signed_by
from homeserver.api.requester import Requester
from homeserver.services.encryption.cross_signing_resets import CrossSigningResets
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.credential_epoch import check_epoch
from homeserver.services.login.uia import AuthData
from storage.devices.devices import DeviceStore
from storage.encryption.cross_signing import CrossSigningKey, CrossSigningStore, KeySignature
from storage.encryption.published_keys import are_keys_current
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

MASTER, SELF_SIGNING, USER_SIGNING = "master", "self_signing", "user_signing"
MAX_SIGNATURES: Final = 1000

Keys = Mapping[str, CrossSigningKey]


class KeySet(msgspec.Struct, frozen=True):
    """The body of the upload, without `auth`."""

    master_key: dict[str, Any] | None = None
    self_signing_key: dict[str, Any] | None = None
    user_signing_key: dict[str, Any] | None = None


class CrossSigning:
    """Stores uploaded cross-signing keys and signatures."""

    def __init__(
        self,
        *,
        database: Database,
        store: CrossSigningStore,
        published: PublishedKeyCache,
        devices: DeviceStore,
        confirmation: AccountConfirmation,
        resets: CrossSigningResets,
        programs: ApplicationPasswords,
    ) -> None:
        self._database = database
        self._store = store
        self._published = published
        self._devices = devices
        self._confirmation = confirmation
        self._resets = resets
        self._programs = programs

    async def do_upload(
        self, caller: Requester, keys: KeySet, auth: AuthData | None, address: str
    ) -> None:
        """Set keys. The first keys and unchanged keys need no confirmation; later additions and
        replacements need one, except by application services. Raises AuthenticationRequired,
        InvalidParam, MissingParam, InvalidSignature, Forbidden.

        spec: client-server-api#post_matrixclientv3keysdevice_signingupload
        """
        uploaded = {
            usage: _parse(caller.user_id, usage, key)
            for usage, key in (
                (MASTER, keys.master_key),
                (SELF_SIGNING, keys.self_signing_key),
                (USER_SIGNING, keys.user_signing_key),
            )
            if key is not None
        }
        if not uploaded:
            raise MissingParam("No key was given")
        while not await self._set(caller, uploaded, auth, address):
            pass  # another upload was faster: compare again

    async def _set(
        self, caller: Requester, uploaded: Keys, auth: AuthData | None, address: str
    ) -> bool:
        """Set keys. Return False if another upload changed them meanwhile."""
        stored_keys = (await self._published.get_published([caller.user_id])).cross_signing.get(
            caller.user_id, {}
        )
        master = uploaded.get(MASTER) or stored_keys.get(MASTER)
        if master is None:
            raise MissingParam("There is no master key, and none was given")
        for usage in (SELF_SIGNING, USER_SIGNING):
            if usage in uploaded:
                _check_signed(uploaded[usage], master)
        changed = [
            key
            for usage, key in uploaded.items()
            if usage not in stored_keys or stored_keys[usage] != key
        ]
        if changed and await self._programs.is_application_session(caller):
            raise Forbidden(
                "A session with an application password cannot set cross-signing keys, "
                "which would outlive it"
            )
        if (
            MASTER in stored_keys
            and any(_is_new(key, stored_keys) for key in uploaded.values())
            and caller.appservice_id is None
        ):
            return await self._replace(caller, stored_keys, changed, auth, address)
        if not changed:
            return True
        return await self._database.write(
            "set_cross_signing_keys", self._set_keys, caller.user_id, stored_keys, changed
        )

    def _set_keys(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        stored_keys: Keys,
        changed: Sequence[CrossSigningKey],
    ) -> bool:
        """Set keys of a user whose current keys are `stored_keys`. Return False if they have
        changed. Raises Forbidden.

        spec: client-server-api#key-and-signature-security
        """
        if self._devices.get_ids_in(txn, user_id, [key.public_key for key in changed]):
            raise Forbidden("One of the keys has the name of one of your devices")
        return self._store.set_keys(txn, stored_keys, changed)

    async def _replace(
        self,
        caller: Requester,
        stored_keys: Keys,
        changed: Sequence[CrossSigningKey],
        auth: AuthData | None,
        address: str,
    ) -> bool:
        """Set keys that replace or extend existing ones, after confirmation."""
        operation = "POST keys/device_signing/upload"
        epoch = None
        allowed = await self._resets.is_allowed(caller.user_id)
        if not allowed and caller.oauth_client is not None:
            await self._resets.require(caller, operation, auth, address)
        elif not allowed:
            epoch = await self._confirmation.check_confirmed(
                caller, operation, auth, address, accepts_earlier=True
            )

        def write(txn: WriteTransaction) -> bool:
            if epoch is not None:
                check_epoch(txn, caller.user_id, epoch)
            is_done = self._set_keys(txn, caller.user_id, stored_keys, changed)
            if is_done:
                self._resets.complete(txn, caller, address)
            return is_done

        return await self._database.write("replace_cross_signing_keys", write)

    async def do_sign(
        self, caller: Requester, signed: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Add signatures and return the failures by user and key. Raises InvalidParam.

        spec: client-server-api#post_matrixclientv3keyssignaturesupload
        """
        if sum(len(keys) for keys in signed.values()) > MAX_SIGNATURES:
            raise InvalidParam(f"At most {MAX_SIGNATURES} keys can be signed at once")
        while (failures := await self._sign(caller, signed)) is None:
            pass  # a key was replaced meanwhile: check the signatures against the new key
        return {"failures": failures}

    async def _sign(
        self, caller: Requester, signed: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, Any]] | None:
        """Add the valid signatures and return the failures. Return None and add nothing if keys
        were replaced meanwhile."""
        # read other users' keys from the database: storing the list of a remote user for the first
        # time is not announced to caches
        others = {user_id for user_id in signed if user_id != caller.user_id}
        published = await self._published.get_published([caller.user_id], others)
        keys = published.cross_signing
        identity_keys = {
            row.device_id: row.keys for row in published.devices.get(caller.user_id, ())
        }
        failures: dict[str, dict[str, Any]] = {}
        signatures: list[KeySignature] = []
        for user_id, objects in signed.items():
            for name, content in objects.items():
                try:
                    signatures += _check_new_signatures(
                        caller.user_id, user_id, name, content, keys, identity_keys
                    )
                except MatrixError as error:
                    failures.setdefault(user_id, {})[name] = error.body()
        if not signatures:
            return failures

        def write(txn: WriteTransaction) -> bool:
            if not are_keys_current(
                txn, published, caller.user_id, {each.target_user_id for each in signatures}
            ):
                return False
            self._store.add_signatures(txn, signatures)
            return True

        return failures if await self._database.write("add_key_signatures", write) else None


def _is_new(key: CrossSigningKey, stored_keys: Keys) -> bool:
    """Return whether the key differs from the stored one. Signatures do not count."""
    old = stored_keys.get(key.usage)
    return old is None or _without_signatures(
        msgspec.json.decode(old.content)
    ) != _without_signatures(msgspec.json.decode(key.content))


def _parse(user_id: str, usage: str, key: dict[str, Any]) -> CrossSigningKey:
    parsed = parse_cross_signing_key(user_id, usage, key)
    return CrossSigningKey(user_id, usage, parsed.public_key, parsed.content)


def _check_signed(key: CrossSigningKey, master: CrossSigningKey) -> None:
    public = {KeyID(f"ed25519:{master.public_key}"): decode_ed25519(master.public_key)}
    if not is_signed_by(msgspec.json.decode(key.content), key.user_id, public):
        raise InvalidSignature(f"The {key.usage} key is not signed by the master key")


def _check_new_signatures(
    signer: str,
    target: str,
    name: str,
    content: Any,
    keys: Mapping[str, Keys],
    identity_keys: Mapping[str, bytes],
) -> list[KeySignature]:
    """Check the caller's signatures on one object and return them. Raises NotFound, InvalidParam,
    InvalidSignature."""
    if not isinstance(content, dict) or not isinstance(content.get("signatures"), dict):
        raise InvalidParam("The signed value has to be an object with signatures")
    own, target_keys = keys.get(signer, {}), keys.get(target, {})
    if target == signer and name in identity_keys:
        stored, signing = identity_keys[name], _public(own, SELF_SIGNING)
    elif MASTER in target_keys and target_keys[MASTER].public_key == name:
        stored = target_keys[MASTER].content
        signing = _device_public(identity_keys) if target == signer else _public(own, USER_SIGNING)
    else:
        raise NotFound("There is no such device or master key")
    if _without_signatures(content) != _without_signatures(msgspec.json.decode(stored)):
        raise InvalidParam("The signed key differs from the published one")
    own_signatures = content["signatures"].get(signer)
    if not isinstance(own_signatures, dict) or not own_signatures:
        raise InvalidSignature("The object has no signature of yours")
    found: list[KeySignature] = []
    for key_id, signature in own_signatures.items():
        if key_id not in signing or not isinstance(signature, str):
            continue
        only = {**content, "signatures": {signer: {key_id: signature}}}
        if not is_signed_by(only, signer, {key_id: signing[key_id]}):
            raise InvalidSignature(f"The signature by {key_id} is wrong")
        found.append(KeySignature(target, name, signer, key_id, signature))
    if not found:
        raise InvalidSignature("The object has no signature by a key that may sign it")
    return found


def _without_signatures(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("signatures", "unsigned")}


def _public(own: Keys, usage: str) -> dict[KeyID, bytes]:
    key = own.get(usage)
    if key is None:
        raise NotFound(f"You have no {usage} key")
    key_id = KeyID(f"ed25519:{key.public_key}")
    return {key_id: decode_ed25519(key.public_key)}


def _device_public(identity_keys: Mapping[str, bytes]) -> dict[KeyID, bytes]:
    public: dict[KeyID, bytes] = {}
    for device_id, content in identity_keys.items():
        key_id = KeyID(f"ed25519:{device_id}")
        key = msgspec.json.decode(content)["keys"].get(key_id)
        with suppress(InvalidParam):  # a device may have published a key that cannot sign
            public[key_id] = decode_ed25519(key)
    return public
