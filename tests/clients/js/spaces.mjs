// Spaces, upgrades and looking around, with matrix-js-sdk: the client under Element Web.
//
// usage: node spaces.mjs SERVER_URL PREFIX v3|sliding
//
// PREFIX begins the names of the two accounts, who follow the server in that form. Ends with 0 when all went well, and prints
// on stdout, as one JSON object a line, every request that the SDK made: {"method", "path", "status", "errcode"}.
import assert from "node:assert/strict";
import { RoomHierarchy, person, quiet, until } from "./sdk.mjs";

const [url, prefix, form] = process.argv.slice(2);

const alice = await person(url, `${prefix}-alice`, form, { initialSyncLimit: 8 });
const bob = await person(url, `${prefix}-bob`, form, { initialSyncLimit: 8 });
const via = [alice.getDomain()];

// A space with rooms, page by page.
const { room_id: spaceId } = await alice.createRoom({
    preset: "public_chat", name: "Mahalla", creation_content: { type: "m.space" }, room_alias_name: `${prefix}-space`,
});
const rooms = [];
for (const name of ["choyxona", "bozor", "masjid"]) {
    const { room_id: roomId } = await alice.createRoom({ preset: "public_chat", name, room_version: "11" });
    await alice.sendStateEvent(spaceId, "m.space.child", { via, order: name, suggested: name === "bozor" }, roomId);
    await alice.sendStateEvent(roomId, "m.space.parent", { via, canonical: true }, spaceId);
    rooms.push(roomId);
}
const [teahouse, market, mosque] = rooms;
await bob.joinRoom(spaceId);
const space = await until(bob, "the space", () => bob.getRoom(spaceId)?.isSpaceRoom() && bob.getRoom(spaceId));
const hierarchy = new RoomHierarchy(space, 2);
while (hierarchy.canLoadMore) await hierarchy.load();
assert.deepEqual(hierarchy.rooms.map((room) => room.room_id), [spaceId, market, teahouse, mosque]);
assert.ok(hierarchy.isSuggested(spaceId, market));
assert.ok(!hierarchy.isSuggested(spaceId, mosque));
const suggested = await bob.getRoomHierarchy(spaceId, 10, 1, true);
assert.deepEqual(suggested.rooms.map((room) => room.name), ["Mahalla", "bozor"]);

// Summaries.
const summary = await bob.getRoomSummary(`#${prefix}-space:${alice.getDomain()}`);
assert.equal(summary.room_id, spaceId);
assert.equal(summary.room_type, "m.space");
assert.equal(summary.membership, "join");

// An upgrade: Bob follows, and his tags with him.
await bob.joinRoom(teahouse);
await bob.setRoomTag(teahouse, "m.favourite", { order: 0.3 });
const { replacement_room: newTeahouse } = await alice.upgradeRoom(teahouse, "12");
await until(bob, "the tombstone", () => {
    const tombstone = bob.getRoom(teahouse)?.currentState.getStateEvents("m.room.tombstone", "");
    return tombstone?.getContent().replacement_room === newTeahouse;
});
await bob.joinRoom(newTeahouse);
const renewed = await until(bob, "the new room", () => {
    const room = bob.getRoom(newTeahouse);
    return room?.getMyMembership() === "join" && room.tags["m.favourite"] && room;
});
assert.equal(renewed.name, "choyxona");
assert.equal(renewed.getVersion(), "12");
assert.equal(renewed.findPredecessor().roomId, teahouse);
assert.deepEqual(bob.getRoomUpgradeHistory(newTeahouse, true).map((room) => room.roomId), [teahouse, newTeahouse]);
await until(bob, "the space to name the new room", () =>
    space.currentState.getStateEvents("m.space.child", newTeahouse)?.getContent().via?.length);
const after = await bob.getRoomHierarchy(spaceId);
assert.deepEqual(after.rooms.map((room) => room.room_id), [spaceId, market, newTeahouse, mosque]);

// Rooms in common; an event by its time; reports.
assert.deepEqual((await bob._unstable_getSharedRooms(alice.getUserId())).sort(), [spaceId, teahouse, newTeahouse].sort());
const said = await alice.sendTextMessage(newTeahouse, "salom");
const bySomeTime = await bob.timestampToEvent(newTeahouse, Date.now() + 60_000, "b");
assert.equal(bySomeTime.event_id, said.event_id);
await bob.reportEvent(newTeahouse, said.event_id, -100, "only a try");
await bob.reportRoom(newTeahouse, "only a try");

// A message and its edits go together.
const text = (body) => ({ msgtype: "m.text", body });
const edit = await alice.sendMessage(newTeahouse, { ...text("* hayr"), "m.new_content": text("hayr"),
    "m.relates_to": { rel_type: "m.replace", event_id: said.event_id } });
await until(bob, "the edit", () => renewed.findEventById(said.event_id)?.getContent().body === "hayr");
await alice.redactEvent(newTeahouse, said.event_id, undefined, { with_rel_types: ["m.replace"] });
await until(bob, "the redaction", () => renewed.findEventById(said.event_id)?.isRedacted());
const rest = await bob.fetchRoomEvent(newTeahouse, edit.event_id);
assert.deepEqual(rest.content, {});

// Looking into a room without being in it.
const { room_id: square } = await alice.createRoom({ name: "maydon", initial_state: [
    { type: "m.room.history_visibility", state_key: "", content: { history_visibility: "world_readable" } },
] });
await alice.sendTextMessage(square, "for all to hear");
const peeked = await bob.peekInRoom(square, 5);
assert.equal(peeked.name, "maydon");
const bodies = () => peeked.getLiveTimeline().getEvents().map((event) => event.getContent().body);
assert.ok(bodies().includes("for all to hear"));
// The SDK asks for what is new from when it asks first, at some moment after it has shown the room.
const again = setInterval(() => alice.sendTextMessage(square, "and now"), 300);
await until(bob, "what is said in the open", () => bodies().includes("and now"));
clearInterval(again);
bob.stopPeeking();

await quiet();
for (const client of [bob, alice]) {
    client.stopClient();
    await client.logout(true);
}
process.exit(0);
