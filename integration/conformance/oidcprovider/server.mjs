// The authorization server oidc-provider, over TLS on loopback: node server.mjs settings.json. It prints "ready" once it
// serves, and ends with its input. The settings are:
//
//   port               where it listens; the issuer is https://localhost:port
//   key, certificate   PEM files of the server
//   authority          PEM file: who signs the certificates of clients
//   clients            metadata of the clients
//   signedOnly         answers introspection with a JWT (RFC 9701), whatever else the caller accepts too
//
// Access tokens are opaque; a client that names the resource https://jwt.example.com/ gets a JWT. GET /test/introspections
// tells how often it was asked about a token.
import { createServer } from 'node:https';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Provider } from 'oidc-provider';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const issuer = `https://localhost:${settings.port}`;
const signed = 'application/token-introspection+jwt';

const key = (use, alg, type, options) => ({ ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }), kid: use, use: 'sig', alg });

const certificate = (ctx) => {
  const peer = ctx.socket.getPeerX509Certificate();
  return peer?.raw.length ? peer : undefined;
};

const provider = new Provider(issuer, {
  clients: settings.clients,
  jwks: { keys: [key('rsa', 'RS256', 'rsa', { modulusLength: 2048 }), key('pss', 'PS256', 'rsa', { modulusLength: 2048 }), key('ec', 'ES256', 'ec', { namedCurve: 'P-256' })] },
  cookies: { keys: ['conformance'] },
  scopes: ['openid', 'items:read'],
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'private_key_jwt', 'tls_client_auth'],
  enabledJWA: { introspectionSigningAlgValues: ['RS256', 'PS256', 'ES256'] },
  ttl: {
    ClientCredentials: (ctx, token, client) => (client.clientId === 'short' ? 3 : 600),
    AccessToken: 600, IdToken: 600, Grant: 3600, Session: 3600, Interaction: 600, AuthorizationCode: 60,
  },
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    jwtIntrospection: { enabled: true },
    revocation: { enabled: true },
    devInteractions: { enabled: true },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      certificateBoundAccessTokens: true,
      getCertificate: certificate,
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_san_dns' && certificate(ctx).checkHost(expected) === expected,
    },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo: (ctx, resource) => ({
        scope: 'items:read',
        audience: resource,
        accessTokenFormat: new URL(resource).hostname.startsWith('jwt.') ? 'jwt' : 'opaque',
        jwt: { sign: { alg: new URL(resource).pathname.slice(1) || 'RS256' } },
      }),
    },
  },
});

for (const event of ['introspection.error', 'revocation.error', 'grant.error', 'authorization.error', 'server_error']) {
  provider.on(event, (ctx, error) => console.log(event, error.error, error.error_description, error.error_detail ?? ''));
}

let introspections = 0;
provider.use(async (ctx, next) => {
  if (ctx.path === '/test/introspections') {
    ctx.body = String(introspections);
    return;
  }
  if (ctx.path === '/token/introspection') {
    introspections += 1;
    if (settings.signedOnly) ctx.request.header.accept = signed;
  }
  await next();
});

createServer({
  key: readFileSync(settings.key), cert: readFileSync(settings.certificate), ca: readFileSync(settings.authority), requestCert: true, rejectUnauthorized: false,
}, provider.callback()).listen(settings.port, '127.0.0.1', () => console.log('ready'));
process.stdin.on('end', () => process.exit(0)).resume();
