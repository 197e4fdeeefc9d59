// Clients of matrix-js-sdk with its Rust crypto, for the scripts about encryption: devices,
// messages, verification, and actions on the server.
//
// Logs every request as `fetchAndLog` in sdk.mjs does. An action on a server is a line
// {"action": "kill" | "stop" | "start" | "back_up" | "restore", "server": INDEX} on stdout. The
// runner (tests/helpers/js_scripts.py) responds with a line on stdin when it has killed and
// restarted, stopped or started the server, backed up its database, or restored it from the backup.
import { randomInt } from "node:crypto";
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import {
    cryptoApi, describePendingWaits, fetchAndLog, PASSWORD, pollUntil, sdk, sessionOptions, sleep,
    timedOutRequests, TIMEOUT_MS, waitFor, waitForMembership, withTimeout,
} from "./sdk.mjs";

const stdinLines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const MAX_KILLS = 12;
// The limit for the start of a server on a busy machine (tests/helpers/real_server.py).
const SERVER_START_TIMEOUT_MS = 200_000;
// The longest step sends a dozen messages between kills. The SDK has waits without a time limit.
const STEP_TIMEOUT_MS = 270_000;
const decryptionFailures = [];
const runningClients = new Set();
export const ENCRYPTION_STATE = {
    type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" },
};

// The SDK waits for a random time of up to ten seconds before it uploads keys to the backup. Make
// that a hundredth.
const random = Math.random;
Math.random = () => random() / 100;

// Begins a step of the test: logs its title, and restarts the time limit of steps.
const startTime = Date.now();
let stepTimer;
export const step = (title) => {
    console.error(`${((Date.now() - startTime) / 1000).toFixed(1)} s: ${title}`);
    clearTimeout(stepTimer);
    stepTimer = setTimeout(() => {
        console.error(`this step timed out: ${title}; pending: ${describePendingWaits()}`);
        process.exit(1);
    }, STEP_TIMEOUT_MS);
};

// Random times, reproducible with the logged MAHALLA_JS_SEED.
const seed = Number(process.env.MAHALLA_JS_SEED ?? randomInt(2 ** 32));
step(`MAHALLA_JS_SEED=${seed}`);
let randomState = seed;
export function randomBelow(limit) {
    randomState = (randomState + 0x6d2b79f5) | 0; // mulberry32
    let mixed = Math.imul(randomState ^ (randomState >>> 15), randomState | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % limit;
}

async function requestAction(action, server) {
    console.log(JSON.stringify({ action, server }));
    const { done } = await withTimeout(
        `the action ${action} to finish`, stdinLines.next(), SERVER_START_TIMEOUT_MS);
    assert.ok(!done, `stdin was closed before the action finished: ${action}`);
}
export const killServer = (server = 0) => requestAction("kill", server);
export const stopServer = (server) => requestAction("stop", server);
export const startServer = (server) => requestAction("start", server);
export const backUpDatabase = (server = 0) => requestAction("back_up", server);
export const restoreDatabase = (server = 0) => requestAction("restore", server);

// Kills the server at a random time within these milliseconds. The time is logged, to be compared
// with the server's log.
export async function killServerWithin(milliseconds, server = 0) {
    const delay = randomBelow(milliseconds);
    step(`the kill follows in ${delay} ms`);
    await sleep(delay);
    await killServer(server);
}

// Kills the server at random times in the background, at most `MAX_KILLS` times. Returns the
// function that stops this and waits until the server has started for the last time.
export function killRepeatedly(url) {
    let isStopped = false, kills = 0;
    const isServerUp = async () => {
        const response = await fetch(`${url}/_matrix/client/versions`, {
            signal: AbortSignal.timeout(10_000),
        }).catch(() => null);
        return response?.ok;
    };
    const killing = (async () => {
        while (!isStopped && kills < MAX_KILLS) {
            await killServerWithin(1000);
            kills++;
            await pollUntil("the server to start after a kill", isServerUp, {
                timeout: SERVER_START_TIMEOUT_MS,
            });
        }
    })();
    return async () => {
        isStopped = true;
        await withTimeout("the start after the last kill", killing, SERVER_START_TIMEOUT_MS);
        assert.ok(kills > 1, `the server was killed only ${kills} times`);
    };
}

// A fetch like that of a client on a bad network: it retries requests that get no response, and
// its responses to /sync can be paused. `connection` is the state that `login` makes.
function createRetryingFetch(connection) {
    return async (resource, options) => {
        for (const deadline = Date.now() + TIMEOUT_MS; ;) {
            try {
                const response = await fetchAndLog(resource, options);
                if (new URL(resource).pathname.endsWith("/sync")) await connection.syncResumed;
                return response;
            } catch (error) {
                const isAborted = options?.signal?.aborted || connection.isClosed;
                if (isAborted || Date.now() > deadline) throw error;
                await sleep(50);
            }
        }
    };
}

// The connection of each client: `syncResumed` is a promise that responses to /sync wait for.
const connections = new WeakMap();

// Logs in a new device of the account, with an empty crypto store, and starts its client.
export async function login(url, username, recoveryKey) {
    const connection = { syncResumed: Promise.resolve(), isClosed: false };
    const options = {
        baseUrl: url, fetchFn: createRetryingFetch(connection), timelineSupport: true,
    };
    const session = await sdk.createClient(options).loginRequest({
        type: "m.login.password",
        password: PASSWORD,
        identifier: { type: "m.id.user", user: username },
    });
    let secretStorageKey = recoveryKey;
    const client = sdk.createClient({
        ...options,
        ...sessionOptions(session),
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) =>
                secretStorageKey && [Object.keys(keys)[0], secretStorageKey],
            cacheSecretStorageKey: (_, __, key) => { secretStorageKey = key; },
        },
        verificationMethods: [
            "m.sas.v1", "m.qr_code.show.v1", "m.qr_code.scan.v1", "m.reciprocate.v1",
        ],
    });
    connections.set(client, connection);
    await client.initRustCrypto({ useIndexedDB: false });
    client.on(sdk.MatrixEventEvent.Decrypted, (event) => {
        const reason = event.decryptionFailureReason;
        const isHistorical = reason?.startsWith("HISTORICAL_MESSAGE");
        const isWithheld = reason?.startsWith("MEGOLM_KEY_WITHHELD"); // the sender's decision
        if (event.isDecryptionFailure() && !isHistorical && !isWithheld) {
            decryptionFailures.push(`${username} ${event.getId()}: ${reason}`);
            step(`decryption failed: ${decryptionFailures.at(-1)}`);
        }
    });
    await client.startClient({ lazyLoadMembers: true, initialSyncLimit: 20, pollTimeout: 2000 });
    await waitFor(client, "the initial sync", () => client.isInitialSyncComplete());
    runningClients.add(client);
    return client;
}

