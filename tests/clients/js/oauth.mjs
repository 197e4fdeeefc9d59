// matrix-js-sdk signs somebody in by the OAuth 2.0 API, as Element Web does: finds the API, registers itself, sends a browser to
// the address that it prints, reads from its input where the browser was led back to, takes tokens for the code, renews
// them, and signs out.
//
//     node oauth.mjs SERVER_URL
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { createInterface } from "node:readline/promises";
import { sdk } from "./sdk.mjs";

const modules = createRequire(new URL("node_modules/", `file://${process.cwd()}/`));
const { OAuth2 } = await import(modules.resolve("matrix-js-sdk/lib/oauth/index.js"));
const { TokenRefresher } = await import(modules.resolve("matrix-js-sdk/lib/oauth/tokenRefresher.js"));

const REDIRECT = "https://app.example.com/?no_universal_links=true";
const [url] = process.argv.slice(2);

const metadata = await sdk.createClient({ baseUrl: url }).getAuthMetadata();
assert.ok(metadata.prompt_values_supported.includes("create"));
const clientId = await OAuth2.registerClient(metadata, {
    client_name: "Element",
    client_uri: "https://app.example.com",
    redirect_uris: [REDIRECT],
    application_type: "web",
    policy_uri: "https://other.example/privacy",
});
const auth = new OAuth2(metadata, { clientId, deviceId: "JSDEVICE01" });
console.log(await auth.generateAuthorizationCodeGrantUrl("a state", REDIRECT, "fragment", "create"));

const input = createInterface({ input: process.stdin });
const [back] = await new Promise((resolve) => input.once("line", (line) => resolve([line])));
input.close();
const returned = new URLSearchParams(new URL(back).hash.slice(1));
assert.equal(returned.get("state"), "a state");
const tokens = await auth.completeAuthorizationCodeGrant(returned.get("code"), REDIRECT);

let renewed;
const refresher = new TokenRefresher(auth, (given) => { renewed = given; });
const client = sdk.createClient({
    baseUrl: url,
    accessToken: tokens.access_token,
    refreshToken: tokens.refresh_token,
    tokenRefreshFunction: (token) => refresher.refreshTokens(token),
});
const first = await client.whoami();
assert.equal(first.device_id, "JSDEVICE01");
await refresher.refreshTokens(tokens.refresh_token);
client.setAccessToken(renewed.accessToken);
assert.deepEqual(await client.whoami(), first);

// who shows the first token once more, a moment later, is refused alone (later it has been stolen: tests/oauth/test_tokens.py)
await assert.rejects(refresher.refreshTokens(tokens.refresh_token), { name: "TokenRefreshLogoutError" });
assert.deepEqual(await client.whoami(), first);

// another device, without a browser
const other = new OAuth2(metadata, { clientId, deviceId: "JSDEVICE02" });
const asked = await other.startDeviceAuthorizationGrant();
console.log(asked.verification_uri_complete);
const granted = await other.waitForDeviceAuthorizationGrant({ ...asked, interval: 1 });
assert.ok(granted.access_token, JSON.stringify(granted));
client.setAccessToken(granted.access_token);
assert.equal((await client.whoami()).device_id, "JSDEVICE02");
await other.revokeToken(granted.refresh_token, "refresh_token");
await assert.rejects(client.whoami(), { errcode: "M_UNKNOWN_TOKEN" });
console.log(JSON.stringify({ user_id: first.user_id }));
