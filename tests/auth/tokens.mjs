// Tokens, good and broken: a seed makes the same ones again.

import { createHmac, createSign, generateKeyPairSync } from 'node:crypto'

export const PROJECT = 'differential-tests'
const ISSUER = `https://securetoken.google.com/${PROJECT}`

const rsa = () => generateKeyPairSync('rsa', { modulusLength: 2048 })
export const keys = { 'key-1': rsa(), 'key-2': rsa() }
const stranger = rsa()

/** A small generator of random numbers (mulberry32). */
export function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const encode = (bytes) => Buffer.from(bytes).toString('base64url')
const DAY = 24 * 3600

/** JSON text in place of a value, written as it is. */
class Raw {
  constructor(text) {
    this.text = text
  }
}
const write = (object) => {
  const one = ([name, value]) => `${JSON.stringify(name)}:${value instanceof Raw ? value.text : JSON.stringify(value)}`
  return `{${Object.entries(object).filter(([, value]) => value !== undefined).map(one).join(',')}}`
}

// What can be done to a token. `differs` names the rule on which the two verifiers differ (differential.test.mjs
// lists them); everything else must get the same verdict. `form` works on the finished text.
const set = (name, ...values) => values.map((value) => ({ what: `${name}=${value?.text ?? JSON.stringify(value)}`, claims: () => ({ [name]: value }) }))
const at = (name, ...seconds) => seconds.map((s) => ({ what: `${name}=now${s < 0 ? '' : '+'}${s}`, claims: (now) => ({ [name]: now + s }) }))
const header = (name, ...values) => values.map((value) => ({ what: `header ${name}=${value?.text ?? JSON.stringify(value)}`, header: { [name]: value } }))
const differs = (rule, changes) => changes.map((change) => ({ ...change, differs: rule }))
const form = (what, change) => [{ what, form: change }]

