// What the stories share: matrix-js-sdk, requests that are noted, and waiting for what a client hears.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const modules = createRequire(new URL("node_modules/", `file://${process.cwd()}/`));
export const sdk = await import(modules.resolve("matrix-js-sdk"));
export const cryptoApi = await import(modules.resolve("matrix-js-sdk/lib/crypto-api/index.js"));
export const { RoomHierarchy } = await import(modules.resolve("matrix-js-sdk/lib/room-hierarchy.js"));
const { logger } = await import(modules.resolve("matrix-js-sdk/lib/logger.js"));
logger.setLevel?.("warn");

const { SlidingSync } = await import(modules.resolve("matrix-js-sdk/lib/sliding-sync.js"));

// How long something may take on a machine that has other things to do; a server that was away is tried again after 5, 20 and 65 seconds.
export const PATIENCE = 90_000;
const EVERYTHING = { timeline_limit: 8, required_state: [["*", "*"], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]] };

// Lets a client follow the server in one of two forms: "v3" (/sync) or "sliding".
export async function follow(client, form, options) {
    assert.ok(["v3", "sliding"].includes(form), `a form of synchronisation is v3 or sliding, not ${form}`);
    client.on(sdk.ClientEvent.SyncUnexpectedError, (error) => {
        console.error(error);
        process.exit(1);
    });
    if (form === "sliding") {
        const lists = new Map([["all", { ranges: [[0, 20]], ...EVERYTHING }]]);
        options = { ...options, slidingSync: new SlidingSync(client.baseUrl, lists, EVERYTHING, client, 5000) };
    }
    await client.startClient({ lazyLoadMembers: true, pollTimeout: 5000, ...options });
    await until(client, `${client.getUserId()} to be in sync`, () => client.isInitialSyncComplete());
}

// A new account, whose client follows the server.
export async function person(url, name, form, options) {
    const how = { baseUrl: url, fetchFn: fetchAndNote, timelineSupport: true };
    const registered = await sdk.createClient(how).registerRequest({
        username: name, password: "correct horse", auth: { type: "m.login.dummy" },
    });
    const client = sdk.createClient({
        ...how, userId: registered.user_id, accessToken: registered.access_token, deviceId: registered.device_id,
    });
    await follow(client, form, options);
    return client;
}

let underWay = 0;

// What the script waits for at the moment, named: requests, events, the SDK.
const waiting = new Set();
// Requests that got no response in time. `end` in people.mjs fails if there are any.
export const unanswered = [];

export const describeWaits = () => [...waiting].map(({ what, since }) =>
    `${what} (for ${((Date.now() - since) / 1000).toFixed(1)} s)`).join("; ") || "nothing with a name";

// Waits for a promise. After this time it fails and says what it waited for.
export async function within(what, promise, milliseconds = PATIENCE) {
    const entry = { what, since: Date.now() };
    let timer;
    waiting.add(entry);
    try {
        return await Promise.race([promise, new Promise((_, reject) => {
            timer = setTimeout(() => reject(new Error(`waited in vain for: ${what}; waits: ${describeWaits()}`)), milliseconds);
        })]);
    } finally {
        clearTimeout(timer);
        waiting.delete(entry);
    }
}

// A request with a time limit; it is aborted at the limit. A connection that never answers must not hold the script.
async function fetchInTime(resource, options) {
    const limit = new AbortController();
    const signal = options?.signal ? AbortSignal.any([options.signal, limit.signal]) : limit.signal;
    const what = `${options?.method ?? "GET"} ${new URL(resource).pathname}`;
    const entry = { what, since: Date.now() };
    const timer = setTimeout(() => {
        unanswered.push(what);
        console.error(`no response in time: ${what}`);
        limit.abort(new Error(`no response in time: ${what}`));
    }, PATIENCE);
    waiting.add(entry);
    try {
        return await fetch(resource, { ...options, signal });
    } finally {
        clearTimeout(timer);
        waiting.delete(entry);
    }
}

// A request; prints, as one JSON object on a line, what came of it: {"method", "path", "status", "errcode"}.
export async function fetchAndNote(resource, options) {
    const waits = new URL(resource).pathname.endsWith("/sync");
    if (!waits) underWay++;
    const answer = await fetchInTime(resource, options).finally(() => { if (!waits) underWay--; });
    const note = { method: options?.method ?? "GET", path: new URL(resource).pathname, status: answer.status };
    if (!answer.ok) note.errcode = (await answer.clone().json()).errcode;
    console.log(JSON.stringify(note));
    return answer;
}

// Waits until the clients ask for nothing but news: the SDK takes a request badly that is aborted when a client stops.
export async function quiet() {
    for (let calm = 0; calm < 3; calm = underWay === 0 ? calm + 1 : 0) await new Promise((done) => setTimeout(done, 50));
}

// Waits until `condition` gives something, looking again at each of the client's events.
export function until(client, what, condition) {
    const events = [sdk.ClientEvent.Sync, sdk.RoomEvent.Timeline, sdk.RoomEvent.Receipt, sdk.RoomEvent.MyMembership,
        sdk.RoomEvent.Name, sdk.RoomEvent.LocalEchoUpdated, sdk.RoomEvent.Redaction, sdk.RoomMemberEvent.Typing,
        sdk.RoomMemberEvent.Name, sdk.ClientEvent.AccountData, sdk.ClientEvent.Room, sdk.MatrixEventEvent.Decrypted,
        cryptoApi.CryptoEvent.VerificationRequestReceived];
    return within(`${what} (${client.getUserId()})`, new Promise((resolve) => {
        const look = () => {
            const found = condition();
            if (!found) return;
            events.forEach((event) => client.off(event, look));
            resolve(found);
        };
        events.forEach((event) => client.on(event, look));
        look();
    }));
}
