// A page with a client that streams, in a real browser, and what must hold of what it gets.

import assert from 'node:assert/strict'
import { eventually } from '../interop/demo.mjs'

/**
 * The longest silence of a stream that an event may cost: the 300 ms of the contract, and twice the pause between two frames
 * with what a busy machine adds to each.
 */
const SILENCE = Number(process.env.SILENCE_MS ?? 500)

/** Chromium's WebRTC in a test: real addresses in place of mDNS names, and loopback among them. */
export const WEBRTC = ['--disable-features=WebRtcHideLocalIpsWithMdns', '--allow-loopback-in-peer-connection']

/** Runs in a page: a client that sends 30 numbered frames a second, and notes what comes. */
function page(options) {
  Object.assign(window, { got: [], paths: [], states: [], connections: [], problems: [], delays: [], stalls: [] })
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
        window.got.push([stream, new DataView(bytes.buffer, bytes.byteOffset).getUint32(0), performance.timeOrigin + performance.now()])
      })
      let number = options.from ?? 0
      let before = performance.now()
      window.sends = setInterval(() => {
        const now = performance.now()
        if (now - before > 133) window.stalls.push([before + performance.timeOrigin, now + performance.timeOrigin])
        before = now
        const bytes = new Uint8Array(300)
        new DataView(bytes.buffer).setUint32(0, (number += 1))
        relay.frame(1, bytes)
        window.sent = number
      }, 33)
    })
    .catch((cause) => window.problems.push(String(cause)))
}

/** Pages that stream. A busy machine stalls them, and no path is to blame for that. */
const streaming = new Set()

export class Page {
  constructor(browser, handle) {
    this.browser = browser
    this.handle = handle
    streaming.add(this)
  }

  static async open(browser, http, options) {
    // A page of the relay's without a script of its own.
    const opened = new Page(browser, await browser.open(`${http}/duorelay.d.ts`))
    await opened.start(options)
    return opened
  }

  async start(options) {
    this.options = { direct: true, client: `${options.device}-${options.user}`, ...options }
    await this.run(`(${page})(${JSON.stringify(this.options)})`)
  }

  run(script) {
    return this.browser.run(this.handle, script)
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

  /** Every frame newer than the one before, and no silence longer than `SILENCE` after the first, but for stalled timers. */
  async check(silence = SILENCE) {
    const got = await this.run('return window.got')
    const stalls = (await Promise.all([...streaming].map((page) => page.run('return window.stalls')))).flat()
    let longest = 0
    for (let index = 1; index < got.length; index += 1) {
      const [[, number, at], [, before, beforeAt]] = [got[index], got[index - 1]]
      assert.ok(number > before, `${number} after ${before}: ${await this.trouble()}`)
      const stalled = stalls.map(([from, to]) => Math.max(0, Math.min(to, at) - Math.max(from, beforeAt)))
      longest = Math.max(longest, at - beforeAt - stalled.reduce((sum, ms) => sum + ms, 0))
    }
    assert.ok(longest <= silence, `silent for ${longest} ms: ${await this.trouble()}`)
    return longest
  }

  async clear() {
    await this.run('window.got = []')
  }

  close() {
    streaming.delete(this)
    return this.run('window.relay.close(); clearInterval(window.sends)')
  }
}

export async function both({ pages }, work) {
  for (const each of pages) await work(each)
}

/** Waits until frames go direct both ways, and begins to look at them then. */
export async function onDirect(two) {
  await both(two, (each) => each.onPath('direct'))
  await both(two, (each) => each.more(10))
  await both(two, (each) => each.clear())
}