// Registers an account and logs in its first device.
export async function register(url, username) {
    await sdk.createClient({ baseUrl: url, fetchFn: fetchAndLog }).registerRequest({
        username, password: PASSWORD, auth: { type: "m.login.dummy" }, inhibit_login: true,
    });
    return login(url, username);
}

// Stops a client for good: it sends no further requests and no retries.
export function stopClient(client) {
    client.stopClient();
    runningClients.delete(client);
    connections.get(client).isClosed = true;
}

// Pauses the responses to /sync of a client, until the returned function is called.
export function pauseSync(client) {
    let resumeSync;
    connections.get(client).syncResumed = new Promise((resolve) => { resumeSync = resolve; });
    return resumeSync;
}

// A callback of the SDK that passes user-interactive authentication with the password.
const passwordAuth = (client) => (makeRequest) => makeRequest(null).catch((error) => {
    if (error.httpStatus !== 401) throw error;
    return makeRequest({
        type: "m.login.password",
        session: error.data.session,
        password: PASSWORD,
        identifier: { type: "m.id.user", user: client.getUserId() },
    });
});

// Runs an action that fails when it is repeated. A retry after a lost response fails, which is
// ignored if the action is done.
async function runOnce(action, isDone) {
    await action().catch(async (error) => {
        if (!(await isDone())) throw error;
    });
}

export const deleteDevice = (client, deviceId) => runOnce(
    () => passwordAuth(client)((auth) => client.deleteDevice(deviceId, auth ?? undefined)),
    async () => !(await client.getDevices()).devices.some(({ device_id: id }) => id === deviceId),
);

export const kick = (client, roomId, target) => runOnce(
    () => client.kick(roomId, target.getUserId()),
    async () => {
        const content = await client.getStateEvent(roomId, "m.room.member", target.getUserId());
        return content.membership === "leave";
    },
);

// Waits for the invite, and joins the room.
export async function joinRoom(client, roomId) {
    await waitForMembership(client, roomId, "invite");
    await client.joinRoom(roomId);
    await waitForMembership(client, roomId, "join");
}

