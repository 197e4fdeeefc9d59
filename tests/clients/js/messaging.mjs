// Checks a room of two users with matrix-js-sdk, the SDK of Element Web: push rules, room names,
// messages, edits, redactions, threads, reactions, receipts, typing, pagination and search.
//
// usage: node messaging.mjs SERVER_URL PREFIX true|false v3|sliding
//
// PREFIX begins the names of the two accounts. The third argument is the option `threadSupport` of
// the SDK, the last one the sync mode. Logs requests as `fetchAndLog` in sdk.mjs does. Exits with 0
// on success.
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import {
    fetchAndLog, logoutAndExit, PASSWORD, pollUntil, registerClient, sdk, sessionOptions,
    startSyncing, waitFor, waitForIdle, waitForMemberCount, waitForMembership,
} from "./sdk.mjs";

const [url, prefix, threadSupport, syncMode] = process.argv.slice(2);
assert.ok(threadSupport === "true" || threadSupport === "false",
    `usage: ${fileURLToPath(import.meta.url)} SERVER_URL PREFIX true|false v3|sliding`);

const options = { threadSupport: threadSupport === "true", initialSyncLimit: 8 };
const alice = await registerClient(url, `${prefix}-alice`, syncMode, options);
const bob = await registerClient(url, `${prefix}-bob`, syncMode, options);

// Push rules: the initial sync contains them, and the SDK knows them.
assert.equal(bob.pushRules.global.override[0].rule_id, ".m.rule.master");
await bob.setPushRuleEnabled("global", "underride", ".m.rule.message", false);
await waitFor(bob, "the changed push rule", () =>
    bob.pushRules.global.underride
        .find((rule) => rule.rule_id === ".m.rule.message")?.enabled === false);
await alice.setDisplayName("Alisa");

// The name of a room without m.room.name comes from its heroes.
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId()],
});
assert.equal((await waitForMembership(bob, roomId, "invite")).name, "Alisa");
await bob.joinRoom(roomId);
const bobsRoom = await waitForMembership(bob, roomId, "join");
const alicesRoom = await waitForMemberCount(alice, roomId, 2);
await waitFor(alice, "the room name", () => alicesRoom.name === bob.getUserIdLocalpart());
await waitFor(bob, "the room name", () => bobsRoom.name === "Alisa");
await bobsRoom.loadMembersIfNeeded();
assert.equal(bobsRoom.getJoinedMembers().length, 2);

// A retry with the same transaction ID sends no second event.
const textContent = (body) => ({ msgtype: "m.text", body });
const first = await alice.sendEvent(roomId, "m.room.message", textContent("salom"), "same-txn");
const retry = await alice.http.authedRequest("PUT",
    `/rooms/${encodeURIComponent(roomId)}/send/m.room.message/same-txn`, undefined,
    textContent("salom"));
assert.equal(retry.event_id, first.event_id);
await waitFor(bob, "the first message", () => bobsRoom.findEventById(first.event_id));
const isFirst = (event) => event.getContent().body === "salom";
assert.equal(bobsRoom.timeline.filter(isFirst).length, 1);

// Edit.
await alice.sendMessage(roomId, {
    ...textContent("* salom!"),
    "m.new_content": textContent("salom!"),
    "m.relates_to": { rel_type: "m.replace", event_id: first.event_id },
});
await waitFor(bob, "the edit", () =>
    bobsRoom.findEventById(first.event_id)?.getContent().body === "salom!");

// Redaction.
const wrong = await alice.sendTextMessage(roomId, "wrong");
await waitFor(bob, "the message to redact", () => bobsRoom.findEventById(wrong.event_id));
await alice.redactEvent(roomId, wrong.event_id, undefined, { reason: "typo" });
await waitFor(bob, "the redaction", () => bobsRoom.findEventById(wrong.event_id).isRedacted());

// Thread.
const root = await alice.sendTextMessage(roomId, "a root");
await waitFor(bob, "the thread root", () => bobsRoom.findEventById(root.event_id));
// The SDK looks for local echoes only in the main timeline of a room. The server responds to the
// sender a fraction of a millisecond before it responds to /sync, on another connection. If the SDK
// reads the response to /sync first, it reports an error for a reply in a thread, although the
// message is sent. Then the function asks the server for the event.
async function sendInThread(client, body) {
    try {
        return await client.sendMessage(roomId, {
            ...textContent(body),
            "m.relates_to": { rel_type: "m.thread", event_id: root.event_id },
        });
    } catch (error) {
        if (!error.message.includes("not a local echo")) throw error;
        const { events } = await fetchThread(client);
        return { event_id: events.find((event) => event.getContent().body === body).getId() };
    }
}
const fetchThread = (client) =>
    client.relations(roomId, root.event_id, "m.thread", null, { dir: "b" });
await sendInThread(bob, "a first reply");
const reply = await sendInThread(alice, "a second reply");
assert.deepEqual((await fetchThread(bob)).events.map((event) => event.getContent().body),
    ["a second reply", "a first reply"]);
