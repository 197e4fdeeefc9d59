// Presence, delayed events and what else calls need, with matrix-js-sdk: the client under Element Web.
//
// usage: node presence.mjs SERVER_URL PREFIX
//
// PREFIX begins the names of the two accounts. Ends with 0 when all went well, and prints requests as `story.mjs` does.
import assert from "node:assert/strict";
import { fetchAndNote, quiet, sdk, until } from "./sdk.mjs";

const [url, prefix] = process.argv.slice(2);

async function person(name) {
    const options = { baseUrl: url, fetchFn: fetchAndNote };
    const registered = await sdk.createClient(options).registerRequest({
        username: name, password: "correct horse", auth: { type: "m.login.dummy" },
    });
    const client = sdk.createClient({
        ...options, userId: registered.user_id, accessToken: registered.access_token, deviceId: registered.device_id,
    });
    client.on(sdk.ClientEvent.SyncUnexpectedError, (error) => {
        console.error(error);
        process.exit(1);
    });
    await client.startClient({ initialSyncLimit: 8, pollTimeout: 5000 });
    await until(client, `${name} to be in sync`, () => client.isInitialSyncComplete());
    return client;
}

const alice = await person(`${prefix}-alice`);
const bob = await person(`${prefix}-bob`);
const bobsId = bob.getUserId();
const call = "org.matrix.msc3401.call.member";
const { room_id: roomId } = await alice.createRoom({
    preset: "public_chat", power_level_content_override: { events: { [call]: 0 } },
});
await bob.joinRoom(roomId);

// Who is there.
const shown = () => alice.getUser(bobsId);
await until(alice, "Bob to be online", () => shown()?.presence === "online" && shown().currentlyActive);
await bob.setPresence({ presence: "unavailable", status_msg: "at lunch" });
await until(alice, "Bob to be away", () => shown().presence === "unavailable" && shown().presenceStatusMsg === "at lunch");
await bob.sendTextMessage(roomId, "back");
await until(alice, "Bob to be back", () => shown().presence === "online");
assert.equal((await alice.getPresence(bobsId)).status_msg, "at lunch");
await bob.setSyncPresence("offline");
await until(alice, "Bob to hide", () => shown().presence === "offline");
await bob.setSyncPresence("online");
await until(alice, "Bob to show up", () => shown().presence === "online");
assert.ok((await alice.getPresence(bobsId)).last_active_ago < 60000);

// What is ignored, and account data that is deleted.
let seen = false;
alice.on(sdk.RoomMemberEvent.Typing, (_, member) => { seen ||= member.typing; });
await alice.setIgnoredUsers([bobsId]);
await bob.sendTyping(roomId, true, 120000);
await bob.sendTextMessage(roomId, "unheard");
await bob.sendTyping(roomId, false, 0);
await alice.setIgnoredUsers([]);
assert.equal(seen, false);
await alice.setAccountData("org.example.colour", { colour: "red" });
await alice.deleteAccountData("org.example.colour");
assert.deepEqual(alice.getAccountData("org.example.colour").getContent(), {});

// A client that falls silent leaves its call.
const key = `_${bobsId}_${bob.getDeviceId()}_m.call`;
const membership = () => alice.getRoom(roomId).currentState.getStateEvents(call, key)?.getContent();
await bob.sendStateEvent(roomId, call, { application: "m.call" }, key);
await until(alice, "Bob in the call", () => membership()?.application === "m.call");
// Some seconds: it is begun anew before it has passed, and looked at between the two ends, also where everything takes long.
const DELAY = 8000;
const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const { delay_id: leaving } = await bob._unstable_sendDelayedStateEvent(roomId, { delay: DELAY }, call, {}, key);
await sleep(DELAY / 2);
await bob._unstable_restartScheduledDelayedEvent(leaving);
await sleep(DELAY / 2 + 200);
assert.equal(membership().application, "m.call");
const { scheduled } = await bob._unstable_getDelayedEvents("scheduled");
assert.deepEqual(scheduled.map((event) => [event.delay_id, event.delay, event.state_key]), [[leaving, DELAY, key]]);
await until(alice, "Bob out of the call", () => Object.keys(membership()).length === 0);
await assert.rejects(bob._unstable_restartScheduledDelayedEvent(leaving), { errcode: "M_NOT_FOUND" });
const text = { msgtype: "m.text", body: "later" };
const { delay_id: later } = await bob._unstable_sendDelayedEvent(roomId, { delay: 60000 }, null, "m.room.message", text);
await bob._unstable_sendScheduledDelayedEvent(later);
await until(alice, "what was to be said later", () =>
    alice.getRoom(roomId).timeline.some((event) => event.getContent().body === "later"));
const { delay_id: never } = await bob._unstable_sendDelayedEvent(roomId, { delay: 60000 }, null, "m.room.message", text);
await bob._unstable_cancelScheduledDelayedEvent(never);
await assert.rejects(
    bob._unstable_sendDelayedEvent(roomId, { delay: 90000000 }, null, "m.room.message", text),
    (error) => error.data["org.matrix.msc4140.errcode"] === "M_MAX_DELAY_EXCEEDED",
);

// Who somebody is, for other services; TURN servers, of which there are none.
const proof = await bob.getOpenIdToken();
assert.equal(proof.matrix_server_name, bobsId.split(":")[1]);
assert.deepEqual(await bob.turnServer(), {});

for (const client of [bob, alice]) {
    await quiet();
    client.stopClient();
    await client.logout(true);
}
process.exit(0);
