// Checks the OAuth 2.0 API with matrix-js-sdk, as Element Web uses it: discovery, client
// registration, the authorization code grant, token refresh, the device authorization grant, and
// token revocation.
//
// usage: node oauth.mjs SERVER_URL
//
// Prints, each on a line: the authorization URL, which the runner opens in a browser; the
// verification URL of the device authorization grant, likewise; and {"user_id"} at the end. Reads
// from stdin the URL to which the first browser was redirected. Exits with 0 on success.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { importModule, sdk } from "./sdk.mjs";

const { OAuth2 } = await importModule("matrix-js-sdk/lib/oauth/index.js");
const { TokenRefresher } = await importModule("matrix-js-sdk/lib/oauth/tokenRefresher.js");

const REDIRECT_URI = "https://app.example.com/?no_universal_links=true";
const [url] = process.argv.slice(2);

// Discovery and client registration.
const metadata = await sdk.createClient({ baseUrl: url }).getAuthMetadata();
assert.ok(metadata.prompt_values_supported.includes("create"));
const clientId = await OAuth2.registerClient(metadata, {
    client_name: "Element",
    client_uri: "https://app.example.com",
    redirect_uris: [REDIRECT_URI],
    application_type: "web",
    policy_uri: "https://other.example/privacy",
});

// Authorization code grant.
const oauth = new OAuth2(metadata, { clientId, deviceId: "JSDEVICE01" });
console.log(await oauth.generateAuthorizationCodeGrantUrl(
    "a state", REDIRECT_URI, "fragment", "create"));
const stdin = createInterface({ input: process.stdin });
const [redirectedUrl] = await once(stdin, "line");
stdin.close();
const response = new URLSearchParams(new URL(redirectedUrl).hash.slice(1));
assert.equal(response.get("state"), "a state");
const tokens = await oauth.completeAuthorizationCodeGrant(response.get("code"), REDIRECT_URI);

// Token refresh.
let refreshedTokens;
const refresher = new TokenRefresher(oauth, (newTokens) => { refreshedTokens = newTokens; });
const client = sdk.createClient({
    baseUrl: url,
    accessToken: tokens.access_token,
    refreshToken: tokens.refresh_token,
    tokenRefreshFunction: (refreshToken) => refresher.refreshTokens(refreshToken),
});
const whoami = await client.whoami();
assert.equal(whoami.device_id, "JSDEVICE01");
await refresher.refreshTokens(tokens.refresh_token);
client.setAccessToken(refreshedTokens.accessToken);
assert.deepEqual(await client.whoami(), whoami);

// The old refresh token is refused, and the session stays valid. After a longer time the token
// counts as stolen, and the session ends: see tests/oauth/test_tokens.py.
await assert.rejects(refresher.refreshTokens(tokens.refresh_token),
    { name: "TokenRefreshLogoutError" });
assert.deepEqual(await client.whoami(), whoami);

// Device authorization grant, and revocation of its token.
const deviceOAuth = new OAuth2(metadata, { clientId, deviceId: "JSDEVICE02" });
const authorization = await deviceOAuth.startDeviceAuthorizationGrant();
console.log(authorization.verification_uri_complete);
const deviceTokens = await deviceOAuth.waitForDeviceAuthorizationGrant(
    { ...authorization, interval: 1 });
assert.ok(deviceTokens.access_token, JSON.stringify(deviceTokens));
client.setAccessToken(deviceTokens.access_token);
assert.equal((await client.whoami()).device_id, "JSDEVICE02");
await deviceOAuth.revokeToken(deviceTokens.refresh_token, "refresh_token");
await assert.rejects(client.whoami(), { errcode: "M_UNKNOWN_TOKEN" });
console.log(JSON.stringify({ user_id: whoami.user_id }));
