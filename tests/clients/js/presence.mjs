// Checks presence, ignored users, account data, delayed events and other requirements of calls with
// matrix-js-sdk, the SDK of Element Web.
//
// usage: node presence.mjs SERVER_URL PREFIX
//
// PREFIX begins the names of the two accounts. Logs requests as `fetchAndLog` in sdk.mjs does.
// Exits with 0 on success.
import assert from "node:assert/strict";
import { logoutAndExit, registerClient, sdk, sleep, waitFor } from "./sdk.mjs";

const [url, prefix] = process.argv.slice(2);

const options = { initialSyncLimit: 8, lazyLoadMembers: false };
const alice = await registerClient(url, `${prefix}-alice`, "v3", options);
const bob = await registerClient(url, `${prefix}-bob`, "v3", options);
const bobId = bob.getUserId();
const CALL_MEMBER = "org.matrix.msc3401.call.member";
const { room_id: roomId } = await alice.createRoom({
    preset: "public_chat", power_level_content_override: { events: { [CALL_MEMBER]: 0 } },
});
await bob.joinRoom(roomId);

// Presence.
const bobSeenByAlice = () => alice.getUser(bobId);
const waitForPresence = (presence) =>
    waitFor(alice, `Bob's presence ${presence}`, () => bobSeenByAlice()?.presence === presence);
await waitFor(alice, "Bob to be online and active", () =>
    bobSeenByAlice()?.presence === "online" && bobSeenByAlice().currentlyActive);
await bob.setPresence({ presence: "unavailable", status_msg: "at lunch" });
await waitFor(alice, "Bob to be unavailable with a status", () =>
    bobSeenByAlice().presence === "unavailable"
    && bobSeenByAlice().presenceStatusMsg === "at lunch");
await bob.sendTextMessage(roomId, "back");
await waitForPresence("online");
assert.equal((await alice.getPresence(bobId)).status_msg, "at lunch");
await bob.setSyncPresence("offline");
await waitForPresence("offline");
await bob.setSyncPresence("online");
await waitForPresence("online");
assert.ok((await alice.getPresence(bobId)).last_active_ago < 60000);

// Typing of an ignored user.
let hasSeenTyping = false;
alice.on(sdk.RoomMemberEvent.Typing, (_, member) => { hasSeenTyping ||= member.typing; });
await alice.setIgnoredUsers([bobId]);
await bob.sendTyping(roomId, true, 120000);
await bob.sendTextMessage(roomId, "ignored");
await bob.sendTyping(roomId, false, 0);
await alice.setIgnoredUsers([]);
assert.equal(hasSeenTyping, false);

// Deletion of account data.
await alice.setAccountData("org.example.colour", { colour: "red" });
await alice.deleteAccountData("org.example.colour");
assert.deepEqual(alice.getAccountData("org.example.colour").getContent(), {});

// A delayed event ends a call membership unless the client restarts the delay.
const stateKey = `_${bobId}_${bob.getDeviceId()}_m.call`;
const callMembership = () =>
    alice.getRoom(roomId).currentState.getStateEvents(CALL_MEMBER, stateKey)?.getContent();
await bob.sendStateEvent(roomId, CALL_MEMBER, { application: "m.call" }, stateKey);
await waitFor(alice, "Bob to be in the call", () => callMembership()?.application === "m.call");
// Long enough for a busy machine: the delay is restarted before its end, and the state is checked
// between the old and the new end.
const DELAY_MS = 8000;
const { delay_id: leaveId } = await bob._unstable_sendDelayedStateEvent(
    roomId, { delay: DELAY_MS }, CALL_MEMBER, {}, stateKey);
await sleep(DELAY_MS / 2);
await bob._unstable_restartScheduledDelayedEvent(leaveId);
await sleep(DELAY_MS / 2 + 200);
assert.equal(callMembership().application, "m.call");
const { scheduled } = await bob._unstable_getDelayedEvents("scheduled");
assert.deepEqual(scheduled.map((event) => [event.delay_id, event.delay, event.state_key]),
    [[leaveId, DELAY_MS, stateKey]]);
await waitFor(alice, "Bob to have left the call", () => Object.keys(callMembership()).length === 0);
await assert.rejects(bob._unstable_restartScheduledDelayedEvent(leaveId),
    { errcode: "M_NOT_FOUND" });

// A delayed message: sent early, cancelled, or refused because of its long delay.
const sendDelayed = (delay) => bob._unstable_sendDelayedEvent(
    roomId, { delay }, null, "m.room.message", { msgtype: "m.text", body: "delayed" });
const { delay_id: sentId } = await sendDelayed(60000);
await bob._unstable_sendScheduledDelayedEvent(sentId);
await waitFor(alice, "the delayed message", () =>
    alice.getRoom(roomId).timeline.some((event) => event.getContent().body === "delayed"));
const { delay_id: cancelledId } = await sendDelayed(60000);
await bob._unstable_cancelScheduledDelayedEvent(cancelledId);
await assert.rejects(sendDelayed(90000000), (error) =>
    error.data["org.matrix.msc4140.errcode"] === "M_MAX_DELAY_EXCEEDED");

// An OpenID token, and TURN servers, of which none is configured.
const openIdToken = await bob.getOpenIdToken();
assert.equal(openIdToken.matrix_server_name, bobId.split(":")[1]);
assert.deepEqual(await bob.turnServer(), {});

await logoutAndExit(bob, alice);
