// The demo's page is for everybody: WCAG 2.2 AA in all states, themes and widths, by click, key and voice.

import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { eventually, startDemo } from '../interop/demo.mjs'
import { startBrowser } from '../interop/webdriver.mjs'
import { fit, resize, SCREENSHOTS } from './fit.mjs'

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
/** A page's words follow its state a moment later: what it says in the end counts. */
const says = (tab, id, expected) =>
  eventually(`${id} to say ${expected}`, 10_000, async () => {
    const text = await words(tab, id)
    expected instanceof RegExp ? assert.match(text, expected) : assert.equal(text, expected)
  })
const shows = (tab, id, expected) =>
  eventually(`${id} to be ${expected ? 'seen' : 'hidden'}`, 10_000, async () => {
    const script = `const e = document.getElementById('${id}'); return e.checkVisibility ? e.checkVisibility() : e.offsetParent !== null`
    assert.equal(await browser.run(tab, script), expected)
  })
const ownPose = async (tab) => JSON.parse((await browser.dataset(tab)).ownPose)

test('alone, and with help open', async () => {
  const desktop = await open('desktop', 'page-alone')
  await expectState(desktop, 'online', 'absent')
  await says(desktop, 'status', 'Waiting for your phone')
  // This demo listens for this computer alone: there is nothing that a phone could scan.
  await says(desktop, 'empty-text', /another tab/)
  await says(desktop, 'pair-text', /No phone can reach/)
  await shows(desktop, 'qr', false)
  await fit(browser, desktop, 'alone')
  await browser.run(desktop, "document.getElementById('help-open').click()")
  await fit(browser, desktop, 'help')
  await browser.run(desktop, "document.querySelector('#help button').click()")
  await eventually('help to close', 10_000, async () =>
    assert.equal(await browser.run(desktop, "return document.getElementById('help').open"), false))
})

test('together, on both devices', async () => {
  const { desktop, mobile } = await pair('page-together')
  await says(desktop, 'status', 'Together with your phone')
  await says(mobile, 'status', 'Together with your desktop')
  await fit(browser, desktop, 'desktop')
  await fit(browser, mobile, 'mobile')
  await resize(browser, desktop, [1280, 720], 'dark', 'active')
  await writeFile(new URL('page-forced-colors.png', SCREENSHOTS), await browser.screenshot(desktop))
})

test('taken over: the words are true, and Escape leaves a page that can be used', async () => {
  const first = await open('desktop', 'page-taken')
  await expectState(first, 'online')
  const second = await open('desktop', 'page-taken')
  await expectState(second, 'online')
  await expectState(first, 'overwritten')
  await says(first, 'status', 'Taken over by another tab')
  assert.doesNotMatch(await words(first, 'empty-text'), /reach|trying/)
  await fit(browser, first, 'taken-over')
  await browser.run(first, "document.getElementById('notice-close').click()")
  await says(first, 'retry', 'Take over again')
  await shows(first, 'retry', true)
  await fit(browser, first, 'taken-over-closed')
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
  await says(tab, 'status', 'Ended by an operator')
  await says(tab, 'notice-text', /operator/)
  await fit(browser, tab, 'refused')

  const other = await startDemo()
  const lost = await open('mobile', 'page-offline', other)
  await expectState(lost, 'online')
  await other.stop()
  await expectState(lost, 'offline')
  await says(lost, 'status', 'Offline')
  await says(lost, 'empty-text', /does not answer/)
  await says(lost, 'peer-tag', /no news/)
  await fit(browser, lost, 'offline')
})

test('live regions are quiet while faces stream, and while a page waits for its next try', async () => {
  const { desktop } = await pair('page-quiet')
  await says(desktop, 'status', 'Together with your phone')
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
  await says(lost, 'status', 'Offline') // that was news
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
  await eventually('no shortcut of a letter', 10_000, async () => assert.equal(await shortcuts(), 0))
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
  const motion = () => eventually('motion', 20_000, async () => assert.ok((await moves()) >= 2))
  await motion()
  await browser.run(desktop, "document.getElementById('pause').click()")
  await expect(desktop, 'a pause', ({ paused }) => assert.equal(paused, 'true'))
  // The person's own face comes to rest within a moment.
  await eventually('stillness', 10_000, async () => assert.equal(await moves(), 0))
  await says(desktop, 'peer-tag', /paused/)
  await browser.run(desktop, "document.getElementById('pause').click()")
  await motion()
})
