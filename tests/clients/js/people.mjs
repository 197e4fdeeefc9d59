// People with matrix-js-sdk and its Rust crypto, for the stories about encryption: their devices, what they say, whom they verify.
//
// A story prints every request as story.mjs does. A line {"ask": "kill" | "stop" | "start" | "back_up" | "restore", "server": NUMBER}
// is for who runs it, who answers by a line on stdin once it is done: the server was killed and is starting again, is gone, or is
// starting; its database was backed up, or was restored from that.
import { randomInt } from "node:crypto";
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { cryptoApi, describeWaits, fetchAndNote, PATIENCE, sdk, unanswered, until, within } from "./sdk.mjs";

const PASSWORD = "correct horse";
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const MOST_KILLS = 12;
// A server that is started may take this long on a busy machine (tests/helpers/running.py).
const START = 200_000;
// The longest step has a dozen messages between kills. The SDK also waits by itself, without a limit.
const STEP = 270_000;
export const undecryptable = [];
export const clients = new Set();
export const ENCRYPTION = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };

// The SDK waits for a random part of ten seconds before it fills a backup: here a hundredth of that.
const random = Math.random;
Math.random = () => random() / 100;

const started = Date.now();
export const step = (what) => {
    console.error(`${((Date.now() - started) / 1000).toFixed(1)} s: ${what}`);
    clearTimeout(limit);
    limit = setTimeout(() => {
        console.error(`this step did not end: ${what}; waits: ${describeWaits()}`);
        process.exit(1);
    }, STEP);
};
let limit;

// Moments at random, the same again with the same STORY_SEED: the seed is told, so that what went wrong can be told once more.
const seed = Number(process.env.STORY_SEED ?? randomInt(2 ** 32));
step(`STORY_SEED=${seed}`);
let drawn = seed;
export function draw(below) {
    drawn = (drawn + 0x6d2b79f5) | 0; // mulberry32
    let mixed = Math.imul(drawn ^ (drawn >>> 15), drawn | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
}

async function ask(what, server) {
    console.log(JSON.stringify({ ask: what, server }));
    const { done } = await within(`the server to be there after: ${what}`, lines.next(), START);
    assert.ok(!done, `nobody answers: ${what}`);
}
export const killServer = (server = 0) => ask("kill", server);
// At some moment within that time, which is told: what went wrong then can be looked for there.
export async function killServerAtRandom(milliseconds, server = 0) {
    const moment = draw(milliseconds);
    step(`the kill comes after ${moment} ms`);
    await sleep(moment);
    await killServer(server);
}
// The server is killed at random moments from now on, whatever is done, a dozen times at most, until the function that this gives is
// called: that waits until the server is there for good.
export function killAgainAndAgain(url) {
    let isOver = false, kills = 0;
    const killing = (async () => {
        while (!isOver && kills < MOST_KILLS) {
            await killServerAtRandom(1000);
            kills++;
            await eventually("the server to answer after a kill", async () => (await fetch(`${url}/_matrix/client/versions`,
                { signal: AbortSignal.timeout(10_000) }).catch(() => null))?.ok, START);
        }
    })();
    return async () => {
        isOver = true;
        await within("the last kill", killing, START);
        assert.ok(kills > 1, `the server was killed ${kills} times only`);
    };
}
export const stopServer = (server) => ask("stop", server);
export const startServer = (server) => ask("start", server);
export const backUpServer = (server = 0) => ask("back_up", server);
export const restoreServer = (server = 0) => ask("restore", server);

// As a client on a bad network: what got no answer is sent again, and answers to /sync can be held up.
function patient(line) {
    return async (resource, options) => {
        for (const ends = Date.now() + PATIENCE; ;) {
            try {
                const answer = await fetchAndNote(resource, options);
                if (new URL(resource).pathname.endsWith("/sync")) await line.open;
                return answer;
            } catch (error) {
                if (options?.signal?.aborted || Date.now() > ends || line.cut) throw error;
                await sleep(50);
            }
        }
    };
}

// A new device of that account, with a store of its own.
export async function device(url, name, recoveryKey) {
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
        verificationMethods: ["m.sas.v1", "m.qr_code.show.v1", "m.qr_code.scan.v1", "m.reciprocate.v1"],
    });
    client.line = line;
    await client.initRustCrypto({ useIndexedDB: false });
    client.on(sdk.MatrixEventEvent.Decrypted, (event) => {
        const historical = event.decryptionFailureReason?.startsWith("HISTORICAL_MESSAGE");
        const withheld = event.decryptionFailureReason?.startsWith("MEGOLM_KEY_WITHHELD"); // by the will of who wrote it
        if (event.isDecryptionFailure() && !historical && !withheld) {
            undecryptable.push(`${name} ${event.getId()}: ${event.decryptionFailureReason}`);
            step(`not readable: ${undecryptable.at(-1)}`);
        }
    });
    await client.startClient({ lazyLoadMembers: true, initialSyncLimit: 20, pollTimeout: 2000 });
    await until(client, `${name} to be in sync`, () => client.isInitialSyncComplete());
    clients.add(client);
    return client;
}

