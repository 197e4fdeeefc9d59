// End-to-end encryption between two servers, one of which is away for a time: matrix-js-sdk with its Rust crypto.
//
// usage: node encryption_between.mjs SERVER_URL OTHER_SERVER_URL PREFIX
//
// Alice and Carol are at the first server, Bob at the other. What it prints, and what it asks for: people.mjs.
import assert from "node:assert/strict";
import { until } from "./sdk.mjs";
import {
    account, allBackedUp, bootstrap, device, devicesOf, draw, ENCRYPTION, end, enter, eventually, holdUp, kick, killServerAtRandom, lay,
    passwordOf, read, readsAll, recover, removeDevice, say, startServer, statusFor, step, stopServer, useUpKeys, verifyByCode, verifyByEmoji,
} from "./people.mjs";

const [url, other, prefix] = process.argv.slice(2);
const FIRST = 0, OTHER = 1;
const KILLS = 4;

const [alice, bob, carol] = await Promise.all(
    [[url, "alice"], [other, "bob"], [url, "carol"]].map(([where, name]) => account(where, `${prefix}-${name}`)));
const keys = new Map();
for (const client of [alice, bob]) keys.set(client, await bootstrap(client));

step("a room");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId(), carol.getUserId()], initial_state: [ENCRYPTION],
});
for (const client of [bob, carol]) await enter(client, roomId);
for (const client of [alice, bob, carol]) {
    await until(client, "all in the room", () => client.getRoom(roomId)?.getJoinedMemberCount() === 3);
}
await say(alice, roomId, "to the other server", [bob, carol]);
await say(bob, roomId, "and back", [alice, carol]);

step("Bob is verified by emoji");
await verifyByEmoji(bob, () => alice.getCrypto().requestVerificationDM(bob.getUserId(), roomId));
for (const [client, whom] of [[alice, bob], [bob, alice]]) {
    await eventually("the other to be verified", async () =>
        (await client.getCrypto().getUserVerificationStatus(whom.getUserId())).isCrossSigningVerified());
}

step("the servers are killed at some moment, while sessions begin and messages are under way");
for (let number = 0; number < KILLS; number++) {
    const talk = (async () => {
        for (const [client, readers] of [[alice, [bob, carol]], [bob, [alice, carol]]]) {
            await client.getCrypto().forceDiscardSession(roomId);
            await say(client, roomId, `from ${client.getUserId()} before or after kill ${number}`, readers);
        }
    })();
    await Promise.all([talk, killServerAtRandom(1500, draw(2))]);
}

step("the other server is away; at the first one there are new sessions, and a new device");
await stopServer(OTHER);
const missed = [];
const send = async (client, body) => missed.push([(await client.sendTextMessage(roomId, body)).event_id, body]);
for (const client of [alice, carol]) {
    await client.getCrypto().forceDiscardSession(roomId);
    await send(client, `from ${client.getUserId()} while you were away`);
}
const alice2 = await device(url, `${prefix}-alice`, keys.get(alice).privateKey);
await recover(alice2);
await eventually("Alice's second device to be known", async () => (await devicesOf(carol, alice)).length === 2);
for (const [id, body] of missed) await read([alice, carol], roomId, id, body);

step("it is there again: Bob reads all of that, and all read him");
await startServer(OTHER);
await bob.sendTyping(roomId, true, 5000);
for (const [id, body] of missed) await read([bob], roomId, id, body);
await eventually("Bob to know Alice's second device", async () => (await statusFor(bob, alice2))?.signedByOwner);
await say(bob, roomId, "to all of your devices", [alice, alice2, carol]);
// before, it could not have begun a conversation with Bob's device: whoever has its one-time keys was away
await say(alice2, roomId, "from a device that came while you were away", [alice, bob, carol]);

step("Bob's identity is made anew, and everybody sees that");
await bob.getCrypto().bootstrapCrossSigning({ setupNewCrossSigning: true, authUploadDeviceSigningKeys: passwordOf(bob) });
await bob.getCrypto().resetKeyBackup();
for (const client of [alice, alice2]) {
    await eventually("Alice to see that Bob is not verified any more", async () =>
        (await client.getCrypto().getUserVerificationStatus(bob.getUserId())).needsUserApproval);
    await client.getCrypto().withdrawVerificationRequirement(bob.getUserId());
}
// whom his old identity had verified, his client believes nothing until he says that he knows of it
await bob.getCrypto().withdrawVerificationRequirement(alice.getUserId());
await say(bob, roomId, "it is still me", [alice, alice2, carol]);

step("a second device of Bob's is verified by a code, which Alice sees, and reads what is in the backup");
const bob2 = await device(other, `${prefix}-bob`);
await eventually("Alice to know it", async () => (await devicesOf(alice, bob)).length === 2);
await eventually("Bob to know it", async () => (await devicesOf(bob, bob)).length === 2);
await verifyByCode(bob, () => bob2.getCrypto().requestOwnUserVerification());
await eventually("Alice to see that", async () => (await statusFor(alice, bob2))?.signedByOwner);
await eventually("the key of the backup to be given to it", () => bob2.getCrypto().getSessionBackupPrivateKey());
await allBackedUp(bob);
const restored = await bob2.getCrypto().restoreKeyBackup();
assert.equal(restored.imported, restored.total);
await readsAll(bob2, roomId, missed.map(([, body]) => body));

step("Carol is away, her one-time keys run out between the servers, and her fallback key does");
const carolIsBack = holdUp(carol);
assert.ok((await useUpKeys(bob, carol)).size > 10);
const unread = (await bob2.sendTextMessage(roomId, "by a fallback key of another server's")).event_id;
await read([alice, alice2, bob], roomId, unread, "by a fallback key of another server's");
carolIsBack();
await read([carol], roomId, unread, "by a fallback key of another server's");

step("it is removed while the first server is away");
const shared = await say(alice, roomId, "for both of you", [alice2, bob, bob2, carol]);
await stopServer(FIRST);
lay(bob2);
await removeDevice(bob, bob2.getDeviceId());
await startServer(FIRST);
await say(bob, roomId, "it is lost", [alice, alice2, carol]);
await eventually("Alice to hear of that", async () => (await devicesOf(alice, bob)).length === 1);
const between = await say(alice, roomId, "while Bob has one", [alice2, bob, carol]);
assert.notEqual(between, shared, "the session is another one than the removed device had");

step("Bob is kicked, and comes back");
await kick(alice, roomId, bob);
await until(bob, "the kick", () => bob.getRoom(roomId)?.getMyMembership() === "leave");
await until(alice, "Bob to be gone", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 2);
const without = await say(alice, roomId, "without Bob", [alice2, carol]);
assert.notEqual(without, between, "the session is another one than Bob had");
// the SDK shares the past in a file, of which it tells the devices of who is invited
await alice.invite(roomId, bob.getUserId());
await enter(bob, roomId);
await until(alice, "Bob in the room", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 3);
await readsAll(bob, roomId, ["without Bob"]);
await say(alice, roomId, "welcome back", [alice2, bob, carol]);
await say(bob, roomId, "thank you", [alice, alice2, carol]);

end();
