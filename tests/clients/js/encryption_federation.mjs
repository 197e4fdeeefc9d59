// Checks end-to-end encryption between two servers, which are killed and stopped in turn, with
// matrix-js-sdk and its Rust crypto: users decrypt everything that they may read. Covers
// verification, device lists, one-time keys and membership changes over federation.
//
// usage: node encryption_federation.mjs SERVER_URL OTHER_SERVER_URL PREFIX
//
// Alice and Carol are on the first server, Bob is on the other one. PREFIX begins the names of the
// accounts. For the output and the actions on the servers, see crypto_clients.mjs. Exits with 0 on
// success.
import assert from "node:assert/strict";
import { pollUntil, waitForMemberCount, waitForMembership } from "./sdk.mjs";
import {
    bootstrapCrypto, claimAllOneTimeKeys, deleteDevice, ENCRYPTION_STATE, expectReadable,
    expectTimelineReadable, finish, isUserVerified, joinRoom, kick, killServerWithin, login,
    pauseSync, randomBelow, register, resetCrossSigning, restoreKeyBackup, sendMessage, startServer,
    step, stopClient, stopServer, verifyByQrCode, verifyBySas, verifyWithRecoveryKey, waitForBackup,
    waitForDevices, waitForOwnerSignature,
} from "./crypto_clients.mjs";

const [url, otherUrl, prefix] = process.argv.slice(2);
const FIRST_SERVER = 0, OTHER_SERVER = 1;
const KILLS = 4;

const [alice, bob, carol] = await Promise.all(
    [[url, "alice"], [otherUrl, "bob"], [url, "carol"]].map(
        ([serverUrl, name]) => register(serverUrl, `${prefix}-${name}`)));
const recoveryKeys = new Map();
for (const client of [alice, bob]) recoveryKeys.set(client, await bootstrapCrypto(client));

step("send messages in an encrypted room");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId(), carol.getUserId()],
    initial_state: [ENCRYPTION_STATE],
});
for (const client of [bob, carol]) await joinRoom(client, roomId);
for (const client of [alice, bob, carol]) await waitForMemberCount(client, roomId, 3);
await sendMessage(alice, roomId, "to the other server", [bob, carol]);
await sendMessage(bob, roomId, "from the other server", [alice, carol]);

step("verify Bob by SAS");
await verifyBySas(bob, () =>
    alice.getCrypto().requestVerificationDM(bob.getUserId(), roomId));
for (const [client, user] of [[alice, bob], [bob, alice]]) {
    await pollUntil("the user to be verified", () => isUserVerified(client, user));
}

step("kill the servers at random times while sessions start and messages are sent");
for (let kill = 0; kill < KILLS; kill++) {
    const sending = (async () => {
        for (const [client, readers] of [[alice, [bob, carol]], [bob, [alice, carol]]]) {
            await client.getCrypto().forceDiscardSession(roomId);
            const body = `from ${client.getUserId()} around kill ${kill}`;
            await sendMessage(client, roomId, body, readers);
        }
    })();
    await Promise.all([sending, killServerWithin(1500, randomBelow(2))]);
}

step("stop the other server; on the first one, start new sessions and log in a new device");
await stopServer(OTHER_SERVER);
const missedMessages = [];
for (const client of [alice, carol]) {
    await client.getCrypto().forceDiscardSession(roomId);
    const body = `from ${client.getUserId()} during the outage`;
    missedMessages.push([(await client.sendTextMessage(roomId, body)).event_id, body]);
}
const alice2 = await login(url, `${prefix}-alice`, recoveryKeys.get(alice).privateKey);
await verifyWithRecoveryKey(alice2);
await waitForDevices(carol, alice, 2);
for (const [eventId, body] of missedMessages) {
    await expectReadable([alice, carol], roomId, eventId, body);
}

step("start the other server: Bob decrypts the missed messages, and all decrypt his");
await startServer(OTHER_SERVER);
await bob.sendTyping(roomId, true, 5000);
for (const [eventId, body] of missedMessages) await expectReadable([bob], roomId, eventId, body);
await waitForOwnerSignature(bob, alice2);
await sendMessage(bob, roomId, "to all devices of Alice", [alice, alice2, carol]);
// Only now the new device can start an Olm session with Bob's device: the stopped server has its
// one-time keys.
await sendMessage(alice2, roomId, "from the new device of Alice", [alice, bob, carol]);

step("reset Bob's cross-signing keys: the others see the change");
await resetCrossSigning(bob);
for (const client of [alice, alice2]) {
    await pollUntil("Alice to see that Bob is no longer verified", async () =>
        (await client.getCrypto().getUserVerificationStatus(bob.getUserId())).needsUserApproval);
    await client.getCrypto().withdrawVerificationRequirement(bob.getUserId());
}
// Bob's old keys verified Alice, so his client does not trust her before he withdraws that.
await bob.getCrypto().withdrawVerificationRequirement(alice.getUserId());
await sendMessage(bob, roomId, "after the reset", [alice, alice2, carol]);

step("verify a second device of Bob by QR code and restore the key backup on it");
const bob2 = await login(otherUrl, `${prefix}-bob`);
await waitForDevices(alice, bob, 2);
await waitForDevices(bob, bob, 2);
await verifyByQrCode(bob, () => bob2.getCrypto().requestOwnUserVerification());
await waitForOwnerSignature(alice, bob2);
await pollUntil("the second device to receive the backup key", () =>
    bob2.getCrypto().getSessionBackupPrivateKey());
await waitForBackup(bob);
await restoreKeyBackup(bob2);
await expectTimelineReadable(bob2, roomId, missedMessages.map(([, body]) => body));

step("use up Carol's one-time keys and her fallback key over federation while she is offline");
const resumeSync = pauseSync(carol);
assert.ok((await claimAllOneTimeKeys(bob, carol)).size > 10);
const fallbackBody = "with a fallback key of the other server";
const { event_id: fallbackId } = await bob2.sendTextMessage(roomId, fallbackBody);
await expectReadable([alice, alice2, bob], roomId, fallbackId, fallbackBody);
resumeSync();
await expectReadable([carol], roomId, fallbackId, fallbackBody);

step("delete Bob's second device while the first server is down");
const sharedSession = await sendMessage(
    alice, roomId, "to both devices of Bob", [alice2, bob, bob2, carol]);
await stopServer(FIRST_SERVER);
stopClient(bob2);
await deleteDevice(bob, bob2.getDeviceId());
await startServer(FIRST_SERVER);
await sendMessage(bob, roomId, "the second device is deleted", [alice, alice2, carol]);
await waitForDevices(alice, bob, 1);
const sessionWithBob = await sendMessage(
    alice, roomId, "to one device of Bob", [alice2, bob, carol]);
assert.notEqual(sessionWithBob, sharedSession, "the deleted device had the session");

step("kick Bob and invite him again");
await kick(alice, roomId, bob);
await waitForMembership(bob, roomId, "leave");
await waitForMemberCount(alice, roomId, 2);
const sessionWithoutBob = await sendMessage(alice, roomId, "without Bob", [alice2, carol]);
assert.notEqual(sessionWithoutBob, sessionWithBob, "Bob had the session");
// The SDK shares the room keys of the past in a file, which a to-device message announces to the
// devices of the invited user.
await alice.invite(roomId, bob.getUserId());
await joinRoom(bob, roomId);
await waitForMemberCount(alice, roomId, 3);
await expectTimelineReadable(bob, roomId, ["without Bob"]);
await sendMessage(alice, roomId, "to Bob again", [alice2, bob, carol]);
await sendMessage(bob, roomId, "from Bob again", [alice, alice2, carol]);

finish();
