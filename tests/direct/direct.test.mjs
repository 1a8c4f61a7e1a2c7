// The direct path in real Chromium: two pages of one user, a real relay, and everything that can happen to either path.
// Each frame has a number: none may come twice, none after a newer one.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { eventually, startDemo } from '../interop/demo.mjs'
import { startBrowser } from '../interop/webdriver.mjs'

/** The longest silence of a stream that an event may cost, with what a busy machine adds to the 300 ms of the contract. */
const SILENCE = Number(process.env.SILENCE_MS ?? 600)

let demo
let browser
let users = 0
before(async () => {
  demo = await startDemo()
  browser = await startBrowser(['--disable-features=WebRtcHideLocalIpsWithMdns', '--allow-loopback-in-peer-connection'])
})
after(async () => {
  await browser?.stop()
  await demo?.stop()
})

/** Runs in a page: a client that sends 30 numbered frames a second, and notes what comes. */
function page(options) {
  Object.assign(window, { got: [], paths: [], states: [], connections: [], problems: [], delays: [] })
  class Connection extends RTCPeerConnection {
    constructor(configuration) {
      super({ ...configuration, ...options.configuration })
      window.connections.push(this)
    }
  }
  const token = async () => {
    const body = JSON.stringify({ user: options.user })
    const response = await fetch('/demo/token', { method: 'POST', headers: { 'content-type': 'application/json' }, body })
    return (await response.json()).token
  }
  import(`${location.origin}/duorelay.js`)
    .then(({ duorelay }) => {
      const { device, client, direct } = options
      const relay = duorelay({ url: '/ws', device, client, direct, RTCPeerConnection: Connection, getToken: token })
      window.relay = relay
      relay.on('state', (state) => window.states.push(state))
      relay.on('path', (path, because) => window.paths.push([path, because]))
      relay.on('delay', (delay) => window.delays.push(delay))
      relay.on('error', (error) => window.problems.push(error))
      relay.on('frame', (stream, bytes) => {
        window.got.push([stream, new DataView(bytes.buffer, bytes.byteOffset).getUint32(0), performance.now()])
      })
      let number = options.from ?? 0
      window.sends = setInterval(() => {
        const bytes = new Uint8Array(300)
        new DataView(bytes.buffer).setUint32(0, (number += 1))
        relay.frame(1, bytes)
        window.sent = number
      }, 33)
    })
    .catch((cause) => window.problems.push(String(cause)))
}

class Page {
  constructor(handle) {
    this.handle = handle
  }

  static async open({ http = demo.http, ...options }) {
    // A page of the relay's without a script of its own.
    const opened = new Page(await browser.open(`${http}/duorelay.d.ts`))
    await opened.start(options)
    return opened
  }

  async start(options) {
    this.options = { direct: true, client: `${options.device}-${options.user}`, ...options }
    await this.run(`(${page})(${JSON.stringify(this.options)})`)
  }

  run(script) {
    return browser.run(this.handle, script)
  }

  /** Loads the page anew; its frames go on above the numbers that it has sent until then. */
  async reload() {
    const from = (await this.run('return window.sent')) + 1_000
    await this.run('location.reload()')
    await eventually('the page to be loaded again', 10_000, async () => assert.equal(await this.run('return window.relay === undefined && document.readyState'), 'complete'))
    await this.start({ ...this.options, from })
  }

  path() {
    return this.run('return window.relay?.path')
  }

  async onPath(path) {
    await eventually(`the ${path} path`, 20_000, async () => assert.equal(await this.path(), path, await this.trouble()))
  }

  trouble() {
    return this.run('return JSON.stringify({ paths: window.paths, states: window.states, problems: window.problems })')
  }

  /** Waits until so many more frames have come. */
  async more(frames) {
    const before = await this.run('return window.got.length')
    await eventually(`${frames} more frames`, 15_000, async () => {
      const now = await this.run('return window.got.length')
      assert.ok(now >= before + frames, `${now - before}: ${await this.trouble()}`)
    })
  }

  /** Every frame newer than the one before, and no silence longer than `SILENCE` after the first. */
  async check(silence = SILENCE) {
    const got = await this.run('return window.got')
    let longest = 0
    for (let index = 1; index < got.length; index += 1) {
      const [[, number, at], [, before, beforeAt]] = [got[index], got[index - 1]]
      assert.ok(number > before, `${number} after ${before}: ${await this.trouble()}`)
      longest = Math.max(longest, at - beforeAt)
    }
    assert.ok(longest <= silence, `silent for ${longest} ms: ${await this.trouble()}`)
    return longest
  }

  async clear() {
    await this.run('window.got = []')
  }

  close() {
    return this.run('window.relay.close(); clearInterval(window.sends)')
  }
}

/** Both devices of a new user, on the direct path. */
async function pair(more = {}) {
  const user = `direct-${++users}`
  const { http } = more
  const desktop = await Page.open({ http, device: 'desktop', user, ...more.desktop })
  const mobile = await Page.open({ http, device: 'mobile', user, ...more.mobile })
  return { user, desktop, mobile, pages: [desktop, mobile] }
}

async function both({ pages }, work) {
  for (const each of pages) await work(each)
}

async function onDirect(two) {
  await both(two, (each) => each.onPath('direct'))
  await both(two, (each) => each.more(10))
  await both(two, (each) => each.clear())
}

test('two pages stream straight across, and tell the delay of both paths', async (t) => {
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
  const third = await Page.open({ device: 'desktop', user: two.user, client: 'another-tab', from: 1_000_000 })
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
  await two.mobile.run(show('hidden'))
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
    assert.deepEqual(await two.mobile.run('return window.problems'), [])
    await both(two, (each) => each.close())
  }
})
