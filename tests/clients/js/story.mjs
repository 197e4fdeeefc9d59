// Two people and a room, with matrix-js-sdk: the client under Element Web.
//
// usage: node story.mjs SERVER_URL PREFIX true|false v3|sliding
//
// PREFIX begins the names of the two accounts; the third argument is threadSupport, the last how they follow the server. Ends with 0 when all went well, and
// prints on stdout, as one JSON object a line, every request that the SDK made: {"method", "path", "status", "errcode"}.
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { fetchAndNote, follow, person, quiet, sdk, until } from "./sdk.mjs";

const [url, prefix, threads, form] = process.argv.slice(2);
assert.ok(threads === "true" || threads === "false", `usage: ${fileURLToPath(import.meta.url)} URL PREFIX true|false v3|sliding`);

const options = { threadSupport: threads === "true", initialSyncLimit: 8 };
const alice = await person(url, `${prefix}-alice`, form, options);
const bob = await person(url, `${prefix}-bob`, form, options);

// Push rules came with the first sync, and are the ones that the SDK knows.
assert.equal(bob.pushRules.global.override[0].rule_id, ".m.rule.master");
await bob.setPushRuleEnabled("global", "underride", ".m.rule.message", false);
await until(bob, "a changed push rule", () =>
    bob.pushRules.global.underride.find((rule) => rule.rule_id === ".m.rule.message")?.enabled === false);
await alice.setDisplayName("Alisa");

// A room without a name is called after its heroes.
const { room_id: roomId } = await alice.createRoom({ preset: "private_chat", invite: [bob.getUserId()] });
const invited = await until(bob, "the invitation", () => {
    const room = bob.getRoom(roomId);
    return room?.getMyMembership() === "invite" && room;
});
assert.equal(invited.name, "Alisa");
await bob.joinRoom(roomId);
const bobsRoom = await until(bob, "the room", () => {
    const room = bob.getRoom(roomId);
    return room?.getMyMembership() === "join" && room;
});
const alicesRoom = await until(alice, "Bob in the room", () => {
    const room = alice.getRoom(roomId);
    return room?.getJoinedMemberCount() === 2 && room;
});
await until(alice, "the name of the room", () => alicesRoom.name === bob.getUserIdLocalpart());
await until(bob, "the name of the room", () => bobsRoom.name === "Alisa");
await bobsRoom.loadMembersIfNeeded();
assert.equal(bobsRoom.getJoinedMembers().length, 2);

// A retry with the same transaction id is the same event.
const text = (body) => ({ msgtype: "m.text", body });
const first = await alice.sendEvent(roomId, "m.room.message", text("salom"), "txn-same");
const again = await alice.http.authedRequest("PUT",
    `/rooms/${encodeURIComponent(roomId)}/send/m.room.message/txn-same`, undefined, text("salom"));
assert.equal(again.event_id, first.event_id);
await until(bob, "the first message", () => bobsRoom.findEventById(first.event_id));
assert.equal(bobsRoom.timeline.filter((event) => event.getContent().body === "salom").length, 1);

// An edit.
await alice.sendMessage(roomId, { ...text("* salom!"), "m.new_content": text("salom!"),
    "m.relates_to": { rel_type: "m.replace", event_id: first.event_id } });
await until(bob, "the edit", () => bobsRoom.findEventById(first.event_id)?.getContent().body === "salom!");

// Redaction.
const wrong = await alice.sendTextMessage(roomId, "wrong");
await until(bob, "what will be redacted", () => bobsRoom.findEventById(wrong.event_id));
await alice.redactEvent(roomId, wrong.event_id, undefined, { reason: "typo" });
await until(bob, "the redaction", () => bobsRoom.findEventById(wrong.event_id).isRedacted());

// A thread, and a reaction that one can give only once.
const root = await alice.sendTextMessage(roomId, "a root");
await until(bob, "the root of a thread", () => bobsRoom.findEventById(root.event_id));
const inThread = (body) => ({ ...text(body), "m.relates_to": { rel_type: "m.thread", event_id: root.event_id } });
// The SDK looks for what it sent in the room's own timeline alone. The server writes the answer to who sends before that to who syncs, but
// some tenths of a millisecond before, and on another connection: where the SDK reads that one first, a reply is an error to it, though all
// is well. Then the server is asked which event it has become.
async function sendInThread(client, body) {
    try {
        return await client.sendMessage(roomId, inThread(body));
    } catch (error) {
        if (!error.message.includes("not a local echo")) throw error;
        const there = await client.relations(roomId, root.event_id, "m.thread", null, { dir: "b" });
        return { event_id: there.events.find((event) => event.getContent().body === body).getId() };
    }
}
await sendInThread(bob, "a first reply");
const reply = await sendInThread(alice, "a second reply");
const related = await bob.relations(roomId, root.event_id, "m.thread", null, { dir: "b" });
assert.deepEqual(related.events.map((event) => event.getContent().body), ["a second reply", "a first reply"]);
if (threads === "true") {
    await until(bob, "the thread", () => bobsRoom.getThread(root.event_id)?.replyToEvent?.getId() === reply.event_id);
    await bobsRoom.createThreadsTimelineSets();
    await bobsRoom.fetchRoomThreads();
    assert.deepEqual(bobsRoom.getThreads().map((thread) => thread.id), [root.event_id]);
    assert.equal(bobsRoom.getThread(root.event_id).length, 2);
    assert.ok(bobsRoom.getThread(root.event_id).hasCurrentUserParticipated);
}
const reaction = { "m.relates_to": { rel_type: "m.annotation", event_id: root.event_id, key: "👍" } };
const reacted = await bob.sendEvent(roomId, "m.reaction", reaction);
await assert.rejects(bob.sendEvent(roomId, "m.reaction", reaction), { errcode: "M_DUPLICATE_ANNOTATION" });

