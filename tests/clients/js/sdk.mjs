// Shared by all scripts of this folder: loads matrix-js-sdk, makes clients, logs their requests,
// and waits with time limits.
//
// A script runs with the folder of node_modules as its working directory.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const modules = createRequire(new URL("node_modules/", `file://${process.cwd()}/`));
export const importModule = (path) => import(modules.resolve(path));
export const sdk = await importModule("matrix-js-sdk");
export const cryptoApi = await importModule("matrix-js-sdk/lib/crypto-api/index.js");
export const { RoomHierarchy } = await importModule("matrix-js-sdk/lib/room-hierarchy.js");
const { logger } = await importModule("matrix-js-sdk/lib/logger.js");
logger.setLevel?.("warn");

const { SlidingSync } = await importModule("matrix-js-sdk/lib/sliding-sync.js");

export const PASSWORD = "correct horse";
// The default limit of a wait or a request, for a busy machine. Servers retry a server that was
// down after 5, 20 and 65 seconds.
export const TIMEOUT_MS = 90_000;
const SLIDING_ROOM_PARAMETERS = {
    timeline_limit: 8,
    required_state: [["*", "*"], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]],
};

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Starts a client and waits for its initial sync. `syncMode`: "v3" (/sync) or "sliding".
export async function startSyncing(client, syncMode, options) {
    assert.ok(["v3", "sliding"].includes(syncMode), `the sync mode is v3 or sliding: ${syncMode}`);
    client.on(sdk.ClientEvent.SyncUnexpectedError, (error) => {
        console.error(error);
        process.exit(1);
    });
    if (syncMode === "sliding") {
        const lists = new Map([["all", { ranges: [[0, 20]], ...SLIDING_ROOM_PARAMETERS }]]);
        const slidingSync = new SlidingSync(
            client.baseUrl, lists, SLIDING_ROOM_PARAMETERS, client, 5000);
        options = { ...options, slidingSync };
    }
    await client.startClient({ lazyLoadMembers: true, pollTimeout: 5000, ...options });
    await waitFor(client, "the initial sync", () => client.isInitialSyncComplete());
}

// Registers an account and returns its client, which syncs.
export async function registerClient(url, username, syncMode, options) {
    const clientOptions = { baseUrl: url, fetchFn: fetchAndLog, timelineSupport: true };
    const session = await sdk.createClient(clientOptions).registerRequest({
        username, password: PASSWORD, auth: { type: "m.login.dummy" },
    });
    const client = sdk.createClient({ ...clientOptions, ...sessionOptions(session) });
    await startSyncing(client, syncMode, options);
    return client;
}

// The options of `createClient` for the response of a login or a registration.
export const sessionOptions = (session) => ({
    userId: session.user_id, accessToken: session.access_token, deviceId: session.device_id,
});

// Requests in flight, without /sync.
let inFlight = 0;
// The waits and requests of the script at this moment, with descriptions.
const pendingWaits = new Set();
// Requests that got no response in time. `finish` in crypto_clients.mjs fails if there are any.
export const timedOutRequests = [];

export const describePendingWaits = () => [...pendingWaits].map(({ description, since }) =>
    `${description} (for ${((Date.now() - since) / 1000).toFixed(1)} s)`).join("; ") || "none";

// Waits for a promise. At the time limit it fails with the description.
export async function withTimeout(description, promise, milliseconds = TIMEOUT_MS) {
    const wait = { description, since: Date.now() };
    let timer;
    pendingWaits.add(wait);
    try {
        return await Promise.race([promise, new Promise((_, reject) => {
            timer = setTimeout(() => reject(new Error(
                `timed out waiting for ${description}; pending: ${describePendingWaits()}`,
            )), milliseconds);
        })]);
    } finally {
        clearTimeout(timer);
        pendingWaits.delete(wait);
    }
}

