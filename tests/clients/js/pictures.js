// What a web client does with pictures, in its page: chosen by a person, uploaded, fetched with the token, shown; plain and encrypted.
// `look` and `hide` are called by tests/clients/test_files_in_a_browser.py with the server's address and somebody's token.
// spec: client-server-api#sending-encrypted-attachments

const byId = (id) => document.getElementById(id);
const encode = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/=+$/, "");

async function uploaded(url, token, body, type) {
    const headers = { Authorization: `Bearer ${token}`, "Content-Type": type };
    const answer = await fetch(`${url}/_matrix/media/v3/upload?filename=choy.png`, { method: "POST", headers, body });
    return (await answer.json()).content_uri.slice("mxc://".length);
}

async function fetched(url, token, path) {
    const answer = await fetch(`${url}/_matrix/client/v1/media/${path}`, { headers: { Authorization: `Bearer ${token}` } });
    if (answer.status !== 200) throw new Error(`${path}: ${answer.status}`);
    return answer.blob();
}

// The size at which the browser shows a picture.
async function shown(id, blob) {
    const image = byId(id);
    image.src = URL.createObjectURL(blob);
    await image.decode();
    return [image.naturalWidth, image.naturalHeight];
}

window.look = async (url, token) => {
    const file = byId("file").files[0];
    const address = await uploaded(url, token, file, file.type);
    return {
        address,
        whole: await shown("whole", await fetched(url, token, `download/${address}`)),
        small: await shown("small", await fetched(url, token, `thumbnail/${address}?width=96&height=96&method=crop`)),
    };
};

window.hide = async (url, token) => {
    const file = byId("file").files[0];
    const key = await crypto.subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const counter = crypto.getRandomValues(new Uint8Array(16)).fill(0, 8);
    const how = { name: "AES-CTR", counter, length: 64 };
    const hidden = await crypto.subtle.encrypt(how, key, await file.arrayBuffer());
    const address = await uploaded(url, token, hidden, "application/octet-stream");
    const got = await (await fetched(url, token, `download/${address}`)).arrayBuffer();
    const hashes = await Promise.all([hidden, got].map((each) => crypto.subtle.digest("SHA-256", each)));
    const seen = new Blob([await crypto.subtle.decrypt(how, key, got)], { type: file.type });
    return { address, hashes: hashes.map(encode), whole: await shown("whole", seen) };
};

// What becomes of a file that a page uses as a script, a style or a picture of its own.
window.use = (name, address) => new Promise((resolve) => {
    const element = document.createElement(name);
    element.onload = () => resolve("loaded");
    element.onerror = () => resolve("refused");
    if (name === "link") element.rel = "stylesheet";
    element[name === "link" ? "href" : "src"] = address;
    document.body.append(element);
});
