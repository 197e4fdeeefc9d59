// The script of the page in tests/clients/test_files_in_a_browser.py, which calls the functions of
// `window`: uploads the chosen image, downloads it with the access token and shows it, plain and
// encrypted, and embeds files as a script, style sheet or image.
// spec: client-server-api#sending-encrypted-attachments

const getElement = (id) => document.getElementById(id);
const toBase64 = (bytes) =>
    btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/=+$/, "");

// Uploads a file. Returns its content URI without the scheme.
async function upload(url, token, body, type) {
    const headers = { Authorization: `Bearer ${token}`, "Content-Type": type };
    const response = await fetch(`${url}/_matrix/media/v3/upload?filename=choy.png`, {
        method: "POST", headers, body,
    });
    return (await response.json()).content_uri.slice("mxc://".length);
}

async function download(url, token, path) {
    const headers = { Authorization: `Bearer ${token}` };
    const response = await fetch(`${url}/_matrix/client/v1/media/${path}`, { headers });
    if (response.status !== 200) throw new Error(`${path}: ${response.status}`);
    return response.blob();
}

// Shows an image. Returns its width and height.
async function showImage(id, blob) {
    const image = getElement(id);
    image.src = URL.createObjectURL(blob);
    await image.decode();
    return [image.naturalWidth, image.naturalHeight];
}

window.uploadAndShow = async (url, token) => {
    const file = getElement("file").files[0];
    const mediaPath = await upload(url, token, file, file.type);
    const image = await download(url, token, `download/${mediaPath}`);
    const thumbnail = await download(
        url, token, `thumbnail/${mediaPath}?width=96&height=96&method=crop`);
    return {
        mediaPath,
        imageSize: await showImage("image", image),
        thumbnailSize: await showImage("thumbnail", thumbnail),
    };
};

window.uploadEncryptedAndShow = async (url, token) => {
    const file = getElement("file").files[0];
    const key = await crypto.subtle.generateKey(
        { name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const counter = crypto.getRandomValues(new Uint8Array(16)).fill(0, 8);
    const algorithm = { name: "AES-CTR", counter, length: 64 };
    const uploaded = await crypto.subtle.encrypt(algorithm, key, await file.arrayBuffer());
    const mediaPath = await upload(url, token, uploaded, "application/octet-stream");
    const blob = await download(url, token, `download/${mediaPath}`);
    const downloaded = await blob.arrayBuffer();
    const hashes = await Promise.all([uploaded, downloaded].map((ciphertext) =>
        crypto.subtle.digest("SHA-256", ciphertext)));
    const decrypted = await crypto.subtle.decrypt(algorithm, key, downloaded);
    return {
        mediaPath,
        hashes: hashes.map(toBase64),
        imageSize: await showImage("image", new Blob([decrypted], { type: file.type })),
    };
};

// Embeds a file in the page with an element of this name. Returns "loaded" or "refused".
window.embed = (tagName, fileUrl) => new Promise((resolve) => {
    const element = document.createElement(tagName);
    element.onload = () => resolve("loaded");
    element.onerror = () => resolve("refused");
    if (tagName === "link") element.rel = "stylesheet";
    element[tagName === "link" ? "href" : "src"] = fileUrl;
    document.body.append(element);
});