export async function account(url, name) {
    await sdk.createClient({ baseUrl: url, fetchFn: fetchAndNote }).registerRequest({
        username: name, password: PASSWORD, auth: { type: "m.login.dummy" }, inhibit_login: true,
    });
    return device(url, name);
}

// A device that is used no longer: it asks for nothing more.
export function lay(client) {
    client.stopClient();
    clients.delete(client);
    client.line.cut = true;
}

export const passwordOf = (client) => (makeRequest) => makeRequest(null).catch((error) => {
    if (error.httpStatus !== 401) throw error;
    return makeRequest(confirmation(client, error.data.session));
});
const confirmation = (client, session) => ({
    type: "m.login.password", session, password: PASSWORD, identifier: { type: "m.id.user", user: client.getUserId() },
});

// Does what cannot be done twice: where it was refused since it was done before, and the answer got lost, all is well.
export async function doOnce(act, isDone) {
    await act().catch(async (error) => {
        if (!(await isDone())) throw error;
    });
}

export const removeDevice = (client, deviceId) => doOnce(
    () => passwordOf(client)((auth) => client.deleteDevice(deviceId, auth ?? undefined)),
    async () => !(await client.getDevices()).devices.some((device) => device.device_id === deviceId),
);

export const kick = (client, roomId, user) => doOnce(
    () => client.kick(roomId, user.getUserId()),
    async () => (await client.getStateEvent(roomId, "m.room.member", user.getUserId())).membership === "leave",
);

// Cross-signing, secret storage and a backup; the recovery key.
export async function bootstrap(client) {
    const crypto = client.getCrypto();
    let key;
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: passwordOf(client) });
    await crypto.bootstrapSecretStorage({
        setupNewSecretStorage: true, setupNewKeyBackup: true,
        createSecretStorageKey: async () => (key = await crypto.createRecoveryKeyFromPassphrase()),
    });
    assert.ok(await crypto.isCrossSigningReady());
    assert.ok(await crypto.isSecretStorageReady());
    assert.ok((await crypto.checkKeyBackupAndEnable()).trustInfo.trusted);
    return key;
}

// A device that was given the recovery key signs itself with what it finds in secret storage.
export async function recover(client) {
    assert.ok(await client.getCrypto().userHasCrossSigningKeys(client.getUserId(), true));
    await client.getCrypto().bootstrapCrossSigning({});
    await eventually("it to have signed itself", async () => (await statusFor(client, client))?.crossSigningVerified);
}

// Waits until the backup has the keys of all sessions that a device knows.
export const allBackedUp = (client) => eventually(`all sessions of ${client.getUserId()} to be in the backup`, async () => {
    const known = (await client.getCrypto().exportRoomKeys()).length;
    return (await client.http.authedRequest("GET", "/room_keys/version")).count === known;
});

export const decrypted = (client, roomId, eventId) => {
    const event = client.getRoom(roomId)?.findEventById(eventId);
    return event && !event.isEncrypted() ? assert.fail("it was sent in the clear")
        : event && event.isDecryptionFailure() === false && event.getType() === "m.room.message" && event;
};

// Waits until all of the readers can read a message.
export async function read(readers, roomId, id, body) {
    for (const reader of readers) {
        const event = await until(reader, `${reader.getUserId()} ${reader.getDeviceId()} to read: ${body}`,
            () => decrypted(reader, roomId, id));
        assert.equal(event.getContent().body, body);
    }
}

// Waits until a device reads all of a room, back to its beginning, these messages among it.
export async function readsAll(client, roomId, bodies) {
    const timeline = new sdk.TimelineWindow(client, client.getRoom(roomId).getUnfilteredTimelineSet());
    await timeline.load(undefined, 10);
    while (timeline.canPaginate("b")) await timeline.paginate("b", 20);
    const shown = () => timeline.getEvents().map((event) => event.getContent().body);
    await eventually(`the old messages: ${bodies}`, () => bodies.every((body) => shown().includes(body)));
    await eventually("every message to be readable", () => !timeline.getEvents().some((event) => event.isDecryptionFailure()));
}

