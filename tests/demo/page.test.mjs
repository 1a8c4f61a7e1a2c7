// The demo's page is for everybody: WCAG 2.2 AA in all states, themes and widths, by click, key and voice.

import assert from 'node:assert/strict'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { eventually, startDemo } from '../interop/demo.mjs'
import { startBrowser } from '../interop/webdriver.mjs'

const SCREENSHOTS = new URL('../../target/screenshots/', import.meta.url)
const AXE = await readFile(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8')
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']
// 320 x 256 is 1280 x 1024 at 400 % (WCAG 2.2, 1.4.10).
const SIZES = [[320, 256], [320, 640], [390, 844], [768, 1024], [1280, 720], [1920, 1080]]
const THEMES = ['light', 'dark']
const ADMIN_TOKEN = 'operator-of-the-demo-tests'

let demo
let browser
before(async () => {
  await mkdir(SCREENSHOTS, { recursive: true })
  demo = await startDemo(['--admin-token', ADMIN_TOKEN])
  browser = await startBrowser()
})
after(async () => {
  await browser?.stop()
  await demo?.stop()
})

const open = (device, user, at = demo) => browser.open(`${at.http}/?device=${device}&user=${user}`)

const expect = (tab, what, check) =>
  eventually(what, 20_000, async () => {
    const dataset = await browser.dataset(tab)
    check(dataset)
    return dataset
  })

const expectState = (tab, state, peer) =>
  expect(tab, `state ${state}, peer ${peer}`, (dataset) => {
    assert.equal(dataset.state, state)
    if (peer) assert.equal(dataset.peer, peer)
  })

/** A desktop and a phone of one room who see each other. */
async function pair(user) {
  const desktop = await open('desktop', user)
  const mobile = await open('mobile', user)
  await expectState(desktop, 'online', 'connected')
  await expectState(mobile, 'online', 'connected')
  return { desktop, mobile }
}

const words = (tab, id) => browser.run(tab, `return document.getElementById('${id}').textContent`)
const visible = (tab, id) =>
  browser.run(tab, `const e = document.getElementById('${id}'); return e.checkVisibility ? e.checkVisibility() : e.offsetParent !== null`)
const ownPose = async (tab) => JSON.parse((await browser.dataset(tab)).ownPose)

async function resize(tab, [width, height], theme = 'light', forced = 'none') {
  await browser.devtools(tab, 'Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false })
  const features = [
    { name: 'prefers-color-scheme', value: theme },
    { name: 'forced-colors', value: forced },
  ]
  await browser.devtools(tab, 'Emulation.setEmulatedMedia', { features })
}

/** axe finds nothing, and cannot judge nothing but the drawn z's; nothing has to be scrolled sideways; faces are seen. */
async function expectFitForAll(tab, state) {
  for (const theme of THEMES) {
    for (const size of SIZES) {
      await resize(tab, size, theme)
      const at = `${state}, ${theme}, ${size.join(' x ')}`
      const result = await browser.runAsync(
        tab,
        `${AXE}
         const done = arguments[arguments.length - 1]
         const brief = (rules) => rules.map(({ id, nodes }) => ({ id, nodes: nodes.map((node) => node.target + ' ' + (node.any[0]?.message ?? '')) }))
         axe.run(document, { runOnly: ${JSON.stringify(RULES)} }).then(({ violations, incomplete }) => {
           const { height } = document.getElementById('peer-face').getBoundingClientRect()
           const wide = [...document.querySelectorAll('button, a, p, dd, h2')].filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.id || e.textContent)
           done({ violations: brief(violations), incomplete: brief(incomplete), width: document.documentElement.scrollWidth, room: innerWidth, height, wide })
         }, (error) => done({ error: String(error) }))`,
      )
      assert.equal(result.error, undefined)
      assert.deepEqual(result.violations, [], at)
      // axe does not judge colours where something lies behind or before a text: the drawn z's, and what a dialog or a
      // window of 256 pixels has scrolled away. The same colours are judged elsewhere.
      const unjudged = result.incomplete
        .filter(({ id }) => id !== 'color-contrast' || size[1] > 256)
        .map(({ id, nodes }) => ({ id, nodes: nodes.filter((node) => !/^#sleep|kbd|#help/.test(node)) }))
        .filter(({ nodes }) => nodes.length > 0)
      assert.deepEqual(unjudged, [], at)
      assert.ok(result.width <= result.room, `${at}: ${result.width} wide`)
      assert.deepEqual(result.wide, [], at)
      assert.ok(result.height > 100, `${at}: the face is ${result.height} high`)
      if (theme === 'light' || size[0] === 390) {
        await writeFile(new URL(`page-${at.replaceAll(/[ ,]+/g, '-')}.png`, SCREENSHOTS), await browser.screenshot(tab))
      }
    }
  }
  await resize(tab, [1000, 700])
}

test('alone, and with help open', async () => {
  const desktop = await open('desktop', 'page-alone')
  await expectState(desktop, 'online', 'absent')
  assert.equal(await words(desktop, 'status'), 'Waiting for your phone')
  // This demo listens for this computer alone: there is nothing that a phone could scan.
  assert.match(await words(desktop, 'empty-text'), /another tab/)
  assert.match(await words(desktop, 'pair-text'), /No phone can reach/)
  assert.equal(await visible(desktop, 'qr'), false)
  await expectFitForAll(desktop, 'alone')
  await browser.run(desktop, "document.getElementById('help-open').click()")
  await expectFitForAll(desktop, 'help')
  await browser.run(desktop, "document.querySelector('#help button').click()")
  assert.equal(await browser.run(desktop, "return document.getElementById('help').open"), false)
})

test('together, on both devices', async () => {
  const { desktop, mobile } = await pair('page-together')
  assert.equal(await words(desktop, 'status'), 'Together with your phone')
  assert.equal(await words(mobile, 'status'), 'Together with your desktop')
  await expectFitForAll(desktop, 'desktop')
  await expectFitForAll(mobile, 'mobile')
  await resize(desktop, [1280, 720], 'dark', 'active')
  await writeFile(new URL('page-forced-colors.png', SCREENSHOTS), await browser.screenshot(desktop))
})

test('taken over: the words are true, and Escape leaves a page that can be used', async () => {
  const first = await open('desktop', 'page-taken')
  await expectState(first, 'online')
  const second = await open('desktop', 'page-taken')
  await expectState(second, 'online')
  await expectState(first, 'overwritten')
  assert.equal(await words(first, 'status'), 'Taken over by another tab')
  assert.doesNotMatch(await words(first, 'empty-text'), /reach|trying/)
  await expectFitForAll(first, 'taken-over')
  await browser.run(first, "document.getElementById('notice-close').click()")
  assert.equal(await words(first, 'retry'), 'Take over again')
  assert.equal(await visible(first, 'retry'), true)
  await expectFitForAll(first, 'taken-over-closed')
  await browser.run(first, "document.getElementById('retry').click()")
  await expectState(first, 'online')
  await expectState(second, 'overwritten')
})

test('refused by an operator, and offline', async () => {
  const tab = await open('desktop', 'page-refused')
  await expectState(tab, 'online')
  const call = { method: 'DELETE', headers: { authorization: `Bearer ${ADMIN_TOKEN}` } }
  const answer = await fetch(`${demo.admin}/v1/rooms/page-refused`, call)
  assert.ok(answer.ok, `${answer.status}`)
  await expectState(tab, 'refused')
  assert.equal(await words(tab, 'status'), 'Not let in')
  assert.match(await words(tab, 'notice-text'), /operator/)
  await expectFitForAll(tab, 'refused')

  const other = await startDemo()
  const lost = await open('mobile', 'page-offline', other)
  await expectState(lost, 'online')
  await other.stop()
  await expectState(lost, 'offline')
  assert.equal(await words(lost, 'status'), 'Offline')
  assert.match(await words(lost, 'empty-text'), /does not answer/)
  assert.match(await words(lost, 'peer-tag'), /no news/)
  await expectFitForAll(lost, 'offline')
})

test('live regions are quiet while faces stream, and while a page waits for its next try', async () => {
  const { desktop } = await pair('page-quiet')
  const count = (tab) =>
    browser.runAsync(
      tab,
      `const done = arguments[arguments.length - 1]
       let changes = []
       const observer = new MutationObserver((records) => changes.push(...records.map(({ target }) => target.textContent)))
       for (const region of document.querySelectorAll('[role=status], [role=alert], [aria-live], output')) {
         observer.observe(region, { subtree: true, childList: true, characterData: true, attributes: true })
       }
       setTimeout(() => done(changes), 4_000)`,
    )
  assert.deepEqual(await count(desktop), [])
  const other = await startDemo()
  const lost = await open('desktop', 'page-quiet-offline', other)
  await expectState(lost, 'online')
  await other.stop()
  await expectState(lost, 'offline')
  // Tries go on meanwhile, and seconds are counted: none of it is news.
  assert.deepEqual(await count(lost), [])
})

test('a click alone makes each face and turns the head each way', async () => {
  const tab = await open('desktop', 'page-click')
  await expectState(tab, 'online')
  const click = (selector) => browser.run(tab, `document.querySelector('${selector}').click()`)
  const faces = { smile: ['smile', 0.5], wink: ['smile', 0.4], surprise: ['mouth', 0.4], frown: ['smile', -0.4] }
  for (const [name, [field, least]] of Object.entries(faces)) {
    await click(`[data-expression=${name}]`)
    await eventually(`${name} by a click`, 5_000, async () => {
      const value = (await ownPose(tab))[field]
      assert.ok(least > 0 ? value > least : value < least, `${field} ${value}`)
    })
  }
  const turns = { ArrowLeft: ['yaw', -1], ArrowRight: ['yaw', 1], ArrowUp: ['pitch', 1], ArrowDown: ['pitch', -1], q: ['roll', -1], e: ['roll', 1] }
  for (const [arrow, [field, sign]] of Object.entries(turns)) {
    await eventually(`${arrow} by clicks`, 5_000, async () => {
      await click(`[data-head=${arrow}]`)
      const value = (await ownPose(tab))[field]
      assert.ok(value * sign > 0.3, `${field} ${value}`)
    })
  }
})

test('letters and digits are shortcuts until they are switched off', async () => {
  const { desktop, mobile } = await pair('page-letters')
  const key = (type, name) =>
    browser.run(desktop, `document.body.dispatchEvent(new KeyboardEvent('${type}', { key: '${name}', bubbles: true }))`)
  await key('keydown', 'o')
  await eventually('a face by a letter', 5_000, async () => assert.ok((await ownPose(desktop)).mouth > 0.4))
  await key('keyup', 'o')
  await key('keydown', '1')
  await expect(mobile, 'a heart by a digit', ({ message }) => assert.equal(message, 'heart'))
  await eventually('a calm face', 5_000, async () => assert.ok((await ownPose(desktop)).mouth < 0.2))

  const shortcuts = () =>
    browser.run(desktop, "return [...document.querySelectorAll('[aria-keyshortcuts]')].map((e) => e.getAttribute('aria-keyshortcuts')).filter((key) => key.length === 1).length")
  assert.ok((await shortcuts()) > 8)
  await browser.run(desktop, "document.getElementById('letters').click()")
  assert.equal(await shortcuts(), 0)
  await key('keydown', 'o')
  await key('keydown', '2')
  await key('keydown', 'ArrowLeft')
  // Once the arrow has turned the head, what the letter before it did would be seen.
  await eventually('a head turned by an arrow', 5_000, async () => assert.ok((await ownPose(desktop)).yaw < -0.5))
  assert.ok((await ownPose(desktop)).mouth < 0.2)
  await key('keyup', 'ArrowLeft')
  await browser.run(desktop, "document.querySelector('[data-reaction=star]').click()")
  await expect(mobile, 'a star by a click, and no laugh before it', ({ message }) => assert.equal(message, 'star'))
})

test('pause stops all motion, and goes on', async () => {
  const { desktop } = await pair('page-pause')
  const moves = () =>
    browser.runAsync(
      desktop,
      `const done = arguments[arguments.length - 1]
       const look = () => ['peer-face', 'own-face', 'delay', 'fps-in'].map((id) => document.getElementById(id).innerHTML)
       const before = look()
       setTimeout(() => done(look().filter((html, i) => html !== before[i]).length), 1_500)`,
    )
  assert.ok((await moves()) >= 2)
  await browser.run(desktop, "document.getElementById('pause').click()")
  assert.equal((await browser.dataset(desktop)).paused, 'true')
  // The person's own face comes to rest within a moment.
  await eventually('stillness', 10_000, async () => assert.equal(await moves(), 0))
  assert.match(await words(desktop, 'peer-tag'), /paused/)
  await browser.run(desktop, "document.getElementById('pause').click()")
  assert.ok((await moves()) >= 2)
})
