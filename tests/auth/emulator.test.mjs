// Revocation with Firebase's own emulator: users sign up there, and its Admin SDK disables, revokes and deletes them.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { after, before, test } from 'node:test'
import { deleteApp, initializeApp } from 'firebase-admin/app'
import { getAuth } from 'firebase-admin/auth'
import WebSocket from 'ws'
import { startEmulator, startRelay } from './processes.mjs'

const PROJECT = 'demo-duorelay'
let emulator, relay, app, admin

before(async () => {
  emulator = await startEmulator(PROJECT)
  process.env.FIREBASE_AUTH_EMULATOR_HOST = emulator.host
  app = initializeApp({ projectId: PROJECT })
  admin = getAuth(app)
  relay = await startRelay({
    FIREBASE_PROJECT_ID: PROJECT,
    FIREBASE_AUTH_EMULATOR_HOST: emulator.host,
    DUORELAY_CHECK_REVOKED: 'true',
    DUORELAY_REVOCATION_SECONDS: '1',
  })
})
after(async () => {
  await relay?.stop()
  if (app) await deleteApp(app)
  await emulator?.stop()
})

/** One call of the REST API that Firebase's client libraries use. */
async function call(method, body) {
  const url = `http://${emulator.host}/identitytoolkit.googleapis.com/v1/accounts:${method}?key=any`
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ password: 'correct horse', returnSecureToken: true, ...body }),
  })
  const answer = await response.json()
  assert.equal(response.status, 200, JSON.stringify(answer))
  return { uid: answer.localId, token: answer.idToken }
}

async function open(token) {
  const socket = new WebSocket(relay.ws, ['duorelay.v1'], { headers: { clientid: token }, handshakeTimeout: 10_000 })
  const closed = once(socket, 'close', { signal: AbortSignal.timeout(15_000) })
  const [message] = await once(socket, 'message')
  const welcome = JSON.parse(message)
  assert.equal(welcome.type, 'welcome')
  return { welcome, closed: closed.then(([code]) => code) }
}

async function session(token) {
  const response = await fetch(`${relay.http}/v1/session`, { headers: { authorization: `Bearer ${token}` } })
  return { status: response.status, ...(await response.json()) }
}

/** The emulator counts in whole seconds: what is revoked in the second of the sign-in is not revoked. */
async function nextSecond() {
  const begin = Math.floor(Date.now() / 1000)
  while (Math.floor(Date.now() / 1000) === begin) await new Promise((resolve) => setTimeout(resolve, 10))
}

const cases = [
  { what: 'a disabled user', code: 'user_disabled', act: (uid) => admin.updateUser(uid, { disabled: true }) },
  { what: 'a revoked session', code: 'token_revoked', act: (uid) => admin.revokeRefreshTokens(uid) },
  { what: 'a deleted user', code: 'user_disabled', act: (uid) => admin.deleteUser(uid) },
]
for (const [n, { what, code, act }] of cases.entries()) {
  test(`${what} is cut off with 4003 and not let in again`, { timeout: 30_000 }, async () => {
    const email = `user-${n}@example.org`
    const { uid, token } = await call('signUp', { email })
    const other = await call('signUp', { email: `other-${n}@example.org` })
    const socket = await open(token)
    const bystander = await open(other.token)
    assert.equal(socket.welcome.uid, uid)
    assert.equal((await session(token)).uid, uid)

    await nextSecond()
    await act(uid)
    assert.equal(await socket.closed, 4003)
    const refused = await session(token)
    assert.deepEqual([refused.status, refused.code], [403, code])

    // Nobody else is disturbed, and who may sign in again is let in again.
    assert.equal(await Promise.race([bystander.closed, nextSecond().then(() => 'open')]), 'open')
    assert.equal((await session(other.token)).status, 200)
    if (code === 'token_revoked') {
      const again = await call('signInWithPassword', { email })
      assert.equal((await session(again.token)).status, 200)
    }
  })
}
