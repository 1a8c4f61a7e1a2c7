// The relay's verdict on a token is that of Firebase's Admin SDK, apart from the rules listed here.

import assert from 'node:assert/strict'
import http from 'node:http'
import https from 'node:https'
import { after, before, test } from 'node:test'
import { deleteApp, initializeApp } from 'firebase-admin/app'
import { getAuth } from 'firebase-admin/auth'
import { startRelay } from './processes.mjs'
import { CHANGES, PROJECT, keys, make, random } from './tokens.mjs'

// rule: [what the SDK says, what the relay says, why]
const DIFFERENCES = {
  'a missing claim': ['accepted', 'malformed_token', 'the contract asks for exp, iat and auth_time; the SDK takes a token without exp for one that never ends'],
  'a beginning that lies ahead': ['accepted', 'token_not_yet_valid', 'Firebase asks third-party verifiers to check iat and auth_time, which the SDK itself does not; 60 s are allowed for clocks'],
  'a date that is no number': ['accepted', 'malformed_token', 'the SDK does not look at iat and auth_time'],
  'nbf has the same leeway': ['refused', 'accepted', 'Firebase writes no nbf; where another service does, it has the 60 s of iat'],
  'null counts as absent': ['refused', 'accepted', 'nbf is optional, and null is nothing'],
  'a number past the range of a double': ['accepted', 'malformed_token', 'it is no date; JavaScript reads infinity'],
  'a uid is counted in characters': ['refused', 'accepted', 'the contract allows 128 characters; JavaScript counts one beyond U+FFFF as two'],
  'a name of a key that is no text': ['accepted', 'malformed_token', 'the contract; the SDK turns it into text, or tries every key in turn'],
  'an empty name of a key': ['accepted', 'unknown_key', 'a token names its key; the SDK tries every key in turn'],
  'text that is not Unicode': ['accepted', 'malformed_token', 'half a surrogate pair cannot be written into a Redis key or to a client'],
  'a name that stands twice': ['accepted', 'malformed_token', 'RFC 7515 section 4 and RFC 7519 section 4 let a verifier refuse it; two readers could take two different values'],
  'an extension that must be understood': ['accepted', 'malformed_token', 'RFC 7515 section 4.1.11'],
  'a message about a user who is not there yet': ['accepted', 'malformed_token', 'such a token is for Cloud Functions and names no user'],
  'one text for one signature': ['accepted', 'bad_signature', 'RFC 4648 section 3.5 lets a decoder refuse it: a token cannot be changed in any character'],
}
const EACH = 6
const TOGETHER = 2500
const SEED = Number(process.env.SEED ?? 20261123)

let relay, issuer, app
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 })

before(async () => {
  const jwks = Object.entries(keys).map(([kid, { publicKey }]) => ({ ...publicKey.export({ format: 'jwk' }), kid, alg: 'RS256', use: 'sig' }))
  const pems = Object.fromEntries(Object.entries(keys).map(([kid, { publicKey }]) => [kid, publicKey.export({ type: 'spki', format: 'pem' })]))
  issuer = http.createServer((request, response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'cache-control': 'public, max-age=3600' })
    response.end(JSON.stringify(request.url === '/jwks' ? { keys: jwks } : pems))
  })
  await new Promise((resolve) => issuer.listen(0, '127.0.0.1', resolve))
  const { port } = issuer.address()

  // The SDK reads its keys at a fixed address: that address, and no other, leads to the issuer of this test.
  https.request = (options, callback) => {
    assert.equal(options.hostname ?? options.host, 'www.googleapis.com')
    assert.match(options.path, /^\/robot\/v1\/metadata\/x509\/securetoken@system\.gserviceaccount\.com$/)
    return http.request({ ...options, protocol: 'http:', host: '127.0.0.1', hostname: '127.0.0.1', port, agent: undefined }, callback)
  }
  delete process.env.FIREBASE_AUTH_EMULATOR_HOST
  app = initializeApp({ projectId: PROJECT })
  relay = await startRelay({ FIREBASE_PROJECT_ID: PROJECT, DUORELAY_JWKS_URL: `http://127.0.0.1:${port}/jwks` })
})
after(async () => {
  agent.destroy()
  await relay?.stop()
  if (app) await deleteApp(app)
  issuer?.close()
})

