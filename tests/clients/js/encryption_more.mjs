// Codes that are scanned, history that is shared with whoever is invited, a device that wakes up with what was said while
// nobody of its user's was there, and keys that are withheld: with matrix-js-sdk and its Rust crypto.
//
// usage: node encryption_more.mjs SERVER_URL PREFIX [kills]
//
// PREFIX begins the names of the accounts. What it prints: people.mjs. Ends with 0 when all went well.
import assert from "node:assert/strict";
import { until } from "./sdk.mjs";
import {
    account, bootstrap, device, devicesOf, ENCRYPTION, end, enter, eventually, killAgainAndAgain, lay, read, recover, say, statusFor, step,
    verifyByCode,
} from "./people.mjs";

const [url, prefix, kills] = process.argv.slice(2);

const [alice, bob, carol] = await Promise.all(["alice", "bob", "carol"].map((name) => account(url, `${prefix}-${name}`)));
const leaveInPeace = kills ? killAgainAndAgain(url) : () => {};
const keys = new Map();
for (const client of [alice, bob, carol]) keys.set(client, await bootstrap(client));

step("a room");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId()], initial_state: [ENCRYPTION],
});
await enter(bob, roomId);
await until(alice, "Bob in the room", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 2);
await say(alice, roomId, "the two of us", [alice, bob]);

step("a second device of Alice's is verified by a code");
const alice2 = await device(url, `${prefix}-alice`);
await eventually("Alice to know her second device", async () => (await devicesOf(alice, alice)).length === 2);
await verifyByCode(alice, () => alice2.getCrypto().requestOwnUserVerification());
await eventually("it to be signed", async () => (await statusFor(alice, alice2))?.crossSigningVerified);
await eventually("the secrets to be given to it", async () =>
    (await alice2.getCrypto().getCrossSigningStatus()).privateKeysCachedLocally.userSigningKey);

step("Bob is verified by a code: Alice's other device sees that, and Carol does not");
await verifyByCode(bob, () => alice.getCrypto().requestVerificationDM(bob.getUserId(), roomId));
const verified = async (client) => (await client.getCrypto().getUserVerificationStatus(bob.getUserId())).isCrossSigningVerified();
await eventually("Alice to have verified Bob", () => verified(alice));
await eventually("her other device to see that", () => verified(alice2));
assert.equal(await verified(carol), false);

step("Carol is invited, and reads what was said before");
const before = (await alice.sendTextMessage(roomId, "before Carol came")).event_id;
await read([alice2, bob], roomId, before, "before Carol came");
await alice.invite(roomId, carol.getUserId());
await enter(carol, roomId);
await until(carol, "the room's past", () => carol.getRoom(roomId)?.getLiveTimeline().getEvents().length > 5);
await read([carol], roomId, before, "before Carol came");
await say(carol, roomId, "I have read it", [alice, alice2, bob]);

step("Bob keeps a dehydrated device, and goes away");
assert.ok(await bob.getCrypto().isDehydrationSupported());
await bob.getCrypto().startDehydration({ createNewKey: true });
await eventually("Alice to know it", async () => (await devicesOf(alice, bob)).length === 2);
await eventually("Carol to know it", async () => (await devicesOf(carol, bob)).length === 2);
lay(bob);
await alice.getCrypto().forceDiscardSession(roomId);
const away = [];
for (const client of [alice, alice2, carol]) {
    const body = `from ${client.getDeviceId()} while Bob is away`;
    away.push([(await client.sendTextMessage(roomId, body)).event_id, body]);
}
for (const [id, body] of away) await read([alice, alice2, carol], roomId, id, body);

step("a new device of Bob's wakes it");
const bob2 = await device(url, `${prefix}-bob`, keys.get(bob).privateKey);
await recover(bob2);
await bob2.getCrypto().startDehydration();
for (const [id, body] of away) await read([bob2], roomId, id, body);
await eventually("a new dehydrated device", async () => (await devicesOf(alice, bob2)).length === 3);
await say(bob2, roomId, "I am back", [alice, alice2, carol]);
await say(alice, roomId, "welcome back", [alice2, bob2, carol]);

step("Alice writes to verified people only: Carol gets no key, and is told why");
alice.getCrypto().globalBlacklistUnverifiedDevices = true;
await alice.getCrypto().forceDiscardSession(roomId);
const withheld = (await alice.sendTextMessage(roomId, "for whom I have verified")).event_id;
await read([alice2, bob2], roomId, withheld, "for whom I have verified");
await eventually("Carol to be told that the key is withheld", () =>
    carol.getRoom(roomId).findEventById(withheld)?.decryptionFailureReason === "MEGOLM_KEY_WITHHELD_FOR_UNVERIFIED_DEVICE");
alice.getCrypto().globalBlacklistUnverifiedDevices = false;
await alice.getCrypto().forceDiscardSession(roomId);
await say(alice, roomId, "for all again", [alice2, bob2, carol]);

await leaveInPeace();
end();