// Sets up cross-signing, secret storage and key backup. Returns the recovery key.
export async function bootstrapCrypto(client) {
    const crypto = client.getCrypto();
    let recoveryKey;
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: passwordAuth(client) });
    await crypto.bootstrapSecretStorage({
        setupNewSecretStorage: true,
        setupNewKeyBackup: true,
        createSecretStorageKey: async () =>
            (recoveryKey = await crypto.createRecoveryKeyFromPassphrase()),
    });
    assert.ok(await crypto.isCrossSigningReady());
    assert.ok(await crypto.isSecretStorageReady());
    assert.ok((await crypto.checkKeyBackupAndEnable()).trustInfo.trusted);
    return recoveryKey;
}

// Replaces the cross-signing keys, and the key backup that the old keys signed.
export async function resetCrossSigning(client) {
    await client.getCrypto().bootstrapCrossSigning({
        setupNewCrossSigning: true, authUploadDeviceSigningKeys: passwordAuth(client),
    });
    await client.getCrypto().resetKeyBackup();
}

// Cross-signs the client's own device with the keys in secret storage, which the recovery key
// opens.
export async function verifyWithRecoveryKey(client) {
    assert.ok(await client.getCrypto().userHasCrossSigningKeys(client.getUserId(), true));
    await client.getCrypto().bootstrapCrossSigning({});
    await waitForCrossSigning(client, client);
}

// Waits until the backup has all room keys of a client.
export const waitForBackup = (client) =>
    pollUntil(`the backup of all room keys of ${client.getUserId()}`, async () => {
        const roomKeys = (await client.getCrypto().exportRoomKeys()).length;
        const backup = await client.http.authedRequest("GET", "/room_keys/version");
        return backup.count === roomKeys;
    });

// Restores the key backup, all keys of it.
export async function restoreKeyBackup(client) {
    const { imported, total } = await client.getCrypto().restoreKeyBackup();
    assert.equal(imported, total);
}

// Sends a message and waits until all readers can decrypt it. Returns the ID of the Megolm session.
export async function sendMessage(client, roomId, body, readers) {
    const { event_id: eventId } = await withTimeout(
        `${client.getUserId()} to send: ${body}`, client.sendTextMessage(roomId, body));
    await expectReadable(readers, roomId, eventId, body);
    const { content } = await client.fetchRoomEvent(roomId, eventId);
    assert.equal(content.algorithm, "m.megolm.v1.aes-sha2");
    return content.session_id;
}

// Returns a message that the client has decrypted. Fails if it was sent unencrypted.
function findDecryptedMessage(client, roomId, eventId) {
    const event = client.getRoom(roomId)?.findEventById(eventId);
    assert.ok(!event || event.isEncrypted(), "the message was sent unencrypted");
    return event && event.isDecryptionFailure() === false
        && event.getType() === "m.room.message" && event;
}

// Waits until all readers can decrypt a message.
export async function expectReadable(readers, roomId, eventId, body) {
    for (const reader of readers) {
        const event = await waitFor(reader, `${reader.getDeviceId()} to decrypt: ${body}`,
            () => findDecryptedMessage(reader, roomId, eventId));
        assert.equal(event.getContent().body, body);
    }
}

// Waits until a client can decrypt the timeline of a room back to its start, with these messages.
export async function expectTimelineReadable(client, roomId, bodies) {
    const timelineSet = client.getRoom(roomId).getUnfilteredTimelineSet();
    const timeline = new sdk.TimelineWindow(client, timelineSet);
    await timeline.load(undefined, 10);
    while (timeline.canPaginate("b")) await timeline.paginate("b", 20);
    await pollUntil(`the old messages: ${bodies}`, () => {
        const timelineBodies = timeline.getEvents().map((event) => event.getContent().body);
        return bodies.every((body) => timelineBodies.includes(body));
    });
    await pollUntil("all messages to be decrypted", () =>
        !timeline.getEvents().some((event) => event.isDecryptionFailure()));
}

// Claims all one-time keys of a device, and then its fallback key. Returns the keys.
export async function claimAllOneTimeKeys(claimer, owner) {
    const claim = { [owner.getUserId()]: { [owner.getDeviceId()]: "signed_curve25519" } };
    const claimed = new Set();
    for (let isFallback = false; !isFallback;) {
        const response = await claimer.http.authedRequest(
            "POST", "/keys/claim", undefined, { one_time_keys: claim });
        const deviceKeys = response.one_time_keys[owner.getUserId()][owner.getDeviceId()];
        const [{ key, fallback }] = Object.values(deviceKeys);
        assert.ok(!claimed.has(key), "a one-time key was claimed twice");
        claimed.add(key);
        isFallback = Boolean(fallback);
    }
    return claimed;
}

async function countDevices(client, user) {
    const devices = await client.getCrypto().getUserDeviceInfo([user.getUserId()]);
    return devices.get(user.getUserId()).size;
}

