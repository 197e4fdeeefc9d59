// Checks an image, plain and encrypted, with matrix-js-sdk: one user uploads and sends it, the
// other downloads it. The encryption is that of Element Web.
// spec: client-server-api#sending-encrypted-attachments
//
// usage: node files.mjs SERVER_URL PREFIX IMAGE
//
// PREFIX begins the names of the two accounts; IMAGE is the path of a PNG. Logs requests as
// `fetchAndLog` in sdk.mjs does. Exits with 0 on success.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { registerClient, waitFor, waitForIdle, waitForMembership } from "./sdk.mjs";

const [url, prefix, path] = process.argv.slice(2);
const image = await readFile(path);
const alice = await registerClient(url, `${prefix}-alice`, "v3", {});
const bob = await registerClient(url, `${prefix}-bob`, "v3", {});
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId()],
});
await waitForMembership(bob, roomId, "invite");
await bob.joinRoom(roomId);

assert.ok((await alice.getMediaConfig(true))["m.upload.size"] > image.length);

// Downloads a file, or a thumbnail of this size, with Bob's token, as clients do since Matrix 1.11.
async function download(mxc, width, height) {
    const mediaUrl = bob.mxcUrlToHttp(mxc, width, height, width && "crop", false, true, true);
    assert.ok(mediaUrl.startsWith(`${url}/_matrix/client/v1/media/`), mediaUrl);
    const response = await fetch(mediaUrl, {
        headers: { Authorization: `Bearer ${bob.getAccessToken()}` },
    });
    assert.equal(response.status, 200, `${mediaUrl} ${response.status}`);
    return {
        type: response.headers.get("content-type"),
        body: Buffer.from(await response.arrayBuffer()),
    };
}

async function receiveContent(eventId) {
    const event = await waitFor(bob, "the image", () =>
        bob.getRoom(roomId)?.findEventById(eventId));
    return event.getContent();
}

// A plain image.
const { content_uri: imageUri } = await alice.uploadContent(
    new Blob([image], { type: "image/png" }),
    { name: "choy.png", type: "image/png", progressHandler: () => {} },
);
const plainEvent = await alice.sendMessage(roomId, {
    msgtype: "m.image", body: "choy.png", url: imageUri,
    info: { mimetype: "image/png", size: image.length },
});
const downloaded = await download((await receiveContent(plainEvent.event_id)).url);
assert.ok(image.equals(downloaded.body));
assert.equal(downloaded.type, "image/png");
const thumbnail = await download(imageUri, 96, 96);
assert.ok(thumbnail.type.startsWith("image/"));
assert.ok(thumbnail.body.length > 0 && thumbnail.body.length < image.length);
const unauthenticated = await fetch(bob.mxcUrlToHttp(imageUri), {});
assert.equal(unauthenticated.status, 404, "a download without a token is refused");

// An encrypted image, which the server cannot read.
const toBase64 = (bytes) => Buffer.from(bytes).toString("base64").replace(/=+$/, "");
const key = await crypto.subtle.generateKey(
    { name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
const counter = new Uint8Array(16);
crypto.getRandomValues(counter.subarray(0, 8));
const ciphertext = Buffer.from(await crypto.subtle.encrypt(
    { name: "AES-CTR", counter, length: 64 }, key, image));
const hash = toBase64(await crypto.subtle.digest("SHA-256", ciphertext));
const { content_uri: ciphertextUri } = await alice.uploadContent(new Blob([ciphertext]), {
    includeFilename: false, type: "application/octet-stream",
});
const encryptedEvent = await alice.sendMessage(roomId, {
    msgtype: "m.image",
    body: "choy.png",
    file: {
        v: "v2", url: ciphertextUri, key: await crypto.subtle.exportKey("jwk", key),
        iv: toBase64(counter), hashes: { sha256: hash },
    },
});
const { file } = await receiveContent(encryptedEvent.event_id);
const downloadedCiphertext = (await download(file.url)).body;
assert.equal(toBase64(await crypto.subtle.digest("SHA-256", downloadedCiphertext)),
    file.hashes.sha256);
const importedKey = await crypto.subtle.importKey("jwk", file.key, "AES-CTR", false, ["decrypt"]);
const importedCounter = new Uint8Array(Buffer.from(file.iv, "base64"));
const decrypted = Buffer.from(await crypto.subtle.decrypt(
    { name: "AES-CTR", counter: importedCounter, length: 64 }, importedKey, downloadedCiphertext));
assert.ok(image.equals(decrypted));

await waitForIdle();
alice.stopClient();
bob.stopClient();
process.exit(0);
