// The demo page in a real browser: two windows are one user's two devices.

import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { eventually, startDemo } from './demo.mjs'
import { startBrowser } from './webdriver.mjs'

const SCREENSHOTS = new URL('../../target/screenshots/', import.meta.url)

let demo
let browser
before(async () => {
  await mkdir(SCREENSHOTS, { recursive: true })
  demo = await startDemo()
  browser = await startBrowser()
})
after(async () => {
  await browser?.stop()
  await demo?.stop()
})

const page = (device, user) => `${demo.http}/?device=${device}&user=${user}`

/** Waits until the tab's data attributes satisfy `check` (which throws while they do not). */
const expectDataset = (tab, what, check) =>
  eventually(what, 20_000, async () => {
    const dataset = await browser.dataset(tab)
    check(dataset)
    return dataset
  })

const expectState = (tab, state, peer) =>
  expectDataset(tab, `state ${state}, peer ${peer}`, (dataset) => {
    assert.equal(dataset.state, state, JSON.stringify(dataset))
    if (peer) assert.equal(dataset.peer, peer, JSON.stringify(dataset))
  })

const shoot = async (tab, name) => writeFile(new URL(`${name}.png`, SCREENSHOTS), await browser.screenshot(tab))

/** Both tabs are online, frames arrive at the desktop and move its character. */
async function expectMoving(desktop) {
  const first = await browser.dataset(desktop)
  await expectDataset(desktop, 'a moving character', (dataset) => {
    const frames = Number(dataset.framesReceived) - Number(first.framesReceived ?? 0)
    assert.ok(frames >= 10, `${frames} frames came: ${JSON.stringify(dataset)}`)
    assert.ok(dataset.pose, JSON.stringify(dataset))
    assert.notEqual(dataset.pose, first.pose)
  })
}

test('two windows stream, and a third takes over from the first', async () => {
  const desktop = await browser.open(page('desktop', 'browser-user'))
  assert.equal((await expectState(desktop, 'online', 'absent')).device, 'desktop')
  const mobile = await browser.open(page('mobile', 'browser-user'))
  assert.equal((await expectState(mobile, 'online', 'connected')).device, 'mobile')
  await expectState(desktop, 'online', 'connected')
  await expectMoving(desktop)
  await shoot(desktop, 'desktop')
  await shoot(mobile, 'mobile')

  const third = await browser.open(page('desktop', 'browser-user'))
  await expectState(third, 'online', 'connected')
  await expectState(desktop, 'overwritten')
  await shoot(desktop, 'desktop-overwritten')
  await expectMoving(third)
  await shoot(third, 'third')

  // Another user is in a room of their own.
  const stranger = await browser.open(page('desktop', 'another-browser-user'))
  await expectState(stranger, 'online', 'absent')
  // And the first, which must not come back, stayed away all the while.
  await expectState(third, 'online', 'connected')
  assert.equal((await browser.dataset(desktop)).state, 'overwritten')
})

test('a browser’s own WebSocket speaks classic', async () => {
  const { token, email } = await demo.token('browser-classic')
  const tab = await browser.open(page('mobile', 'browser-classic-page'))
  await browser.run(
    tab,
    `window.classic = { messages: [] }
     const socket = new WebSocket(${JSON.stringify(demo.ws)}, [${JSON.stringify(token)}])
     socket.onopen = () => { classic.protocol = socket.protocol; socket.send('hello from a page') }
     socket.onmessage = (event) => classic.messages.push(event.data)
     socket.onclose = (event) => { classic.closed = event.code }`,
  )
  await eventually('the classic answer', 10_000, async () => {
    const classic = await browser.run(tab, 'return window.classic')
    assert.equal(classic.protocol, token)
    const expected = `\nDesktop connected: true\nMobile connected: false\nRoom: ${email}\nMessage: hello from a page\n`
    assert.deepEqual(classic.messages, [expected])
  })
})

test('a page learns by the session why its handshake is refused', async () => {
  const tab = await browser.open(page('mobile', 'browser-refused'))
  await browser.run(
    tab,
    `window.refused = {}
     const socket = new WebSocket(${JSON.stringify(demo.ws)}, ['duorelay.v1', 'not-a-token'])
     socket.onclose = async (event) => {
       const answer = await fetch('/v1/session', { headers: { authorization: 'Bearer not-a-token' } })
       window.refused = { close: event.code, status: answer.status, code: (await answer.json()).code }
     }`,
  )
  await eventually('the refusal', 10_000, async () => {
    const refused = await browser.run(tab, 'return window.refused')
    assert.deepEqual(refused, { close: 1006, status: 403, code: 'malformed_token' })
  })
})
