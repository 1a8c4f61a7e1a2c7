// The direct path in real Chromium: two pages of one user, a real relay, and everything that can happen to either path.
// Each frame has a number: none may come twice, none after a newer one.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { eventually, startDemo } from '../interop/demo.mjs'
import { startBrowser } from '../interop/webdriver.mjs'
import { both, onDirect, Page, WEBRTC } from './pages.mjs'

let demo
let browser
let users = 0
before(async () => {
  demo = await startDemo()
  browser = await startBrowser(WEBRTC)
})
after(async () => {
  await browser?.stop()
  await demo?.stop()
})

/** Both devices of a new user, on the direct path. */
async function pair(more = {}) {
  const user = `direct-${++users}`
  const { http = demo.http } = more
  const desktop = await Page.open(browser, http, { device: 'desktop', user, ...more.desktop })
  const mobile = await Page.open(browser, http, { device: 'mobile', user, ...more.mobile })
  return { user, desktop, mobile, pages: [desktop, mobile] }
}

test('two pages stream straight across, and report the delay of both paths', async (t) => {
  const two = await pair()
  await onDirect(two)
  await both(two, (each) => each.more(60))
  await both(two, (each) => each.check())
  await eventually('both delays', 10_000, async () => {
    const delay = await two.desktop.run('return window.relay.delay')
    assert.ok(delay.direct !== null && delay.up !== null && delay.down !== null, JSON.stringify(delay))
    t.diagnostic(`direct ${delay.direct.toFixed(1)} ms, by the relay ${(delay.up + delay.down).toFixed(1)} ms`)
  })
  await both(two, (each) => each.close())
})

test('a channel that closes costs no order, and the next one is taken', async () => {
  const two = await pair()
  await onDirect(two)
  await two.mobile.run('window.connections.at(-1).close()')
  await both(two, (each) => each.onPath('relay'))
  await both(two, (each) => each.more(20))
  await both(two, (each) => each.onPath('direct'))
  await both(two, (each) => each.more(20))
  await both(two, (each) => each.check())
  await both(two, (each) => each.close())
})

test('a path that swallows everything is left at once', async () => {
  const two = await pair()
  await onDirect(two)
  // Both directions, as a network that has gone.
  await both(two, (each) => each.run('window.send = RTCDataChannel.prototype.send; RTCDataChannel.prototype.send = () => {}'))
  await both(two, (each) => each.onPath('relay'))
  await both(two, (each) => each.more(20))
  await both(two, (each) => each.check())
  await both(two, (each) => each.run('RTCDataChannel.prototype.send = window.send'))
  await both(two, (each) => each.onPath('direct'))
  await both(two, (each) => each.more(10))
  await both(two, (each) => each.check())
  await both(two, (each) => each.close())
})

test('a changed network ends the path at once, and a new one is found', async () => {
  const two = await pair()
  await onDirect(two)
  const [before, after] = await two.mobile.run(`
    const before = relay.path
    window.dispatchEvent(new Event('online'))
    return [before, relay.path]`)
  assert.deepEqual([before, after], ['direct', 'relay'])
  await both(two, (each) => each.more(20))
  await both(two, (each) => each.onPath('direct'))
  await both(two, (each) => each.more(20))
  await both(two, (each) => each.check())
  await both(two, (each) => each.close())
})

test('a channel whose buffer does not empty is left', async () => {
  const two = await pair()
  await onDirect(two)
  // What Chromium shows of a thin link: it takes each frame, and counts what has not left.
  await two.desktop.run(`Object.defineProperty(RTCDataChannel.prototype, 'bufferedAmount', { configurable: true, get: () => 8_000 })`)
  await two.desktop.onPath('relay')
  assert.equal(await two.desktop.run('return window.paths.at(-1)[1]'), 'full')
  await two.mobile.more(20)
  assert.equal(await two.mobile.path(), 'direct', 'the other way is not full')
  await both(two, (each) => each.check())
  await both(two, (each) => each.close())
})

test('where UDP is blocked the frames stay on the relay', async () => {
  const two = await pair({ desktop: { configuration: { iceTransportPolicy: 'relay' } } })
  await both(two, (each) => each.more(60))
  await both(two, async (each) => assert.equal(await each.path(), 'relay'))
  await both(two, (each) => each.check())
  await both(two, (each) => each.close())
})