if (threadSupport === "true") {
    await waitFor(bob, "the thread", () =>
        bobsRoom.getThread(root.event_id)?.replyToEvent?.getId() === reply.event_id);
    await bobsRoom.createThreadsTimelineSets();
    await bobsRoom.fetchRoomThreads();
    assert.deepEqual(bobsRoom.getThreads().map((thread) => thread.id), [root.event_id]);
    assert.equal(bobsRoom.getThread(root.event_id).length, 2);
    assert.ok(bobsRoom.getThread(root.event_id).hasCurrentUserParticipated);
}

// Reaction: a user can send it only once.
const annotation = {
    "m.relates_to": { rel_type: "m.annotation", event_id: root.event_id, key: "👍" },
};
const reaction = await bob.sendEvent(roomId, "m.reaction", annotation);
await assert.rejects(bob.sendEvent(roomId, "m.reaction", annotation),
    { errcode: "M_DUPLICATE_ANNOTATION" });

// Receipts and typing. Alice's client counts a later event of Bob as his read receipt: wait for his
// reaction before sending the message that he reads.
await waitFor(alice, "the reaction", () => alicesRoom.findEventById(reaction.event_id));
const unread = await alice.sendTextMessage(roomId, "read me");
const unreadEvent = await waitFor(bob, "the unread message", () =>
    bobsRoom.findEventById(unread.event_id));
await bob.sendReadReceipt(unreadEvent);
await waitFor(alice, "the read receipt", () =>
    alicesRoom.getEventReadUpTo(bob.getUserId()) === unread.event_id);
await bob.setRoomReadMarkers(roomId, unread.event_id, unreadEvent);
await bob.sendTyping(roomId, true, 120000);
await waitFor(alice, "Bob to type", () => alicesRoom.getMember(bob.getUserId())?.typing);
await bob.sendTyping(roomId, false, 0);
await waitFor(alice, "Bob to stop typing", () => !alicesRoom.getMember(bob.getUserId()).typing);

// Pagination to the start of the room, on a device that logs in later.
const sentIds = [];
for (let index = 0; index < 30; index++) {
    sentIds.push((await alice.sendTextMessage(roomId, `${index}`)).event_id);
}
const clientOptions = { baseUrl: url, fetchFn: fetchAndLog, timelineSupport: true };
const session = await sdk.createClient(clientOptions).loginRequest({
    type: "m.login.password",
    password: PASSWORD,
    identifier: { type: "m.id.user", user: `${prefix}-bob` },
});
const bob2 = sdk.createClient({ ...clientOptions, ...sessionOptions(session) });
await startSyncing(bob2, syncMode, { ...options, initialSyncLimit: 4 });
const room = await waitFor(bob2, "the room", () => bob2.getRoom(roomId));
await waitFor(bob2, "the room name", () => room.name === "Alisa");
const timeline = new sdk.TimelineWindow(bob2, room.getUnfilteredTimelineSet());
await timeline.load(undefined, 4);
while (timeline.canPaginate("b")) await timeline.paginate("b", 9);
const timelineIds = timeline.getEvents().map((event) => event.getId());
assert.equal(new Set(timelineIds).size, timelineIds.length, "no event comes twice");
assert.deepEqual(timelineIds.filter((id) => sentIds.includes(id)), sentIds, "all, in order");
assert.equal(timeline.getEvents()[0].getType(), "m.room.create");
assert.ok(timelineIds.includes(first.event_id));
const context = new sdk.TimelineWindow(bob2, room.getUnfilteredTimelineSet());
await context.load(sentIds[10], 6);
assert.ok(context.getEvents().some((event) => event.getId() === sentIds[10]));

// Search for messages and users. The limit is for a server that has just started: its background
// jobs start one by one.
const SEARCH_POLLING = { timeout: 40_000, interval: 200 };
const searchMessages = (term, filter) => pollUntil(`search results: ${term}`, async () => {
    const response = await bob2.searchRoomEvents({ term, filter });
    return response.results.length && response;
}, SEARCH_POLLING);
const found = await searchMessages("REÁD ме", { rooms: [roomId] });
assert.deepEqual(found.results.map((result) => result.context.getEvent().getId()),
    [unread.event_id]);
assert.equal(found.count, 1);
assert.ok(found.highlights.includes("read"));
assert.ok(found.results[0].context.getTimeline().length > 1);
const foundRoot = await searchMessages("root");
assert.equal(foundRoot.results[0].context.getEvent().getId(), root.event_id);
const foundUser = await pollUntil("the user directory to list Alice", async () => {
    const response = await bob.searchUserDirectory({ term: "алис", limit: 5 });
    return response.results.find((user) => user.user_id === alice.getUserId());
}, SEARCH_POLLING);
assert.equal(foundUser.display_name, "Alisa");

// Leave, forget and log out.
await waitForIdle();
await bob.leave(roomId);
await waitForMemberCount(alice, roomId, 1);
await bob.forget(roomId);
await logoutAndExit(bob2, bob, alice);