// Sends a request, and aborts it at the time limit, so that a server that never responds cannot
// block the script.
async function fetchWithTimeout(resource, options) {
    const timeout = new AbortController();
    const signal = options?.signal
        ? AbortSignal.any([options.signal, timeout.signal]) : timeout.signal;
    const description = `${options?.method ?? "GET"} ${new URL(resource).pathname}`;
    const wait = { description, since: Date.now() };
    const timer = setTimeout(() => {
        timedOutRequests.push(description);
        console.error(`no response in time: ${description}`);
        timeout.abort(new Error(`no response in time: ${description}`));
    }, TIMEOUT_MS);
    pendingWaits.add(wait);
    try {
        return await fetch(resource, { ...options, signal });
    } finally {
        clearTimeout(timer);
        pendingWaits.delete(wait);
    }
}

// Sends a request and logs it on stdout, a JSON object on a line:
// {"method", "path", "status", "errcode"}.
export async function fetchAndLog(resource, options) {
    const isSync = new URL(resource).pathname.endsWith("/sync");
    if (!isSync) inFlight++;
    const response = await fetchWithTimeout(resource, options)
        .finally(() => { if (!isSync) inFlight--; });
    const entry = {
        method: options?.method ?? "GET",
        path: new URL(resource).pathname,
        status: response.status,
    };
    if (!response.ok) entry.errcode = (await response.clone().json()).errcode;
    console.log(JSON.stringify(entry));
    return response;
}

// Waits until the clients have no requests in flight but /sync: the SDK reports an error if a
// client is stopped during a request.
export async function waitForIdle() {
    for (let idleChecks = 0; idleChecks < 3; idleChecks = inFlight === 0 ? idleChecks + 1 : 0) {
        await sleep(50);
    }
}

// Waits until `condition` returns a true value, and returns that. Checks at each event of the
// client.
export function waitFor(client, description, condition) {
    const events = [sdk.ClientEvent.Sync, sdk.RoomEvent.Timeline, sdk.RoomEvent.Receipt,
        sdk.RoomEvent.MyMembership, sdk.RoomEvent.Name, sdk.RoomEvent.LocalEchoUpdated,
        sdk.RoomEvent.Redaction, sdk.RoomMemberEvent.Typing, sdk.RoomMemberEvent.Name,
        sdk.ClientEvent.AccountData, sdk.ClientEvent.Room, sdk.MatrixEventEvent.Decrypted,
        cryptoApi.CryptoEvent.VerificationRequestReceived];
    return withTimeout(`${description} (${client.getUserId()})`, new Promise((resolve) => {
        const check = () => {
            const result = condition();
            if (!result) return;
            events.forEach((event) => client.off(event, check));
            resolve(result);
        };
        events.forEach((event) => client.on(event, check));
        check();
    }));
}

// Polls until `condition`, which may be asynchronous, returns a true value, and returns that.
export async function pollUntil(
    description, condition, { timeout = TIMEOUT_MS, interval = 50 } = {},
) {
    for (const deadline = Date.now() + timeout; ;) {
        const result = await withTimeout(description, condition(), deadline - Date.now());
        if (result) return result;
        assert.ok(Date.now() < deadline, `timed out waiting for ${description}`);
        await sleep(interval);
    }
}

// Waits for a membership of the client's own user in a room, and returns the room.
export const waitForMembership = (client, roomId, membership) =>
    waitFor(client, `the membership ${membership}`, () => {
        const room = client.getRoom(roomId);
        return room?.getMyMembership() === membership && room;
    });

// Waits until a client sees this many joined members of a room, and returns the room.
export const waitForMemberCount = (client, roomId, count) =>
    waitFor(client, `${count} members in the room`, () => {
        const room = client.getRoom(roomId);
        return room?.getJoinedMemberCount() === count && room;
    });

// Logs the sessions out and ends the script with success.
export async function logoutAndExit(...clients) {
    for (const client of clients) {
        await waitForIdle();
        client.stopClient();
        await client.logout(true);
    }
    process.exit(0);
}