test('an overwritten page reaches nobody by either path', async () => {
  const two = await pair()
  await onDirect(two)
  // Another tab: another client takes the slot.
  const third = await Page.open(browser, demo.http, { device: 'desktop', user: two.user, client: 'another-tab', from: 1_000_000 })
  await eventually('the first tab to hear of it', 10_000, async () =>
    assert.equal(await two.desktop.run('return window.relay.state'), 'overwritten'))
  await two.mobile.more(20)
  await two.mobile.check()
  const got = await two.mobile.run('return window.got.map(([, number]) => number)')
  const taken = got.findIndex((number) => number >= 1_000_000)
  assert.ok(taken >= 0 && got.slice(taken).every((number) => number >= 1_000_000), 'a frame of the overwritten page came')
  assert.equal(await two.desktop.path(), 'relay')
  // The mobile and the new tab find a path of their own.
  await third.onPath('direct')
  await two.mobile.onPath('direct')
  await two.mobile.close()
  await third.close()
})

test("the relay's socket is handed over while the frames go direct", async () => {
  // Every socket is asked to move after some 5 s.
  const moving = await startDemo(['--max-lifetime-seconds', '5'])
  try {
    const two = await pair({ http: moving.http })
    await onDirect(two)
    const connection = () => two.desktop.run('return window.relay.welcome?.connection')
    const before = await connection()
    await eventually('the hand-over', 15_000, async () => assert.notEqual((await connection()) ?? before, before))
    await both(two, (each) => each.more(20))
    await both(two, (each) => each.check())
    await both(two, (each) => each.onPath('direct'))
    await both(two, (each) => each.close())
  } finally {
    await moving.stop()
  }
})

test('both pages are reloaded, one after the other', async () => {
  const two = await pair()
  await onDirect(two)
  for (const each of two.pages) {
    await each.reload()
    await both(two, (one) => one.onPath('direct'))
    await both(two, (one) => one.more(10))
    // Signals to the page that has gone are nobody's error.
    await both(two, async (one) => assert.deepEqual(await one.run("return window.problems.filter(({ code }) => code === 'peer_absent')"), []))
  }
  // A reload is a silence of its own.
  await both(two, (each) => each.check(10_000))
  await both(two, (each) => each.close())
})

test('a page in the background leaves the direct path, and comes back to it', async () => {
  const two = await pair()
  await onDirect(two)
  const show = (state) => `
    Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => '${state}' })
    document.dispatchEvent(new Event('visibilitychange', { bubbles: true }))
    window.dispatchEvent(new Event('visibilitychange'))`
  // In the same turn: a hidden page's timers may be a minute late.
  assert.equal(await two.mobile.run(`${show('hidden')}; return relay.path`), 'relay')
  await both(two, (each) => each.onPath('relay'))
  await both(two, (each) => each.more(20))
  await two.mobile.run(show('visible'))
  await both(two, (each) => each.onPath('direct'))
  await both(two, (each) => each.more(10))
  await both(two, (each) => each.check())
  await both(two, (each) => each.close())
})

test('one page has it off: both stay on the relay', async () => {
  for (const off of ['desktop', 'mobile']) {
    const two = await pair({ [off]: { direct: false } })
    await both(two, (each) => each.more(130)) // past the three seconds in which an answer may come
    await both(two, async (each) => assert.equal(await each.path(), 'relay'))
    await both(two, (each) => each.check())
    await both(two, async (each) => assert.deepEqual(await each.run('return window.problems'), []))
    await both(two, (each) => each.close())
  }
})

test('the relay does not know `signal`: both stay on it', async () => {
  const older = await startDemo(['--direct', 'false'])
  try {
    const two = await pair({ http: older.http })
    await both(two, (each) => each.more(30))
    await both(two, async (each) => assert.equal(await each.path(), 'relay'))
    await both(two, async (each) => assert.deepEqual(await each.run('return window.problems'), []))
    await both(two, (each) => each.close())
  } finally {
    await older.stop()
  }
})

test('the relay counts the pair, and sees none of its frames', async () => {
  const metric = async (name) => {
    const text = await (await fetch(`${demo.admin}/metrics`)).text()
    const lines = text.split('\n').filter((line) => line.startsWith(name))
    return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
  }
  const pairs = await metric('duorelay_direct_paths_total')
  const two = await pair()
  await onDirect(two)
  assert.equal((await metric('duorelay_direct_paths_total')) - pairs, 1)
  const before = await metric('duorelay_frames_total{lane="volatile"')
  await both(two, (each) => each.more(60))
  assert.equal(await metric('duorelay_frames_total{lane="volatile"'), before)
  // From the rate at which they came before the path was open.
  await eventually('an estimate of them', 10_000, async () => assert.ok((await metric('duorelay_direct_frames_total')) >= 10))
  await both(two, (each) => each.close())
})

test('the demo takes it, and shows it', async () => {
  const pages = []
  for (const device of ['desktop', 'mobile']) pages.push(await browser.open(`${demo.http}/?device=${device}&user=direct-demo`))
  for (const page of pages) {
    await eventually('the page to say so', 20_000, async () =>
      assert.equal(await browser.run(page, "return document.getElementById('path').textContent"), 'straight to the other device'))
  }
})
