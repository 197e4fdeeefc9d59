// End-to-end encryption with matrix-js-sdk and its Rust crypto: three people, five devices, and a server that is killed.
//
// usage: node encryption.mjs SERVER_URL PREFIX [kills]
//
// PREFIX begins the names of the accounts. What it prints, and what it asks for: people.mjs. Ends with 0 when all went well.
import assert from "node:assert/strict";
import { until } from "./sdk.mjs";
import {
    account, allBackedUp, bootstrap, decrypted, device, devicesOf, ENCRYPTION, end, enter, eventually, holdUp, kick, killAgainAndAgain,
    killServer, killServerAtRandom, lay, passwordOf, readsAll, recover, removeDevice, say, statusFor, step, useUpKeys, verifyByEmoji,
} from "./people.mjs";

const [url, prefix, kills] = process.argv.slice(2);

const [alice, bob, carol] = await Promise.all(["alice", "bob", "carol"].map((name) => account(url, `${prefix}-${name}`)));
const leaveInPeace = kills ? killAgainAndAgain(url) : () => {};

step("cross-signing, secret storage and a backup");
const keys = new Map();
for (const client of [alice, bob]) keys.set(client, await bootstrap(client));
// Her identity anew, which has to be confirmed; what trusted the old one is made anew as well.
await alice.getCrypto().bootstrapCrossSigning({
    setupNewCrossSigning: true, authUploadDeviceSigningKeys: passwordOf(alice),
});
await alice.getCrypto().resetKeyBackup();

step("a room");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId(), carol.getUserId()],
    initial_state: [ENCRYPTION],
});
for (const client of [bob, carol]) await enter(client, roomId);
await until(alice, "all in the room", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 3);
const early = "before any second device";
await say(alice, roomId, early, [bob, carol, alice]);
await say(bob, roomId, "to all of you", [alice, carol]);
await say(carol, roomId, "and back", [alice, bob]);

step("the server is killed between messages, and while they are sent");
await killServer();
await say(alice, roomId, "after the power failure", [bob, carol]);
await bob.getCrypto().forceDiscardSession(roomId);
const meanwhile = (async () => {
    for (let number = 0; number < 10; number++) await say(bob, roomId, `meanwhile ${number}`, [alice, carol]);
})();
await Promise.all([alice.getCrypto().forceDiscardSession(roomId), killServerAtRandom(500)]);
await say(alice, roomId, "with a new session while the server starts", [bob, carol]);
await meanwhile;

step("a second device of Bob's reads what comes now, and is verified by emoji");
const bob2 = await device(url, `${prefix}-bob`);
await eventually("Alice to know Bob's second device", async () => (await devicesOf(alice, bob)).length === 2);
await say(alice, roomId, "welcome, second device", [bob, bob2, carol]);
await say(bob2, roomId, "thank you", [alice, bob, carol]);
await eventually("Bob to know his second device", async () => (await devicesOf(bob, bob)).length === 2);
await verifyByEmoji(bob, () => bob2.getCrypto().requestOwnUserVerification());
await eventually("the second device to be signed", async () => (await statusFor(bob, bob2))?.crossSigningVerified);
await eventually("Alice to see that", async () => (await statusFor(alice, bob2))?.signedByOwner);
await eventually("the secrets to be given to it", async () =>
    (await bob2.getCrypto().getCrossSigningStatus()).privateKeysCachedLocally.selfSigningKey
    && (await bob2.getCrypto().getSessionBackupPrivateKey()));

step("a second device of Alice's, which has nothing but the recovery key");
await allBackedUp(alice);
const alice2 = await device(url, `${prefix}-alice`, keys.get(alice).privateKey);
await recover(alice2);
await alice2.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
const restored = await alice2.getCrypto().restoreKeyBackup();
assert.equal(restored.imported, restored.total);
await readsAll(alice2, roomId, [early]);

step("Carol is away, her one-time keys run out, and her fallback key does");
const back = holdUp(carol);
assert.ok((await useUpKeys(bob, carol)).size > 10);
await eventually("Alice's second device to be known", async () => (await devicesOf(bob2, alice)).length === 2);
const unread = [];
for (const client of [alice2, bob2]) {
    await client.getCrypto().forceDiscardSession(roomId);
    unread.push((await client.sendTextMessage(roomId, `from ${client.getDeviceId()} by a fallback key`)).event_id);
}
back();
for (const id of unread) await until(carol, "what was said while she was away", () => decrypted(carol, roomId, id));
await eventually("new one-time keys", async () =>
    (await carol.http.authedRequest("POST", "/keys/upload", undefined, {})).one_time_key_counts.signed_curve25519 > 40);

step("Bob's second device is removed: it gets no more keys");
const before = await say(alice, roomId, "while Bob has two", [alice2, bob, bob2, carol]);
lay(bob2);
await removeDevice(bob, bob2.getDeviceId());
await eventually("Alice to hear of that", async () => (await devicesOf(alice, bob)).length === 1);
const between = await say(alice, roomId, "while Bob has one", [alice2, bob, carol]);
assert.notEqual(between, before, "the session is another one than the removed device had");

step("Carol is kicked");
await kick(alice, roomId, carol);
await until(carol, "the kick", () => carol.getRoom(roomId)?.getMyMembership() === "leave");
await until(alice, "Carol to be gone", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 2);
const after = await say(alice, roomId, "without Carol", [alice2, bob]);
assert.notEqual(after, between, "the session is another one than Carol had");
await say(bob, roomId, "good night", [alice, alice2]);

await leaveInPeace();
end();
