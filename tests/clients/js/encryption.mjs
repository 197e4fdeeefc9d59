// End-to-end encryption with matrix-js-sdk and its Rust crypto: three people, five devices, and a server that is killed.
//
// usage: node encryption.mjs SERVER_URL PREFIX
//
// PREFIX begins the names of the accounts. Prints every request as story.mjs does. Where a line is {"ask": "kill"}, the
// server is to be killed and started again; a line on stdin tells that it was killed. Ends with 0 when all went well.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { cryptoApi, fetchAndNote, sdk, until } from "./sdk.mjs";

const [url, prefix] = process.argv.slice(2);
const PASSWORD = "correct horse";
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const undecryptable = [];
const clients = new Set();

// The SDK waits for a random part of ten seconds before it fills a backup: here a hundredth of that.
const random = Math.random;
Math.random = () => random() / 100;

async function killServer() {
    console.log(JSON.stringify({ ask: "kill" }));
    await lines.next();
}

// As a client on a bad network: what got no answer is sent again, and answers to /sync can be held up.
function patient(line) {
    return async (resource, options) => {
        for (let left = 200; ; left--) {
            try {
                const answer = await fetchAndNote(resource, options);
                if (new URL(resource).pathname.endsWith("/sync")) await line.open;
                return answer;
            } catch (error) {
                if (options?.signal?.aborted || left === 0 || line.cut) throw error;
                await sleep(50);
            }
        }
    };
}

// A new device of that account, with a store of its own.
async function device(name, recoveryKey) {
    const line = { open: Promise.resolve(), cut: false };
    const options = { baseUrl: url, fetchFn: patient(line), timelineSupport: true };
    const session = await sdk.createClient(options).loginRequest({
        type: "m.login.password", password: PASSWORD, identifier: { type: "m.id.user", user: name },
    });
    let secret = recoveryKey;
    const client = sdk.createClient({
        ...options,
        userId: session.user_id, accessToken: session.access_token, deviceId: session.device_id,
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) => secret && [Object.keys(keys)[0], secret],
            cacheSecretStorageKey: (_, __, key) => { secret = key; },
        },
        verificationMethods: ["m.sas.v1"],
    });
    client.line = line;
    await client.initRustCrypto({ useIndexedDB: false });
    client.on(sdk.MatrixEventEvent.Decrypted, (event) => {
        const historical = event.decryptionFailureReason?.startsWith("HISTORICAL_MESSAGE");
        if (event.isDecryptionFailure() && !historical) {
            undecryptable.push(`${name} ${event.getId()}: ${event.decryptionFailureReason}`);
        }
    });
    await client.startClient({ lazyLoadMembers: true, initialSyncLimit: 20, pollTimeout: 2000 });
    await until(client, `${name} to be in sync`, () => client.isInitialSyncComplete());
    clients.add(client);
    return client;
}

async function account(name) {
    await sdk.createClient({ baseUrl: url, fetchFn: fetchAndNote }).registerRequest({
        username: name, password: PASSWORD, auth: { type: "m.login.dummy" }, inhibit_login: true,
    });
    return device(name);
}

const passwordOf = (client) => (makeRequest) => makeRequest(null).catch((error) => {
    if (error.httpStatus !== 401) throw error;
    return makeRequest(confirmation(client, error.data.session));
});
const confirmation = (client, session) => ({
    type: "m.login.password", session, password: PASSWORD, identifier: { type: "m.id.user", user: client.getUserId() },
});

const decrypted = (client, roomId, eventId) => {
    const event = client.getRoom(roomId)?.findEventById(eventId);
    return event && !event.isEncrypted() ? assert.fail("it was sent in the clear")
        : event && event.isDecryptionFailure() === false && event.getType() === "m.room.message" && event;
};

