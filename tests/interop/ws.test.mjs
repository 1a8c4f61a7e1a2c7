// The `ws` client of Node: what runs below many servers, test tools and Electron apps.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { after, before, test } from 'node:test'
import WebSocket from 'ws'
import { startDemo } from './demo.mjs'

let demo
before(async () => {
  demo = await startDemo()
})
after(() => demo?.stop())

/** Opens a socket and collects its messages, so that none is missed between two awaits. */
async function open(protocols, headers = {}, query = '') {
  const socket = new WebSocket(demo.ws + query, protocols, { headers, handshakeTimeout: 10_000 })
  const messages = []
  const waiting = []
  const put = (message) => (waiting.length > 0 ? waiting.shift()(message) : messages.push(message))
  socket.on('message', (data, isBinary) => put(isBinary ? data : data.toString()))
  socket.on('close', (code, reason) => put({ code, reason: reason.toString() }))
  socket.on('error', (error) => put({ error }))
  await Promise.race([once(socket, 'open'), once(socket, 'close')])
  const next = () =>
    new Promise((resolve, reject) => {
      if (messages.length > 0) return resolve(messages.shift())
      const timer = setTimeout(() => reject(new Error('no message within 10 s')), 10_000)
      waiting.push((message) => {
        clearTimeout(timer)
        resolve(message)
      })
    })
  const json = async (type) => {
    const message = JSON.parse(await next())
    assert.equal(message.type, type, JSON.stringify(message))
    return message
  }
  return { socket, next, json }
}

const wrapped = (desktop, mobile, room, text) =>
  `\nDesktop connected: ${desktop}\nMobile connected: ${mobile}\nRoom: ${room}\nMessage: ${text}\n`

test('classic: the token in the protocol list is a desktop, in clientid a mobile', async () => {
  const { token, email } = await demo.token('classic-user')
  const desktop = await open([token])
  assert.equal(desktop.socket.protocol, token)
  assert.equal(desktop.socket.extensions, '')
  desktop.socket.send('hello')
  assert.equal(await desktop.next(), wrapped(true, false, email, 'hello'))

  const mobile = await open([], { clientid: token })
  assert.equal(mobile.socket.protocol, '')
  mobile.socket.send('from the phone')
  for (const client of [desktop, mobile]) {
    assert.equal(await client.next(), wrapped(true, true, email, 'from the phone'))
  }
  mobile.socket.send(Buffer.from('as bytes'))
  for (const client of [desktop, mobile]) {
    assert.equal(await client.next(), wrapped(true, true, email, 'as bytes'))
  }
  mobile.socket.close(1000)
  desktop.socket.close(1000)
  assert.deepEqual(await mobile.next(), { code: 1000, reason: '' })
  assert.deepEqual(await desktop.next(), { code: 1000, reason: '' })
})

test('v1: frames, sends and a takeover', async () => {
  const { token, uid } = await demo.token('v1-user')
  const desktop = await open(['duorelay.v1', token])
  assert.equal(desktop.socket.protocol, 'duorelay.v1')
  const welcome = await desktop.json('welcome')
  assert.equal(welcome.device, 'desktop')
  assert.equal(welcome.uid, uid)
  assert.equal(welcome.peer, null)

  const mobile = await open(['duorelay.v1'], { authorization: `Bearer ${token}` })
  assert.equal(mobile.socket.protocol, 'duorelay.v1')
  const mobileWelcome = await mobile.json('welcome')
  assert.equal(mobileWelcome.device, 'mobile')
  assert.deepEqual(mobileWelcome.peer, { connection: welcome.connection, generation: welcome.generation })
  assert.equal((await desktop.json('peer')).state, 'connected')

  for (const size of [1, 125, 126, 1000, 65_535, 65_536]) {
    const frame = Buffer.alloc(size, size % 251)
    frame[0] = 0x80
    mobile.socket.send(frame)
    assert.deepEqual(await desktop.next(), frame)
  }
  desktop.socket.send(JSON.stringify({ type: 'send', data: { smile: 0.5 }, id: 'a' }))
  assert.deepEqual(await mobile.json('message'), { type: 'message', from: 'desktop', data: { smile: 0.5 }, id: 'a' })
  mobile.socket.ping()
  await once(mobile.socket, 'pong')

  const second = await open(['duorelay.v1', token])
  const overwritten = await desktop.json('overwritten')
  assert.equal(overwritten.by.connection, (await second.json('welcome')).connection)
  assert.equal((await desktop.next()).code, 4001)
  for (const { socket } of [mobile, second]) socket.terminate()
})

test('a phone’s browser names its device in the query', async () => {
  const { token } = await demo.token('query-user')
  const mobile = await open(['duorelay.v1', token], {}, '?device=mobile&client=tab-1')
  assert.equal((await mobile.json('welcome')).device, 'mobile')
  mobile.socket.terminate()
})

test('a refused handshake is an HTTP response', async () => {
  const socket = new WebSocket(demo.ws, [], { headers: { clientid: 'x' } })
  const [, response] = await once(socket, 'unexpected-response')
  assert.equal(response.statusCode, 403)
  assert.equal(response.headers['content-type'], 'application/problem+json')
  response.resume()
  socket.on('error', () => {})
  socket.terminate()
})
