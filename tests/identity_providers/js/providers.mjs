// Runs an OpenID provider (oidc-provider) at /oidc and a SAML identity provider (samlp) at /saml,
// on one loopback port.
//
// usage: node providers.mjs '{"host": "localhost", "port": …, "base": "https://…/",
//                             "logoutUrl": "…", "cert": PATH, "key": PATH}'
//
// /oidc accepts any password; the username selects the claims in `USERS`. /saml treats the user of
// the query (?user=) or of a cookie as signed in; /saml/logout signs them out. /app stands for a
// client. Prints "ready" when it accepts connections.

import { readFileSync } from 'node:fs';

import express from 'express';
import Provider from 'oidc-provider';
import samlp from 'samlp';
import SessionParticipants from 'samlp/lib/sessionParticipants/index.js';

const options = JSON.parse(process.argv[2]);
const origin = `http://${options.host}:${options.port}`;
const credentials = { cert: readFileSync(options.cert), key: readFileSync(options.key) };

const USERS = {
  alice: { name: 'Alice Liddell', email: 'alice@example.com', groups: ['staff'] },
  bob: { name: 'Bob', email: 'bob@example.com', groups: ['guests'] },
};

const oidc = new Provider(`${origin}/oidc`, {
  clients: [{
    client_id: 'matrix',
    client_secret: 'open sesame',
    redirect_uris: [`${options.base}_synapse/client/oidc/callback`],
    backchannel_logout_uri: options.logoutUrl,
    backchannel_logout_session_required: true,
  }],
  claims: {
    openid: ['sub'],
    profile: ['name', 'preferred_username', 'groups'],
    email: ['email', 'email_verified'],
  },
  conformIdTokenClaims: false,
  features: { backchannelLogout: { enabled: true } },
  // The default fetch refuses to send logout requests to loopback addresses.
  fetch: (url, { dispatcher, ...rest }) => globalThis.fetch(url, rest),
  cookies: { keys: ['a cookie key for tests'] },
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({
      sub: `id-${id}`, preferred_username: id, email_verified: true, ...USERS[id],
    }),
  }),
});

// Maps a user to the attributes and the name identifier of an assertion.
class SamlProfile {
  constructor(user) { this.user = user; }

  getClaims() {
    return {
      'urn:oid:0.9.2342.19200300.100.1.1': this.user.id,
      'urn:oid:2.16.840.1.113730.3.1.241': this.user.name,
      'urn:oid:0.9.2342.19200300.100.1.3': this.user.email,
      'urn:oid:1.3.6.1.4.1.5923.1.1.1.1': this.user.groups,
    };
  }

  getNameIdentifier() { return { nameIdentifier: this.user.id }; }
}
SamlProfile.prototype.metadata = [];

const acsUrl = `${options.base}_synapse/client/saml2/authn_response`;
const issuer = `${origin}/saml/metadata`;
const profileMapper = (user) => new SamlProfile(user);
profileMapper.prototype = SamlProfile.prototype;

const getUsername = (req) =>
  req.query.user ?? /(?:^|; )user=(\w+)/.exec(req.headers.cookie)?.[1] ?? 'alice';

const app = express();
const sendAssertion = (settings) => samlp.auth({
  issuer,
  ...credentials,
  profileMapper,
  destination: acsUrl,
  recipient: acsUrl,
  getPostURL: (audience, request, req, callback) => callback(null, acsUrl),
  getUserFromRequest: (req) => ({ id: getUsername(req), ...USERS[getUsername(req)] }),
  ...settings,
});
// Single logout: the session of the last sign-in. Its service provider gets the logout request.
const participants = [];
const session = {};
let sessionCount = 0;
app.get('/saml', (req, res, next) => {
  const sessionIndex = `_${++sessionCount}`;
  participants.splice(0, participants.length, {
    serviceProviderId: `${options.base}_synapse/client/saml2/metadata.xml`,
    serviceProviderLogoutURL: `${options.base}_synapse/client/saml2/logout`,
    nameId: getUsername(req),
    nameIdFormat: 'urn:oasis:names:tc:SAML:1.1:nameid-format:unspecified',
    sessionIndex,
  });
  sendAssertion({ sessionIndex })(req, res, next);
});
const logout = (binding) => (req, res, next) => {
  req.session = session;
  req.body ??= {};
  const sessionParticipants = new SessionParticipants(participants);
  samlp.logout({
    issuer,
    ...credentials,
    deflate: true,
    protocolBinding: `urn:oasis:names:tc:SAML:2.0:bindings:${binding}`,
    sessionParticipants,
  })(req, res, next);
};
app.get('/saml/logout', logout('HTTP-Redirect'));
app.get('/saml/logout_by_post', logout('HTTP-POST'));
app.get('/saml/only_response_signed', sendAssertion({ signAssertion: false, signResponse: true }));
app.get('/saml/unsigned', sendAssertion({ signAssertion: false }));
app.get('/saml/wrong_audience', sendAssertion({ audience: 'https://other.example/' }));
app.get('/saml/expired', sendAssertion({ lifetimeInSeconds: -600 }));
app.get('/saml/metadata', samlp.metadata({
  issuer,
  ...credentials,
  profileMapper,
  redirectEndpointPath: '/saml',
  postEndpointPath: '/saml',
  logoutEndpointPaths: { redirect: '/saml/logout' },
}));
app.get('/app', (req, res) => res.type('text').send('the app'));
app.use('/oidc', oidc.callback());
app.listen(options.port, '127.0.0.1', () => console.log('ready'));