// Waits until a client knows this many devices of a user.
export const waitForDevices = (client, user, count) => pollUntil(
    `${client.getDeviceId()} to know ${count} devices of ${user.getUserId()}`,
    async () => (await countDevices(client, user)) === count,
);

// The status of the device of another client, as `client` sees it.
const getDeviceStatus = (client, other) =>
    client.getCrypto().getDeviceVerificationStatus(other.getUserId(), other.getDeviceId());

// Waits until a client trusts the device of another client by cross-signing.
export const waitForCrossSigning = (client, other) =>
    pollUntil(`${client.getDeviceId()} to trust ${other.getDeviceId()}`, async () =>
        (await getDeviceStatus(client, other))?.crossSigningVerified);

// Waits until a client sees that the owner of another client's device has signed it.
export const waitForOwnerSignature = (client, other) =>
    pollUntil(`${client.getDeviceId()} to see ${other.getDeviceId()} signed`, async () =>
        (await getDeviceStatus(client, other))?.signedByOwner);

export const isUserVerified = async (client, user) =>
    (await client.getCrypto().getUserVerificationStatus(user.getUserId())).isCrossSigningVerified();

// Sends a verification request, which the responder accepts. Returns the request as its sender and
// as the responder see it.
async function acceptVerification(responder, sendRequest) {
    const received = new Promise((resolve) => {
        responder.once(cryptoApi.CryptoEvent.VerificationRequestReceived, resolve);
    });
    const outgoing = await withTimeout("the verification request to be sent", sendRequest());
    const incoming = await withTimeout("the verification request to arrive", received);
    await incoming.accept();
    const isReady = (request) => request.phase === cryptoApi.VerificationPhase.Ready;
    await pollUntil("the sender to see the acceptance", () => isReady(outgoing));
    await pollUntil("the responder to be ready", () => isReady(incoming));
    return [outgoing, incoming];
}

const waitForVerifierEvent = (verifier, event) => new Promise((resolve, reject) => {
    verifier.on(event, resolve);
    verifier.on(cryptoApi.VerifierEvent.Cancel, reject);
});

// Waits until both sides are verified. The verifiers are used after the wait: the SDK refers to a
// verifier only weakly, and the promise of `verify` never settles if the verifier is collected.
async function waitForVerification(verifiers, verifications) {
    await withTimeout("both sides to be verified", Promise.all(verifications));
    assert.ok(verifiers.every((verifier) => !verifier.hasBeenCancelled));
}

// Verifies by comparing emoji.
export async function verifyBySas(responder, sendRequest) {
    const [outgoing, incoming] = await acceptVerification(responder, sendRequest);
    const senderVerifier = await outgoing.startVerification("m.sas.v1");
    await pollUntil("the responder to start the verification", () => incoming.verifier);
    const verifiers = [senderVerifier, incoming.verifier];
    const sasEvents = verifiers.map((verifier) =>
        waitForVerifierEvent(verifier, cryptoApi.VerifierEvent.ShowSas));
    const verifications = verifiers.map((verifier) => verifier.verify());
    const [senderSas, responderSas] = await withTimeout(
        "the emoji on both sides", Promise.all(sasEvents));
    assert.deepEqual(senderSas.sas.emoji, responderSas.sas.emoji);
    await Promise.all([senderSas.confirm(), responderSas.confirm()]);
    await waitForVerification(verifiers, verifications);
}

// Verifies by a QR code: the responder shows it, and the sender of the request scans it.
export async function verifyByQrCode(responder, sendRequest) {
    const [outgoing, incoming] = await acceptVerification(responder, sendRequest);
    const qrCode = await incoming.generateQRCode();
    assert.ok(qrCode, "the responder has a QR code");
    const scanner = await outgoing.scanQRCode(qrCode);
    await pollUntil("the responder to learn of the scan", () => incoming.verifier);
    const shower = incoming.verifier;
    const reciprocateCallbacks = shower.getReciprocateQrCodeCallbacks()
        ?? waitForVerifierEvent(shower, cryptoApi.VerifierEvent.ShowReciprocateQr);
    const verifications = [scanner.verify(), shower.verify()];
    (await withTimeout("the confirmation of the scan", reciprocateCallbacks)).confirm();
    await waitForVerification([scanner, shower], verifications);
}

// Ends the script with success, unless a message could not be decrypted or a request timed out.
export function finish() {
    assert.deepEqual(decryptionFailures, []);
    assert.deepEqual(timedOutRequests, []);
    for (const client of runningClients) client.stopClient();
    step("success");
    process.exit(0);
}