function relayVerdict(token) {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${token}` }
    http.get(`${relay.http}/v1/session`, { agent, headers, timeout: 10_000 }, (response) => {
      let body = ''
      response.setEncoding('utf8').on('data', (text) => (body += text))
      response.on('error', reject).on('end', () => {
        const answer = JSON.parse(body)
        if (response.statusCode === 200) return resolve({ verdict: 'accepted', uid: answer.uid, end: answer.expires_at })
        if (response.statusCode === 403) return resolve({ verdict: answer.code })
        reject(new Error(`${response.statusCode} ${body} for ${token}`))
      })
    }).on('error', reject)
  })
}

async function sdkVerdict(token) {
  try {
    const { uid, exp } = await getAuth(app).verifyIdToken(token)
    return { verdict: 'accepted', uid, end: exp }
  } catch (error) {
    // Broken JSON gets through its decoder as it is. Anything else is a fault of this test and no verdict.
    if (!String(error.code).startsWith('auth/') && !(error instanceof SyntaxError)) throw error
    return { verdict: 'refused' }
  }
}

async function judge(token) {
  const [sdk, ours] = await Promise.all([sdkVerdict(token.text), relayVerdict(token.text)])
  const what = () => `${token.changes.map((change) => change.what).join(' and ') || 'a good token'}: ${token.text}`
  if (sdk.verdict === 'accepted' && ours.verdict === 'accepted') {
    assert.equal(ours.uid, sdk.uid, what())
    // A contract's date ends with the year 9999, and has no fraction.
    assert.equal(ours.end, Math.min(Math.floor(sdk.end), 253_402_300_799), what())
  }
  return { sdk, ours, what, accepted: [sdk, ours].map(({ verdict }) => verdict === 'accepted') }
}

test('a good token is accepted by both', async () => {
  const { accepted, what } = await judge(make([], Math.floor(Date.now() / 1000), random(SEED)))
  assert.deepEqual(accepted, [true, true], what())
})

test('every single change gets the same verdict, or exactly the listed difference', async () => {
  const r = random(SEED)
  const seen = new Set()
  for (const change of CHANGES) {
    for (let n = 0; n < EACH; n++) {
      const { sdk, ours, accepted, what } = await judge(make([change], Math.floor(Date.now() / 1000), r))
      if (change.differs) {
        const [ofSdk, ofRelay] = DIFFERENCES[change.differs]
        assert.deepEqual([sdk.verdict, ours.verdict], [ofSdk, ofRelay], what())
        seen.add(change.differs)
      } else {
        assert.equal(accepted[1], accepted[0], `${ours.verdict}, but the SDK: ${sdk.verdict}: ${what()}`)
      }
    }
  }
  assert.deepEqual([...seen].sort(), Object.keys(DIFFERENCES).sort(), 'a listed difference that nothing shows')
})

test('changes together get the same verdict, unless one of them is a listed difference', async () => {
  const r = random(SEED + 1)
  const verdicts = {}
  for (let n = 0; n < TOGETHER; n++) {
    const some = Array.from({ length: 2 + Math.floor(r() * 2) }, () => CHANGES[Math.floor(r() * CHANGES.length)])
    const { sdk, ours, accepted, what } = await judge(make(some, Math.floor(Date.now() / 1000), r))
    verdicts[ours.verdict] = (verdicts[ours.verdict] ?? 0) + 1
    if (accepted[0] === accepted[1]) continue
    const listed = some.filter((change) => change.differs).map((change) => DIFFERENCES[change.differs])
    const explained = listed.some(([ofSdk, ofRelay]) => (ofSdk === sdk.verdict && ofRelay === ours.verdict))
    assert.ok(explained, `${ours.verdict}, but the SDK: ${sdk.verdict}, seed ${SEED}: ${what()}`)
  }
  console.log(`${CHANGES.length * EACH + TOGETHER + 1} tokens; together: ${JSON.stringify(verdicts)}`)
  assert.ok(verdicts.accepted > 20, 'hardly any token was accepted')
})