// Sends a message, which all of the readers must be able to read; the session with which it was encrypted.
async function say(client, roomId, body, readers) {
    const { event_id: id } = await client.sendTextMessage(roomId, body);
    for (const reader of readers) {
        const event = await until(reader, `${reader.getUserId()} ${reader.getDeviceId()} to read: ${body}`,
            () => decrypted(reader, roomId, id));
        assert.equal(event.getContent().body, body);
    }
    const { content } = await client.fetchRoomEvent(roomId, id);
    assert.equal(content.algorithm, "m.megolm.v1.aes-sha2");
    return content.session_id;
}

async function devicesOf(client, user) {
    return [...(await client.getCrypto().getUserDeviceInfo([user.getUserId()])).get(user.getUserId()).keys()];
}

// What depends on a later /sync, without an event of its own.
async function eventually(what, condition) {
    for (let left = 200; !(await condition()); left--) {
        assert.ok(left, `waited in vain for: ${what}`);
        await sleep(50);
    }
}

const started = Date.now();
const step = (what) => console.error(`${((Date.now() - started) / 1000).toFixed(1)} s: ${what}`);

const [alice, bob, carol] = await Promise.all(["alice", "bob", "carol"].map((name) => account(`${prefix}-${name}`)));

step("cross-signing, secret storage and a backup");
const keys = {};
for (const client of [alice, bob]) {
    const crypto = client.getCrypto();
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: passwordOf(client) });
    await crypto.bootstrapSecretStorage({
        setupNewSecretStorage: true, setupNewKeyBackup: true,
        createSecretStorageKey: async () => (keys[client.getUserId()] = await crypto.createRecoveryKeyFromPassphrase()),
    });
    assert.ok(await crypto.isCrossSigningReady());
    assert.ok(await crypto.isSecretStorageReady());
    assert.ok((await crypto.checkKeyBackupAndEnable()).trustInfo.trusted);
}
// Her identity anew, which has to be confirmed; what trusted the old one is made anew as well.
await alice.getCrypto().bootstrapCrossSigning({
    setupNewCrossSigning: true, authUploadDeviceSigningKeys: passwordOf(alice),
});
await alice.getCrypto().resetKeyBackup();

step("a room");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId(), carol.getUserId()],
    initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
});
for (const client of [bob, carol]) {
    await until(client, "the invitation", () => client.getRoom(roomId)?.getMyMembership() === "invite");
    await client.joinRoom(roomId);
}
await until(alice, "all in the room", () => alice.getRoom(roomId).getJoinedMemberCount() === 3);
for (const client of [bob, carol]) {
    await until(client, "the room", () => client.getRoom(roomId)?.getMyMembership() === "join");
}
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
await Promise.all([alice.getCrypto().forceDiscardSession(roomId), killServer()]);
await say(alice, roomId, "with a new session while the server starts", [bob, carol]);
await meanwhile;

step("a second device of Bob's reads what comes now, and is verified by emoji");
const bob2 = await device(`${prefix}-bob`);
await eventually("Alice to know Bob's second device", async () => (await devicesOf(alice, bob)).length === 2);
await say(alice, roomId, "welcome, second device", [bob, bob2, carol]);
await say(bob2, roomId, "thank you", [alice, bob, carol]);
await eventually("Bob to know his second device", async () => (await devicesOf(bob, bob)).length === 2);
const incoming = new Promise((resolve) => bob.once(cryptoApi.CryptoEvent.VerificationRequestReceived, resolve));
const outgoing = await bob2.getCrypto().requestOwnUserVerification();
const request = await incoming;
const emoji = (verifier) => new Promise((resolve, reject) => {
    verifier.on(cryptoApi.VerifierEvent.ShowSas, resolve);
    verifier.on(cryptoApi.VerifierEvent.Cancel, reject);
});
await request.accept();
await eventually("the request to be accepted", () => outgoing.phase === cryptoApi.VerificationPhase.Ready);
const first = await outgoing.startVerification("m.sas.v1");
await eventually("the verification to begin", () => request.verifier);
const second = request.verifier;
const shown = [emoji(first), emoji(second)];
const verified = [first.verify(), second.verify()];
const [one, other] = await Promise.all(shown);
assert.deepEqual(one.sas.emoji, other.sas.emoji);
await Promise.all([one.confirm(), other.confirm()]);
await Promise.all(verified);
const statusFor = (client, whose) => client.getCrypto().getDeviceVerificationStatus(whose.getUserId(), whose.getDeviceId());
await eventually("the second device to be signed", async () => (await statusFor(bob, bob2))?.crossSigningVerified);
await eventually("Alice to see that", async () => (await statusFor(alice, bob2))?.signedByOwner);
await eventually("the secrets to be given to it", async () =>
    (await bob2.getCrypto().getCrossSigningStatus()).privateKeysCachedLocally.selfSigningKey
    && (await bob2.getCrypto().getSessionBackupPrivateKey()));