export const CHANGES = [
  // The audience and the issuer.
  ...set('aud', undefined, null, '', 'other', PROJECT.toUpperCase(), `${PROJECT} `, [PROJECT], ['other', PROJECT], 7, { a: 1 }),
  ...set('iss', undefined, null, '', 'https://securetoken.google.com/other', `${ISSUER}/`, 'accounts.google.com', PROJECT, 7, [ISSUER]),
  // The user.
  ...set('sub', undefined, null, '', 7, true, ['ann'], 'x'.repeat(129), '\u00e9'.repeat(129)),
  ...set('sub', 'x', ' ', 'x'.repeat(128), '\u00e9'.repeat(128), 'a b\n{}*:', '\u0000', '../../etc', 'user@example.org'),
  ...differs('a uid is counted in characters', set('sub', '\u{1f600}'.repeat(65), '\u{1f600}'.repeat(128))),
  // Its end.
  ...at('exp', -10, -60, -61, -3600, -10 * DAY, 10, 3600.5, 10 * DAY),
  ...set('exp', 0, -1, 1e300, 1e15, '9999999999', null, true, [9999999999], {}),
  ...differs('a missing claim', set('exp', undefined)),
  ...differs('a number past the range of a double', set('exp', new Raw('1e999'))),
  // Its beginning.
  ...at('iat', -10 * DAY, -3600, -1, 30, 50),
  ...differs('a beginning that lies ahead', at('iat', 80, 3600, 10 * DAY)),
  ...differs('a missing claim', set('iat', undefined, null)),
  ...differs('a date that is no number', set('iat', 'now', true, {})),
  ...at('auth_time', -10 * DAY, -3600, 30, 50),
  ...differs('a beginning that lies ahead', at('auth_time', 80, 3600, 10 * DAY)),
  ...differs('a missing claim', set('auth_time', undefined, null)),
  ...differs('a date that is no number', set('auth_time', 'now', [], '')),
  ...at('nbf', -10, -3600, 80, 3600),
  ...set('nbf', 'now', true, {}),
  ...differs('nbf has the same leeway', at('nbf', 30, 50)),
  ...differs('null counts as absent', set('nbf', null)),
  // What is not looked at.
  ...set('email', undefined, null, 7, '', 'ann@example.org', '\u0007', 'not an address'),
  ...set('unknown', { a: [1, { b: null }] }, new Raw('[[[[[[[[1]]]]]]]]'), new Raw('-0.0e-7')),
  ...set('jti', 7, 'x'),
  ...set('firebase', 7, { sign_in_provider: 'custom' }),
  ...set('v', 0),
  ...differs('text that is not Unicode', set('sub', new Raw('"\\ud800"'))),
  ...differs('a name that stands twice', set('again', new Raw(`1,"sub":"ann"`), new Raw(`1,"aud":"${PROJECT}"`))),
  ...differs('a message about a user who is not there yet', [{ what: 'beforeSendSms without sub', claims: () => ({ event_type: 'beforeSendSms', sub: undefined }) }]),
  // The header.
  ...header('alg', undefined, null, '', 'none', 'None', 'HS256', 'RS384', 'RS512', 'PS256', 'ES256', 'rs256', 7),
  ...header('kid', undefined, 'key-3', 'KEY-1', 7, 'constructor', '__proto__', 'key-2'),
  ...differs('a name of a key that is no text', header('kid', null, ['key-1'])),
  ...differs('an empty name of a key', header('kid', '')),
  ...header('typ', undefined, 'at+jwt', 7),
  ...header('jku', 'https://evil.example/keys'),
  ...header('jwk', stranger.publicKey.export({ format: 'jwk' })),
  ...header('x5u', 'https://evil.example/'),
  ...differs('an extension that must be understood', header('crit', ['exp'], [])),
  ...differs('a name that stands twice', header('again', new Raw('1,"alg":"RS256"'))),
  // The signature.
  { what: "a stranger's signature", signer: stranger },
  { what: 'HS256 with the public key', header: { alg: 'HS256' }, confused: true },
  ...form('no signature', ([h, p]) => [h, p, '']),
  ...form('a signature cut short', ([h, p, s]) => [h, p, s.slice(0, -4)]),
  ...form('a longer signature', ([h, p, s]) => [h, p, `${s}AAAA`]),
  ...form('a signature of zeros', ([h, p, s]) => [h, p, 'A'.repeat(s.length)]),
  ...form("another token's payload", ([h, , s]) => [h, encode(write({ sub: 'eve', aud: PROJECT, iss: ISSUER, exp: 9999999999, iat: 1, auth_time: 1 })), s]),
  ...form('a changed character', ([h, p, s], r) => {
    const parts = [h, p, s]
    const which = Math.floor(r() * 3)
    // Not the last one of a part: its lowest bits may mean nothing (below).
    const place = Math.floor(r() * Math.max(0, parts[which].length - 1))
    const old = parts[which][place]
    parts[which] = parts[which].slice(0, place) + (old === 'A' ? 'B' : 'A') + parts[which].slice(place + 1)
    return parts
  }),
  ...differs('one text for one signature', form('unused bits in the last character of the signature', ([h, p, s]) => {
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
    return s ? [h, p, s.slice(0, -1) + alphabet[alphabet.indexOf(s.at(-1)) ^ 1]] : [h, p, s]
  })),
  // The form.
  ...form('two parts', ([h, p]) => [h, p]),
  ...form('four parts', ([h, p, s]) => [h, p, s, s]),
  ...form('an empty header', ([, p, s]) => ['', p, s]),
  ...form('an empty payload', ([h, , s]) => [h, '', s]),
  ...form('padding', ([h, p, s]) => [h, p, `${s}==`]),
  ...form("base64's own alphabet", ([h, p, s]) => [h, p, `+/${s.slice(2)}`]),
  ...form('a header that is no object', ([, p, s]) => [encode('["RS256","key-1"]'), p, s]),
  ...form('a header that is no JSON', ([, p, s]) => [encode('RS256'), p, s]),
  { what: 'a payload that is a list', payload: () => `["${PROJECT}","${ISSUER}","ann",9999999999,1,1]` },
  { what: 'a payload that is text', payload: () => '"ann"' },
  { what: 'a payload that is no JSON', payload: (json) => json.slice(0, -1) },
  { what: 'white space around the payload', payload: (json) => ` \n${json}\t ` },
]

/** A token with these changes: `{text, changes}`. */
export function make(changes, now, r) {
  const uid = `user-${Math.floor(r() * 1e6)}`
  const claims = {
    iss: ISSUER, aud: PROJECT, auth_time: now - 60, user_id: uid, sub: uid, iat: now - 30, exp: now + 3600,
    email: `${uid}@example.org`, email_verified: false, firebase: { sign_in_provider: 'password' },
  }
  const head = { alg: 'RS256', kid: 'key-1', typ: 'JWT' }
  for (const change of changes) {
    Object.assign(claims, change.claims?.(now))
    Object.assign(head, change.header)
  }
  let payload = write(claims)
  for (const change of changes) payload = change.payload?.(payload) ?? payload
  const message = `${encode(write(head))}.${encode(payload)}`
  const signer = changes.find((change) => change.signer)?.signer ?? (Object.hasOwn(keys, head.kid) ? keys[head.kid] : keys['key-1'])
  const signature = changes.some((change) => change.confused)
    ? createHmac('sha256', keys['key-1'].publicKey.export({ type: 'spki', format: 'pem' })).update(message).digest()
    : createSign('RSA-SHA256').update(message).sign(signer.privateKey)
  let parts = [...message.split('.'), encode(signature)]
  for (const change of changes) parts = change.form?.(parts, r) ?? parts
  return { text: parts.join('.'), changes }
}
