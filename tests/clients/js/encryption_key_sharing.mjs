// Checks how keys are shared and withheld in end-to-end encryption, with matrix-js-sdk and its Rust
// crypto: verification by QR codes, room history for an invited user, a dehydrated device, and keys
// withheld from unverified devices.
//
// usage: node encryption_key_sharing.mjs SERVER_URL PREFIX [kills]
//
// PREFIX begins the names of the accounts. With `kills`, the server is killed at random times
// throughout. For the output and the actions on the server, see crypto_clients.mjs. Exits with 0 on
// success.
import assert from "node:assert/strict";
import { pollUntil, waitFor, waitForMemberCount } from "./sdk.mjs";
import {
    bootstrapCrypto, ENCRYPTION_STATE, expectReadable, finish, isUserVerified, joinRoom,
    killRepeatedly, login, register, sendMessage, step, stopClient, verifyByQrCode,
    verifyWithRecoveryKey, waitForCrossSigning, waitForDevices,
} from "./crypto_clients.mjs";

const [url, prefix, kills] = process.argv.slice(2);

const [alice, bob, carol] = await Promise.all(
    ["alice", "bob", "carol"].map((name) => register(url, `${prefix}-${name}`)));
const stopKilling = kills ? killRepeatedly(url) : () => {};
const recoveryKeys = new Map();
for (const client of [alice, bob, carol]) recoveryKeys.set(client, await bootstrapCrypto(client));

step("send a message in an encrypted room");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId()], initial_state: [ENCRYPTION_STATE],
});
await joinRoom(bob, roomId);
await waitForMemberCount(alice, roomId, 2);
await sendMessage(alice, roomId, "to Bob alone", [alice, bob]);

step("verify a second device of Alice by QR code");
const alice2 = await login(url, `${prefix}-alice`);
await waitForDevices(alice, alice, 2);
await verifyByQrCode(alice, () => alice2.getCrypto().requestOwnUserVerification());
await waitForCrossSigning(alice, alice2);
await pollUntil("the second device to receive the secrets", async () =>
    (await alice2.getCrypto().getCrossSigningStatus()).privateKeysCachedLocally.userSigningKey);

step("verify Bob by QR code: Alice's second device sees it, and Carol does not");
await verifyByQrCode(bob, () =>
    alice.getCrypto().requestVerificationDM(bob.getUserId(), roomId));
await pollUntil("Alice to have verified Bob", () => isUserVerified(alice, bob));
await pollUntil("her second device to see that", () => isUserVerified(alice2, bob));
assert.equal(await isUserVerified(carol, bob), false);

step("invite Carol: she decrypts earlier messages");
const beforeInvite = "before Carol's invite";
const { event_id: beforeInviteId } = await alice.sendTextMessage(roomId, beforeInvite);
await expectReadable([alice2, bob], roomId, beforeInviteId, beforeInvite);
await alice.invite(roomId, carol.getUserId());
await joinRoom(carol, roomId);
await waitFor(carol, "the earlier events of the room", () =>
    carol.getRoom(roomId)?.getLiveTimeline().getEvents().length > 5);
await expectReadable([carol], roomId, beforeInviteId, beforeInvite);
await sendMessage(carol, roomId, "from Carol", [alice, alice2, bob]);

step("create a dehydrated device of Bob, and stop his client");
assert.ok(await bob.getCrypto().isDehydrationSupported());
await bob.getCrypto().startDehydration({ createNewKey: true });
await waitForDevices(alice, bob, 2);
await waitForDevices(carol, bob, 2);
stopClient(bob);
await alice.getCrypto().forceDiscardSession(roomId);
const missedMessages = [];
for (const client of [alice, alice2, carol]) {
    const body = `from ${client.getDeviceId()} while Bob is offline`;
    missedMessages.push([(await client.sendTextMessage(roomId, body)).event_id, body]);
}
for (const [eventId, body] of missedMessages) {
    await expectReadable([alice, alice2, carol], roomId, eventId, body);
}

step("rehydrate the device on a new device of Bob");
const bob2 = await login(url, `${prefix}-bob`, recoveryKeys.get(bob).privateKey);
await verifyWithRecoveryKey(bob2);
await bob2.getCrypto().startDehydration();
for (const [eventId, body] of missedMessages) await expectReadable([bob2], roomId, eventId, body);
await waitForDevices(alice, bob2, 3); // with a new dehydrated device
await sendMessage(bob2, roomId, "from the new device of Bob", [alice, alice2, carol]);
await sendMessage(alice, roomId, "to the new device of Bob", [alice2, bob2, carol]);

step("withhold keys from unverified devices: Carol's client learns the reason");
alice.getCrypto().globalBlacklistUnverifiedDevices = true;
await alice.getCrypto().forceDiscardSession(roomId);
const verifiedOnly = "to verified devices only";
const { event_id: verifiedOnlyId } = await alice.sendTextMessage(roomId, verifiedOnly);
await expectReadable([alice2, bob2], roomId, verifiedOnlyId, verifiedOnly);
await pollUntil("the notice that the key is withheld", () => {
    const event = carol.getRoom(roomId).findEventById(verifiedOnlyId);
    return event?.decryptionFailureReason === "MEGOLM_KEY_WITHHELD_FOR_UNVERIFIED_DEVICE";
});
alice.getCrypto().globalBlacklistUnverifiedDevices = false;
await alice.getCrypto().forceDiscardSession(roomId);
await sendMessage(alice, roomId, "to all devices again", [alice2, bob2, carol]);

await stopKilling();
finish();
