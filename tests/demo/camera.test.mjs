// A real face before a camera: Chromium plays stills of a person as its camera, and the other page's character moves.
//
// What the stills show was read off them by eye: where the head is turned and tilted, what the mouth and the eyes do.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { after, before, test } from 'node:test'
import { eventually, startDemo } from '../interop/demo.mjs'
import { startBrowser } from '../interop/webdriver.mjs'
import { fit, SCREENSHOTS } from './fit.mjs'
import { allStills, baseline, fakeCamera, writeFilm } from './film.mjs'

const PACKAGES = fileURLToPath(new URL('node_modules', import.meta.url))

let demo
let directory
/** still -> JPEG picture of 640 x 512 */
let pictures
before(async () => {
  await mkdir(SCREENSHOTS, { recursive: true })
  directory = await mkdtemp(join(tmpdir(), 'duorelay-camera-'))
  demo = await startDemo(['--faces', PACKAGES])
  pictures = await baseline(demo, await allStills())
})
after(async () => {
  await demo?.stop()
  await rm(directory, { recursive: true, force: true })
})

const film = (name, stills, each) =>
  writeFilm(join(directory, `${name}.mjpeg`), stills.map((still) => pictures.get(still)), each)

/** Both pages of a room in one browser whose camera plays this film; the phone uses its camera. */
async function withCamera(user, film, run, args = fakeCamera(film), at = demo.http) {
  const browser = await startBrowser(args)
  try {
    const desktop = await browser.open(`${demo.http}/?device=desktop&user=${user}`)
    const mobile = await browser.open(`${at}/?device=mobile&user=${user}`)
    await eventually('both pages together', 20_000, async () => {
      for (const tab of [desktop, mobile]) assert.equal((await browser.dataset(tab)).peer, 'connected')
    })
    await browser.run(mobile, "document.getElementById('camera').click()")
    await run({ browser, desktop, mobile })
  } finally {
    await browser.stop()
  }
}

const text = (browser, tab, id) => browser.run(tab, `return document.getElementById('${id}').textContent`)

/** A page's words follow its state a moment later: what it says in the end counts. */
const says = (browser, tab, id, expected) =>
  eventually(`${id} to say ${expected}`, 10_000, async () => {
    const words = await text(browser, tab, id)
    expected instanceof RegExp ? assert.match(words, expected) : assert.equal(words, expected)
  })

const cameraIs = (browser, tab, state, more = () => {}) =>
  eventually(`the camera to be ${state}`, 30_000, async () => {
    await more()
    assert.equal((await browser.dataset(tab)).camera, state)
  })

/** A machine that is too slow for people is not for this test: whoever wants the camera all the same may have it. */
async function insist(browser, tab) {
  if ((await browser.dataset(tab)).camera === 'slow') await browser.run(tab, "document.getElementById('camera').click()")
}

async function expectFaces(browser, tab, least) {
  return await eventually(`${least} faces`, 30_000, async () => {
    await insist(browser, tab)
    const dataset = await browser.dataset(tab)
    assert.ok(Number(dataset.faces) >= least, `${dataset.faces} faces; ${dataset.camera}; ${await text(browser, tab, 'camera-text')}`)
    return dataset
  })
}

/** The pose that arrives at the other page once it has settled: two looks half a second apart are alike. */
async function settled(browser, tab) {
  let last = null
  return await eventually('a pose that has settled', 20_000, async () => {
    const pose = JSON.parse((await browser.dataset(tab)).pose)
    const before = last
    last = pose
    await new Promise((resolve) => setTimeout(resolve, 500))
    assert.ok(before, 'the first look')
    for (const field of ['yaw', 'pitch', 'roll', 'mouth', 'smile']) {
      assert.ok(Math.abs(before[field] - pose[field]) < 0.06, `${field} goes from ${before[field]} to ${pose[field]}`)
    }
    return pose
  })
}

/** What the other page's character does for one still. */
async function poseOf(still) {
  let pose
  await withCamera(`still-${still}`, await film(still, [still]), async ({ browser, desktop, mobile }) => {
    await expectFaces(browser, mobile, 5)
    pose = await settled(browser, desktop)
    await writeFile(new URL(`camera-${still}-sender.png`, SCREENSHOTS), await browser.screenshot(mobile))
    await writeFile(new URL(`camera-${still}-other.png`, SCREENSHOTS), await browser.screenshot(desktop))
  })
  return pose
}