// Receipts and typing. What Bob sent stands before what he is to read, or it is what Alice's client takes him to have read last.
await until(alice, "the reaction", () => alicesRoom.findEventById(reacted.event_id));
const last = await alice.sendTextMessage(roomId, "read me");
const lastOfBob = await until(bob, "a message to be read", () => bobsRoom.findEventById(last.event_id));
await bob.sendReadReceipt(lastOfBob);
await until(alice, "the receipt", () => alicesRoom.getEventReadUpTo(bob.getUserId()) === last.event_id);
await bob.setRoomReadMarkers(roomId, last.event_id, lastOfBob);
await bob.sendTyping(roomId, true, 120000);
await until(alice, "Bob typing", () => alicesRoom.getMember(bob.getUserId())?.typing);
await bob.sendTyping(roomId, false, 0);
await until(alice, "Bob done typing", () => !alicesRoom.getMember(bob.getUserId()).typing);

// Pages of an old timeline: bob looks at the room from a device that starts late.
const sent = [];
for (let number = 0; number < 30; number++) sent.push((await alice.sendTextMessage(roomId, `${number}`)).event_id);
const late = sdk.createClient({ baseUrl: url, fetchFn: fetchAndNote, timelineSupport: true });
const session = await late.loginRequest({ type: "m.login.password", password: "correct horse",
    identifier: { type: "m.id.user", user: `${prefix}-bob` } });
const second = sdk.createClient({ baseUrl: url, fetchFn: fetchAndNote, timelineSupport: true,
    userId: session.user_id, accessToken: session.access_token, deviceId: session.device_id });
await follow(second, form, { ...options, initialSyncLimit: 4 });
const room = await until(second, "the room on the second device", () => second.getRoom(roomId));
await until(second, "the name of the room on the second device", () => room.name === "Alisa");
const timeline = new sdk.TimelineWindow(second, room.getUnfilteredTimelineSet());
await timeline.load(undefined, 4);
while (timeline.canPaginate("b")) await timeline.paginate("b", 9);
const shown = timeline.getEvents().map((event) => event.getId());
assert.equal(new Set(shown).size, shown.length, "no event comes twice");
assert.deepEqual(shown.filter((id) => sent.includes(id)), sent, "all of them, in order");
assert.equal(timeline.getEvents()[0].getType(), "m.room.create");
assert.ok(shown.includes(first.event_id));
const around = new sdk.TimelineWindow(second, room.getUnfilteredTimelineSet());
await around.load(sent[10], 6);
assert.ok(around.getEvents().some((event) => event.getId() === sent[10]));

// Search finds what was said, within moments, and people. A server that has just started takes longer: its jobs begin one by one.
async function found(what, ask) {
    for (let ends = Date.now() + 40_000; Date.now() < ends;) {
        const answer = await ask();
        if (answer) return answer;
        await new Promise((done) => setTimeout(done, 200));
    }
    throw new Error(`looked in vain for: ${what}`);
}
const results = await found("what was said", async () => {
    const answer = await second.searchRoomEvents({ term: "REÁD ме", filter: { rooms: [roomId] } });
    return answer.results.length && answer;
});
assert.deepEqual(results.results.map((result) => result.context.getEvent().getId()), [last.event_id]);
assert.equal(results.count, 1);
assert.ok(results.highlights.includes("read"));
assert.ok(results.results[0].context.getTimeline().length > 1);
const numbers = await found("a number", async () => {
    const answer = await second.searchRoomEvents({ term: "root" });
    return answer.results.length && answer;
});
assert.equal(numbers.results[0].context.getEvent().getId(), root.event_id);
const people = await found("a name", async () => {
    const answer = await bob.searchUserDirectory({ term: "алис", limit: 5 });
    return answer.results.some((person) => person.user_id === alice.getUserId()) && answer;
});
assert.equal(people.results.find((person) => person.user_id === alice.getUserId()).display_name, "Alisa");

// Departure.
await quiet();
await bob.leave(roomId);
await until(alice, "Bob to be gone", () => alicesRoom.getJoinedMemberCount() === 1);
await bob.forget(roomId);
for (const client of [second, bob, alice]) {
    await quiet();
    client.stopClient();
    await client.logout(true);
}
process.exit(0);