// Answers to a client's /sync do not reach it any more, until the function that this gives is called.
export function holdUp(client) {
    let back;
    client.line.open = new Promise((resolve) => { back = resolve; });
    return back;
}

// Claims the one-time keys of a device until it is a fallback key that is given; all that were given.
export async function useUpKeys(claimer, owner) {
    const wish = { [owner.getUserId()]: { [owner.getDeviceId()]: "signed_curve25519" } };
    const given = new Set();
    for (let fallback = false; !fallback;) {
        const answer = await claimer.http.authedRequest("POST", "/keys/claim", undefined, { one_time_keys: wish });
        const [key] = Object.values(answer.one_time_keys[owner.getUserId()][owner.getDeviceId()]);
        assert.ok(!given.has(key.key), "a key was given twice");
        given.add(key.key);
        fallback = Boolean(key.fallback);
    }
    return given;
}

// Sends a message, which all of the readers must be able to read; the session with which it was encrypted.
export async function say(client, roomId, body, readers) {
    const { event_id: id } = await within(`${client.getUserId()} to have sent: ${body}`, client.sendTextMessage(roomId, body));
    await read(readers, roomId, id, body);
    const { content } = await client.fetchRoomEvent(roomId, id);
    assert.equal(content.algorithm, "m.megolm.v1.aes-sha2");
    return content.session_id;
}

export async function enter(client, roomId) {
    await until(client, "the invitation", () => client.getRoom(roomId)?.getMyMembership() === "invite");
    await client.joinRoom(roomId);
    await until(client, "the room", () => client.getRoom(roomId)?.getMyMembership() === "join");
}

export async function devicesOf(client, user) {
    return [...(await client.getCrypto().getUserDeviceInfo([user.getUserId()])).get(user.getUserId()).keys()];
}

// What depends on a later /sync, without an event of its own.
export async function eventually(what, condition, milliseconds = PATIENCE) {
    for (const ends = Date.now() + milliseconds; !(await within(what, condition(), ends - Date.now()));) {
        assert.ok(Date.now() < ends, `waited in vain for: ${what}`);
        await sleep(50);
    }
}

export const statusFor = (client, whose) =>
    client.getCrypto().getDeviceVerificationStatus(whose.getUserId(), whose.getDeviceId());

// A request to verify that both have accepted: [the one who asked, the one who was asked].
async function agreed(asked, request) {
    const incoming = new Promise((resolve) => asked.once(cryptoApi.CryptoEvent.VerificationRequestReceived, resolve));
    const outgoing = await within("the request to verify to be sent", request());
    const theirs = await within("the request to verify to arrive", incoming);
    await theirs.accept();
    await eventually("the request to be accepted", () => outgoing.phase === cryptoApi.VerificationPhase.Ready);
    await eventually("the acceptance to be known", () => theirs.phase === cryptoApi.VerificationPhase.Ready);
    return [outgoing, theirs];
}

const shown = (verifier, event) => new Promise((resolve, reject) => {
    verifier.on(event, resolve);
    verifier.on(cryptoApi.VerifierEvent.Cancel, reject);
});

export async function verifyByEmoji(asked, request) {
    const [outgoing, theirs] = await agreed(asked, request);
    const first = await outgoing.startVerification("m.sas.v1");
    await eventually("the verification to begin", () => theirs.verifier);
    const second = theirs.verifier;
    const emoji = [first, second].map((verifier) => shown(verifier, cryptoApi.VerifierEvent.ShowSas));
    const verified = [first.verify(), second.verify()];
    const [one, other] = await within("the emoji on both sides", Promise.all(emoji));
    assert.deepEqual(one.sas.emoji, other.sas.emoji);
    await Promise.all([one.confirm(), other.confirm()]);
    await within("both sides to be verified", Promise.all(verified));
}

// The one who was asked shows a code, the one who asked scans it.
export async function verifyByCode(asked, request) {
    const [outgoing, theirs] = await agreed(asked, request);
    const code = await theirs.generateQRCode();
    assert.ok(code, "there is a code to show");
    const scanner = await outgoing.scanQRCode(code);
    await eventually("the scan to be known", () => theirs.verifier);
    const shows = theirs.verifier;
    const scanned = shows.getReciprocateQrCodeCallbacks() ?? shown(shows, cryptoApi.VerifierEvent.ShowReciprocateQr);
    const verified = [scanner.verify(), shows.verify()];
    (await within("the scan to be shown", scanned)).confirm();
    await within("both sides to be verified", Promise.all(verified));
}

export function end() {
    assert.deepEqual(undecryptable, []);
    assert.deepEqual(unanswered, []);
    for (const client of clients) client.stopClient();
    step("all went well");
    process.exit(0);
}