test('20 faces within 30 seconds, from a film of all stills; the picture leaves the page for the tracker alone', async (t) => {
  await withCamera('camera-all', await film('all', [...pictures.keys()], 10), async ({ browser, desktop, mobile }) => {
    const { faces } = await expectFaces(browser, mobile, 20)
    // Some of the stills have no face that the tracker finds.
    await eventually('a face, and the sentence beside it', 30_000, async () => {
      await insist(browser, mobile)
      assert.equal((await browser.dataset(mobile)).camera, 'tracking')
      assert.match(await text(browser, mobile, 'camera-text'), /stays on this device/)
    })
    // The character of the other page follows: over the film its mouth, smile, turn and tilt all move.
    const range = {}
    await eventually('a character that moves', 30_000, async () => {
      await insist(browser, mobile)
      const pose = JSON.parse((await browser.dataset(desktop)).pose)
      for (const [field, value] of Object.entries(pose)) {
        range[field] ??= [value, value]
        range[field] = [Math.min(range[field][0], value), Math.max(range[field][1], value)]
      }
      for (const [field, least] of Object.entries({ yaw: 0.6, roll: 0.3, mouth: 0.4, smile: 0.5 })) {
        assert.ok(range[field][1] - range[field][0] > least, `${field}: ${range[field]}`)
      }
    })
    const { faceRate } = await browser.dataset(mobile)
    t.diagnostic(`faces a second: ${faceRate}, after ${faces} faces`)
    // Nothing but this relay was asked for anything.
    const hosts = await browser.run(mobile, "return [...new Set(performance.getEntriesByType('resource').map(({ name }) => new URL(name).host))]")
    assert.deepEqual(hosts, [new URL(demo.http).host])
    await fit(browser, mobile, 'camera')
    await cameraIs(browser, mobile, 'tracking', () => insist(browser, mobile))
    await browser.run(mobile, "document.getElementById('camera').click()")
    await cameraIs(browser, mobile, 'off')
    await eventually('the picture to end', 10_000, async () =>
      assert.equal(await browser.run(mobile, "return document.getElementById('camera-video').srcObject"), null))
  })
})

test('the other character turns, tilts, smiles and opens its mouth as the head before the camera does', async (t) => {
  const stills = ['04000', '01829', '03909', '04035', '04117']
  const poses = {}
  for (const still of stills) {
    poses[still] = await poseOf(still)
    t.diagnostic(`${still}: ${JSON.stringify(poses[still])}`)
  }
  const { '04000': left, '01829': straight, '03909': right, '04035': tilted, '04117': laughing } = poses
  // The head of 04000 is turned to the left of the picture, that of 03909 to its right.
  assert.ok(left.yaw < -0.3, `yaw ${left.yaw}`)
  assert.ok(Math.abs(straight.yaw) < 0.3, `yaw ${straight.yaw}`)
  assert.ok(right.yaw > 0.4, `yaw ${right.yaw}`)
  // The head of 04035 leans to the left of the picture, anticlockwise; that of 03909 is upright.
  assert.ok(tilted.roll < -0.4, `roll ${tilted.roll}`)
  assert.ok(Math.abs(right.roll) < 0.15, `roll ${right.roll}`)
  assert.ok(tilted.roll < left.roll && left.roll < right.roll, `roll ${tilted.roll}, ${left.roll}, ${right.roll}`)
  // 01829 has its mouth shut and does not smile; 04117 laughs with an open mouth; 04000 looks down, with shut eyes.
  assert.ok(straight.mouth < 0.25 && laughing.mouth > 0.55, `mouth ${straight.mouth}, ${laughing.mouth}`)
  assert.ok(straight.smile < 0.2 && laughing.smile > 0.45, `smile ${straight.smile}, ${laughing.smile}`)
  assert.ok(left.pitch < straight.pitch, `pitch ${left.pitch}, ${straight.pitch}`)
  assert.ok(left.eyeL < -0.4 && straight.eyeL > -0.4, `eyes ${left.eyeL}, ${straight.eyeL}`)
})

test('without a face in sight the page says so, and the hands have the character', async () => {
  // Chromium's own fake camera plays a green picture with a clock.
  await withCamera('camera-nobody', null, async ({ browser, desktop, mobile }) => {
    await cameraIs(browser, mobile, 'searching', () => insist(browser, mobile))
    await says(browser, mobile, 'camera-text', /No face in sight/)
    await browser.run(mobile, "document.querySelector('[data-expression=surprise]').click()")
    await eventually('a face by hand', 10_000, async () => assert.ok(JSON.parse((await browser.dataset(desktop)).pose).mouth > 0.4))
  })
})

