// Checks end-to-end encryption with matrix-js-sdk and its Rust crypto: three users with five
// devices decrypt everything that they may read, while the server is killed. Covers key backup,
// recovery, SAS verification, fallback keys, and new sessions after a device or a member is gone.
//
// usage: node encryption.mjs SERVER_URL PREFIX [kills]
//
// PREFIX begins the names of the accounts. With `kills`, the server is killed at random times
// throughout. For the output and the actions on the server, see crypto_clients.mjs. Exits with 0 on
// success.
import assert from "node:assert/strict";
import { pollUntil, waitForMemberCount, waitForMembership } from "./sdk.mjs";
import {
    bootstrapCrypto, claimAllOneTimeKeys, deleteDevice, ENCRYPTION_STATE, expectReadable,
    expectTimelineReadable, finish, joinRoom, kick, killRepeatedly, killServer, killServerWithin,
    login, pauseSync, register, resetCrossSigning, restoreKeyBackup, sendMessage, step, stopClient,
    verifyBySas, verifyWithRecoveryKey, waitForBackup, waitForCrossSigning, waitForDevices,
    waitForOwnerSignature,
} from "./crypto_clients.mjs";

const [url, prefix, kills] = process.argv.slice(2);

const [alice, bob, carol] = await Promise.all(
    ["alice", "bob", "carol"].map((name) => register(url, `${prefix}-${name}`)));
const stopKilling = kills ? killRepeatedly(url) : () => {};

step("set up cross-signing, secret storage and key backup");
const recoveryKeys = new Map();
for (const client of [alice, bob]) recoveryKeys.set(client, await bootstrapCrypto(client));
await resetCrossSigning(alice);

step("send messages in an encrypted room");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId(), carol.getUserId()],
    initial_state: [ENCRYPTION_STATE],
});
for (const client of [bob, carol]) await joinRoom(client, roomId);
await waitForMemberCount(alice, roomId, 3);
const firstBody = "before the second devices";
await sendMessage(alice, roomId, firstBody, [bob, carol, alice]);
await sendMessage(bob, roomId, "from Bob", [alice, carol]);
await sendMessage(carol, roomId, "from Carol", [alice, bob]);

step("kill the server between messages, and while messages are sent");
await killServer();
await sendMessage(alice, roomId, "after a kill", [bob, carol]);
await bob.getCrypto().forceDiscardSession(roomId);
const bobSends = (async () => {
    for (let index = 0; index < 10; index++) {
        await sendMessage(bob, roomId, `during a kill: ${index}`, [alice, carol]);
    }
})();
await Promise.all([alice.getCrypto().forceDiscardSession(roomId), killServerWithin(500)]);
await sendMessage(alice, roomId, "in a new session while the server starts", [bob, carol]);
await bobSends;

step("log in a second device of Bob and verify it by SAS");
const bob2 = await login(url, `${prefix}-bob`);
await waitForDevices(alice, bob, 2);
await sendMessage(alice, roomId, "to Bob's second device", [bob, bob2, carol]);
await sendMessage(bob2, roomId, "from Bob's second device", [alice, bob, carol]);
await waitForDevices(bob, bob, 2);
await verifyBySas(bob, () => bob2.getCrypto().requestOwnUserVerification());
await waitForCrossSigning(bob, bob2);
await waitForOwnerSignature(alice, bob2);
await pollUntil("the second device to receive the secrets", async () =>
    (await bob2.getCrypto().getCrossSigningStatus()).privateKeysCachedLocally.selfSigningKey
    && (await bob2.getCrypto().getSessionBackupPrivateKey()));

step("log in a second device of Alice and restore the key backup with the recovery key");
await waitForBackup(alice);
const alice2 = await login(url, `${prefix}-alice`, recoveryKeys.get(alice).privateKey);
await verifyWithRecoveryKey(alice2);
await alice2.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
await restoreKeyBackup(alice2);
await expectTimelineReadable(alice2, roomId, [firstBody]);

step("use up Carol's one-time keys and her fallback key while she is offline");
const resumeSync = pauseSync(carol);
assert.ok((await claimAllOneTimeKeys(bob, carol)).size > 10);
await waitForDevices(bob2, alice, 2);
const messages = [];
for (const client of [alice2, bob2]) {
    await client.getCrypto().forceDiscardSession(roomId);
    const body = `from ${client.getDeviceId()} with a fallback key`;
    messages.push([(await client.sendTextMessage(roomId, body)).event_id, body]);
}
resumeSync();
for (const [eventId, body] of messages) await expectReadable([carol], roomId, eventId, body);
await pollUntil("the upload of new one-time keys", async () => {
    const response = await carol.http.authedRequest("POST", "/keys/upload", undefined, {});
    return response.one_time_key_counts.signed_curve25519 > 40;
});

step("delete Bob's second device: the next session is not shared with it");
const sharedSession = await sendMessage(
    alice, roomId, "to both devices of Bob", [alice2, bob, bob2, carol]);
stopClient(bob2);
await deleteDevice(bob, bob2.getDeviceId());
await waitForDevices(alice, bob, 1);
const sessionWithCarol = await sendMessage(
    alice, roomId, "to one device of Bob", [alice2, bob, carol]);
assert.notEqual(sessionWithCarol, sharedSession, "the deleted device had the session");

step("kick Carol: the next session is not shared with her");
await kick(alice, roomId, carol);
await waitForMembership(carol, roomId, "leave");
await waitForMemberCount(alice, roomId, 2);
const sessionWithoutCarol = await sendMessage(alice, roomId, "without Carol", [alice2, bob]);
assert.notEqual(sessionWithoutCarol, sessionWithCarol, "Carol had the session");
await sendMessage(bob, roomId, "the last message", [alice, alice2]);

await stopKilling();
finish();
