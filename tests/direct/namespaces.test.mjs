// The direct path between two hosts: two network namespaces with addresses of their own, and the relay in a third place.
// The switch between them has a namespace of its own. In the host's, a firewall that forwards nothing, as container
// engines leave it, would also filter what a bridge passes on (`bridge-nf-call-iptables`).
// Needs root and `ip netns`; tests/direct/run says so where they are missing.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { after, before, test } from 'node:test'
import { eventually, startDemo } from '../interop/demo.mjs'
import { startBrowser } from '../interop/webdriver.mjs'
import { both, onDirect, Page, WEBRTC } from './pages.mjs'

// Documentation addresses (RFC 5737, TEST-NET-3).
const NET = '203.0.113'
const RELAY = `${NET}.1`
const UPLINK = 'duorelay0'
const SWITCH = 'duorelay-switch'
const places = [
  { name: 'duorelay-desk', address: `${NET}.2`, link: 'duorelay1' },
  { name: 'duorelay-phone', address: `${NET}.3`, link: 'duorelay2' },
]
const ip = (...words) => execFileSync('ip', words, { stdio: ['ignore', 'pipe', 'pipe'] })
const inside = (place, ...words) => ip('-netns', place.name, ...words)
const atSwitch = (...words) => inside({ name: SWITCH }, ...words)

let demo
const browsers = []

function takeAway() {
  // The link goes first, and takes its other end along: a namespace is cleared some time after its name is gone.
  const left = [['link', 'del', UPLINK], ...[...places.map(({ name }) => name), SWITCH].map((name) => ['netns', 'del', name])]
  for (const words of left) {
    try {
      ip(...words)
    } catch {} // it was not there
  }
}

before(async () => {
  takeAway() // what a run that was killed left behind
  ip('netns', 'add', SWITCH)
  atSwitch('link', 'add', 'bridge', 'type', 'bridge')
  atSwitch('link', 'set', 'bridge', 'up')
  ip('link', 'add', UPLINK, 'type', 'veth', 'peer', 'name', 'relay', 'netns', SWITCH)
  atSwitch('link', 'set', 'relay', 'master', 'bridge', 'up')
  ip('addr', 'add', `${RELAY}/24`, 'dev', UPLINK)
  ip('link', 'set', UPLINK, 'up')
  for (const place of places) {
    ip('netns', 'add', place.name)
    atSwitch('link', 'add', place.link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', place.name)
    atSwitch('link', 'set', place.link, 'master', 'bridge', 'up')
    inside(place, 'addr', 'add', `${place.address}/24`, 'dev', 'eth0')
    inside(place, 'link', 'set', 'eth0', 'up')
    inside(place, 'link', 'set', 'lo', 'up')
    // Without the right to a camera Chromium offers the address of the default route alone.
    inside(place, 'route', 'add', 'default', 'via', RELAY)
  }
  demo = await startDemo([], RELAY)
  for (const place of places) browsers.push(await startBrowser(WEBRTC, place))
})

after(async () => {
  for (const browser of browsers) await browser.stop()
  await demo?.stop()
  takeAway()
})

test('two hosts stream straight across, and by the relay while the way between them is cut', async () => {
  const [desktop, mobile] = [
    await Page.open(browsers[0], demo.http, { device: 'desktop', user: 'hosts' }),
    await Page.open(browsers[1], demo.http, { device: 'mobile', user: 'hosts' }),
  ]
  const two = { pages: [desktop, mobile] }
  await onDirect(two)
  await both(two, (each) => each.more(60))
  const pair = await desktop.run(`return window.connections.at(-1).getStats().then((stats) =>
    [...stats.values()].filter(({ type, address }) => type.endsWith('-candidate') && address).map(({ type, address }) => type + ' ' + address))`)
  assert.ok(pair.some((candidate) => candidate === `remote-candidate ${places[1].address}`), pair.join())

  // From here on no packet gets from one to the other; the relay is reached as before.
  places.forEach((place, index) => inside(place, 'route', 'add', 'blackhole', `${places[1 - index].address}/32`))
  await both(two, (each) => each.onPath('relay'))
  await both(two, (each) => each.more(30))
  await both(two, (each) => each.check())

  places.forEach((place, index) => inside(place, 'route', 'del', 'blackhole', `${places[1 - index].address}/32`))
  await both(two, (each) => each.onPath('direct'))
  await both(two, (each) => each.more(30))
  await both(two, (each) => each.check())
  await eventually('both to leave', 5_000, () => both(two, (each) => each.close()))
})