step("a second device of Alice's, which has nothing but the recovery key");
await eventually("all sessions of Alice's to be in the backup", async () => {
    const known = (await alice.getCrypto().exportRoomKeys()).length;
    return (await alice.http.authedRequest("GET", "/room_keys/version")).count === known;
});
const alice2 = await device(`${prefix}-alice`, keys[alice.getUserId()].privateKey);
assert.ok(await alice2.getCrypto().userHasCrossSigningKeys(alice2.getUserId(), true));
await alice2.getCrypto().bootstrapCrossSigning({});
await eventually("it to have signed itself", async () => (await statusFor(alice2, alice2))?.crossSigningVerified);
await alice2.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
const restored = await alice2.getCrypto().restoreKeyBackup();
assert.equal(restored.imported, restored.total);
const timeline = new sdk.TimelineWindow(alice2, alice2.getRoom(roomId).getUnfilteredTimelineSet());
await timeline.load(undefined, 10);
while (timeline.canPaginate("b")) await timeline.paginate("b", 20);
const hasEarly = () => timeline.getEvents().some((event) => event.getContent().body === early);
await until(alice2, "the old messages", hasEarly);
await eventually("every message to be readable", () => !timeline.getEvents().some((event) => event.isDecryptionFailure()));

step("Carol is away, her one-time keys run out, and her fallback key does");
let back;
carol.line.open = new Promise((resolve) => { back = resolve; });
const wish = { [carol.getUserId()]: { [carol.getDeviceId()]: "signed_curve25519" } };
const given = new Set();
for (let fallback = false; !fallback;) {
    const answer = await bob.http.authedRequest("POST", "/keys/claim", undefined, { one_time_keys: wish });
    const [key] = Object.values(answer.one_time_keys[carol.getUserId()][carol.getDeviceId()]);
    assert.ok(!given.has(key.key), "a key was given twice");
    given.add(key.key);
    fallback = Boolean(key.fallback);
}
assert.ok(given.size > 10);
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
bob2.stopClient();
clients.delete(bob2);
bob2.line.cut = true;
await passwordOf(bob)((auth) => bob.deleteDevice(bob2.getDeviceId(), auth ?? undefined));
await eventually("Alice to hear of that", async () => (await devicesOf(alice, bob)).length === 1);
const between = await say(alice, roomId, "while Bob has one", [alice2, bob, carol]);
assert.notEqual(between, before, "the session is another one than the removed device had");

step("Carol is kicked");
await alice.kick(roomId, carol.getUserId());
await until(carol, "the kick", () => carol.getRoom(roomId).getMyMembership() === "leave");
await until(alice, "Carol to be gone", () => alice.getRoom(roomId).getJoinedMemberCount() === 2);
const after = await say(alice, roomId, "without Carol", [alice2, bob]);
assert.notEqual(after, between, "the session is another one than Carol had");
await say(bob, roomId, "good night", [alice, alice2]);

assert.deepEqual(undecryptable, []);
for (const client of clients) client.stopClient();
step("all went well");
process.exit(0);
