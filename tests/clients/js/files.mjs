// A picture, plain and encrypted, with matrix-js-sdk: uploaded, sent, seen by somebody else.
//
// usage: node files.mjs SERVER_URL PREFIX PICTURE
//
// PREFIX begins the names of the two accounts; PICTURE is the path of a PNG. Ends with 0 when all went well, and prints requests as
// `story.mjs` does. What is encrypted is encrypted as Element Web does it. spec: client-server-api#sending-encrypted-attachments
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { person, quiet, until } from "./sdk.mjs";

const [url, prefix, path] = process.argv.slice(2);
const picture = await readFile(path);
const alice = await person(url, `${prefix}-alice`, "v3", {});
const bob = await person(url, `${prefix}-bob`, "v3", {});
const { room_id: roomId } = await alice.createRoom({ preset: "private_chat", invite: [bob.getUserId()] });
await until(bob, "the invitation", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
await bob.joinRoom(roomId);

assert.ok((await alice.getMediaConfig(true))["m.upload.size"] > picture.length);

// What Bob's client shows: fetched with his token, as clients do since Matrix 1.11.
async function fetched(mxc, width, height) {
    const address = bob.mxcUrlToHttp(mxc, width, height, width && "crop", false, true, true);
    assert.ok(address.startsWith(`${url}/_matrix/client/v1/media/`), address);
    const answer = await fetch(address, { headers: { Authorization: `Bearer ${bob.getAccessToken()}` } });
    assert.equal(answer.status, 200, `${address} ${answer.status}`);
    return { type: answer.headers.get("content-type"), body: Buffer.from(await answer.arrayBuffer()) };
}

async function received(eventId) {
    const event = await until(bob, "the picture", () => bob.getRoom(roomId)?.findEventById(eventId));
    return event.getContent();
}

// A plain one.
let progress = 0;
const { content_uri: plain } = await alice.uploadContent(new Blob([picture], { type: "image/png" }), {
    name: "choy.png", type: "image/png", progressHandler: ({ loaded }) => { progress = loaded; },
});
const sent = await alice.sendMessage(roomId, {
    msgtype: "m.image", body: "choy.png", url: plain, info: { mimetype: "image/png", size: picture.length },
});
const shown = await fetched((await received(sent.event_id)).url);
assert.ok(picture.equals(shown.body));
assert.equal(shown.type, "image/png");
const small = await fetched(plain, 96, 96);
assert.ok(small.type.startsWith("image/") && small.body.length > 0 && small.body.length < picture.length);
const open = await fetch(bob.mxcUrlToHttp(plain), {});
assert.equal(open.status, 404, "without a token it is not given out");

// An encrypted one: the server has a file that it can make nothing of.
const encode = (bytes) => Buffer.from(bytes).toString("base64").replace(/=+$/, "");
const key = await crypto.subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
const counter = new Uint8Array(16);
crypto.getRandomValues(counter.subarray(0, 8));
const how = { name: "AES-CTR", counter, length: 64 };
const hidden = Buffer.from(await crypto.subtle.encrypt(how, key, picture));
const hash = encode(await crypto.subtle.digest("SHA-256", hidden));
const { content_uri: secret } = await alice.uploadContent(new Blob([hidden]), {
    includeFilename: false, type: "application/octet-stream",
});
const file = {
    v: "v2", url: secret, key: await crypto.subtle.exportKey("jwk", key), iv: encode(counter), hashes: { sha256: hash },
};
const hiddenEvent = await alice.sendMessage(roomId, { msgtype: "m.image", body: "choy.png", file });
const got = (await received(hiddenEvent.event_id)).file;
const bytes = (await fetched(got.url)).body;
assert.equal(encode(await crypto.subtle.digest("SHA-256", bytes)), got.hashes.sha256);
const theirs = await crypto.subtle.importKey("jwk", got.key, "AES-CTR", false, ["decrypt"]);
const iv = new Uint8Array(Buffer.from(got.iv, "base64"));
const seen = Buffer.from(await crypto.subtle.decrypt({ name: "AES-CTR", counter: iv, length: 64 }, theirs, bytes));
assert.ok(picture.equals(seen));

await quiet();
alice.stopClient();
bob.stopClient();
process.exit(0);
