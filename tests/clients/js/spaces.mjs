// Checks spaces, room upgrades, reports, peeking and other room discovery with matrix-js-sdk, the
// SDK of Element Web.
//
// usage: node spaces.mjs SERVER_URL PREFIX v3|sliding
//
// PREFIX begins the names of the two accounts, the last argument is the sync mode. Logs requests as
// `fetchAndLog` in sdk.mjs does. Exits with 0 on success.
import assert from "node:assert/strict";
import { logoutAndExit, registerClient, RoomHierarchy, waitFor } from "./sdk.mjs";

const [url, prefix, syncMode] = process.argv.slice(2);

const alice = await registerClient(url, `${prefix}-alice`, syncMode, { initialSyncLimit: 8 });
const bob = await registerClient(url, `${prefix}-bob`, syncMode, { initialSyncLimit: 8 });
const via = [alice.getDomain()];

// The hierarchy of a space, in pages.
const { room_id: spaceId } = await alice.createRoom({
    preset: "public_chat", name: "Mahalla", creation_content: { type: "m.space" },
    room_alias_name: `${prefix}-space`,
});
const roomIds = [];
for (const name of ["choyxona", "bozor", "masjid"]) {
    const { room_id: roomId } = await alice.createRoom({
        preset: "public_chat", name, room_version: "11",
    });
    const child = { via, order: name, suggested: name === "bozor" };
    await alice.sendStateEvent(spaceId, "m.space.child", child, roomId);
    await alice.sendStateEvent(roomId, "m.space.parent", { via, canonical: true }, spaceId);
    roomIds.push(roomId);
}
const [teahouse, market, mosque] = roomIds;
await bob.joinRoom(spaceId);
const space = await waitFor(bob, "the space", () =>
    bob.getRoom(spaceId)?.isSpaceRoom() && bob.getRoom(spaceId));
const hierarchy = new RoomHierarchy(space, 2);
while (hierarchy.canLoadMore) await hierarchy.load();
assert.deepEqual(hierarchy.rooms.map((room) => room.room_id), [spaceId, market, teahouse, mosque]);
assert.ok(hierarchy.isSuggested(spaceId, market));
assert.ok(!hierarchy.isSuggested(spaceId, mosque));
const suggested = await bob.getRoomHierarchy(spaceId, 10, 1, true);
assert.deepEqual(suggested.rooms.map((room) => room.name), ["Mahalla", "bozor"]);

// Room summary.
const summary = await bob.getRoomSummary(`#${prefix}-space:${alice.getDomain()}`);
assert.equal(summary.room_id, spaceId);
assert.equal(summary.room_type, "m.space");
assert.equal(summary.membership, "join");

// Room upgrade: Bob joins the new room, which has his tags.
await bob.joinRoom(teahouse);
await bob.setRoomTag(teahouse, "m.favourite", { order: 0.3 });
const { replacement_room: newTeahouse } = await alice.upgradeRoom(teahouse, "12");
await waitFor(bob, "the tombstone", () => {
    const state = bob.getRoom(teahouse)?.currentState;
    const tombstone = state?.getStateEvents("m.room.tombstone", "");
    return tombstone?.getContent().replacement_room === newTeahouse;
});
await bob.joinRoom(newTeahouse);
const newRoom = await waitFor(bob, "the new room with its tag", () => {
    const room = bob.getRoom(newTeahouse);
    return room?.getMyMembership() === "join" && room.tags["m.favourite"] && room;
});
assert.equal(newRoom.name, "choyxona");
assert.equal(newRoom.getVersion(), "12");
assert.equal(newRoom.findPredecessor().roomId, teahouse);
assert.deepEqual(bob.getRoomUpgradeHistory(newTeahouse, true).map((room) => room.roomId),
    [teahouse, newTeahouse]);
await waitFor(bob, "the space to contain the new room", () =>
    space.currentState.getStateEvents("m.space.child", newTeahouse)?.getContent().via?.length);
const upgraded = await bob.getRoomHierarchy(spaceId);
assert.deepEqual(upgraded.rooms.map((room) => room.room_id),
    [spaceId, market, newTeahouse, mosque]);

// Mutual rooms, an event by its timestamp, and reports.
assert.deepEqual((await bob._unstable_getSharedRooms(alice.getUserId())).sort(),
    [spaceId, teahouse, newTeahouse].sort());
const message = await alice.sendTextMessage(newTeahouse, "salom");
const latest = await bob.timestampToEvent(newTeahouse, Date.now() + 60_000, "b");
assert.equal(latest.event_id, message.event_id);
await bob.reportEvent(newTeahouse, message.event_id, -100, "only a test");
await bob.reportRoom(newTeahouse, "only a test");

// A redaction of a message with its edits.
const textContent = (body) => ({ msgtype: "m.text", body });
const edit = await alice.sendMessage(newTeahouse, {
    ...textContent("* hayr"),
    "m.new_content": textContent("hayr"),
    "m.relates_to": { rel_type: "m.replace", event_id: message.event_id },
});
await waitFor(bob, "the edit", () =>
    newRoom.findEventById(message.event_id)?.getContent().body === "hayr");
await alice.redactEvent(newTeahouse, message.event_id, undefined, {
    with_rel_types: ["m.replace"],
});
await waitFor(bob, "the redaction", () => newRoom.findEventById(message.event_id)?.isRedacted());
const redactedEdit = await bob.fetchRoomEvent(newTeahouse, edit.event_id);
assert.deepEqual(redactedEdit.content, {});

// Peeking into a world-readable room.
const { room_id: square } = await alice.createRoom({ name: "maydon", initial_state: [{
    type: "m.room.history_visibility", state_key: "",
    content: { history_visibility: "world_readable" },
}] });
await alice.sendTextMessage(square, "before the peek");
const peekedRoom = await bob.peekInRoom(square, 5);
assert.equal(peekedRoom.name, "maydon");
const peekedBodies = () =>
    peekedRoom.getLiveTimeline().getEvents().map((event) => event.getContent().body);
assert.ok(peekedBodies().includes("before the peek"));
// The SDK polls for events after its first poll, which it sends some time after it has returned the
// room. Send until a message arrives.
const sending = setInterval(() => alice.sendTextMessage(square, "during the peek"), 300);
await waitFor(bob, "a new message", () => peekedBodies().includes("during the peek"));
clearInterval(sending);
bob.stopPeeking();

await logoutAndExit(bob, alice);