test('a camera that is refused, and none at all, each have their sentence', async () => {
  await withCamera('camera-denied', null, async ({ browser, mobile }) => {
    await cameraIs(browser, mobile, 'denied')
    await says(browser, mobile, 'camera-text', /does not allow the camera/)
    await says(browser, mobile, 'camera', 'Try the camera again')
  }, ['--use-fake-device-for-media-stream', '--deny-permission-prompts'])
  await withCamera('camera-missing', null, async ({ browser, mobile }) => {
    await cameraIs(browser, mobile, 'missing')
    await says(browser, mobile, 'camera-text', /has no camera/)
  }, ['--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream=device-count=0'])
})

/** This machine under a name that no browser takes for itself, as a phone sees it. */
const PHONE = 'demo.example'
const asPhone = (url, scheme = 'http') => url.replace(/^http:\/\/[^:]+/, `${scheme}://${PHONE}`)
const NAMES = `--host-resolver-rules=MAP ${PHONE} 127.0.0.1`

test('a page without https says why it has no camera', async () => {
  await withCamera('camera-insecure', null, async ({ browser, mobile }) => {
    await cameraIs(browser, mobile, 'insecure')
    await says(browser, mobile, 'camera-text', /only to https pages and to localhost.*--tls/)
  }, [...fakeCamera(), NAMES], asPhone(demo.http))
})

test('over the https of --tls a phone has its camera, and its room', async () => {
  const plain = demo
  demo = await startDemo(['--faces', PACKAGES, '--tls'])
  try {
    const args = [...fakeCamera(await film('https', ['03909'])), NAMES, '--ignore-certificate-errors']
    await withCamera('camera-https', null, async ({ browser, desktop, mobile }) => {
      await expectFaces(browser, mobile, 5)
      const pose = await settled(browser, desktop)
      assert.ok(pose.yaw > 0.4, `yaw ${pose.yaw}`)
    }, args, asPhone(demo.http, 'https'))
  } finally {
    await demo.stop()
    demo = plain
  }
})

/** What cdn.jsdelivr.net would serve: the packages' files as they are, except what `change` makes of one. */
async function startCdn(change = (_, bytes) => bytes) {
  const [key, cert] = ['key', 'cert'].map((name) => join(directory, `cdn-${name}.pem`))
  const subject = ['-subj', '/CN=cdn.jsdelivr.net', '-days', '2']
  const made = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key, '-out', cert]
  await promisify(execFile)('openssl', [...made, ...subject])
  const asked = []
  const server = createServer({ key: await readFile(key), cert: await readFile(cert) }, async ({ url }, response) => {
    asked.push(url)
    const path = /^\/npm\/(@[a-z]+\/[a-z-]+)@[0-9.]+\/([a-z0-9_./-]+)$/.exec(url)
    const bytes = path && (await readFile(join(PACKAGES, path[1], path[2])).catch(() => null))
    response.writeHead(bytes ? 200 : 404, { 'access-control-allow-origin': '*' })
    response.end(bytes ? change(url, bytes) : '')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const rule = `--host-resolver-rules=MAP cdn.jsdelivr.net:443 127.0.0.1:${server.address().port}`
  return { asked, args: [rule, '--ignore-certificate-errors'], stop: () => server.closeAllConnections() ?? server.close() }
}

test('the tracker comes from the CDN at the click, each file by its hash, and one that differs is not run', async () => {
  const local = demo
  demo = await startDemo()
  const cdn = await startCdn()
  const tampered = await startCdn((url, bytes) => (url.endsWith('.wasm') ? Buffer.concat([bytes, Buffer.from([0])]) : bytes))
  try {
    const camera = fakeCamera(await film('cdn', ['03909']))
    assert.deepEqual(cdn.asked, [])
    await withCamera('camera-cdn', null, async ({ browser, mobile }) => {
      await expectFaces(browser, mobile, 5)
    }, [...camera, ...cdn.args])
    assert.equal(new Set(cdn.asked).size, 8, cdn.asked.join(' '))
    await withCamera('camera-tampered', null, async ({ browser, mobile }) => {
      await cameraIs(browser, mobile, 'unloadable')
      await says(browser, mobile, 'camera-text', /could not be loaded from cdn\.jsdelivr\.net/)
    }, [...camera, ...tampered.args])
    assert.ok(tampered.asked.some((url) => url.endsWith('.wasm')))
  } finally {
    cdn.stop()
    tampered.stop()
    await demo.stop()
    demo = local
  }
})
