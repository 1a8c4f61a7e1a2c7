// Whether a page is for everybody: axe-core, no scrolling sideways, faces that are seen, in every theme and width.

import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'

export const SCREENSHOTS = new URL('../../target/screenshots/', import.meta.url)
const AXE = await readFile(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8')
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']
// 320 x 256 is 1280 x 1024 at 400 % (WCAG 2.2, 1.4.10).
const SIZES = [[320, 256], [320, 640], [390, 844], [768, 1024], [1280, 720], [1920, 1080]]
const THEMES = ['light', 'dark']

/** Gives a tab a size, a theme and, where asked for, a person's own colours. */
export async function resize(browser, tab, [width, height], theme = 'light', forced = 'none') {
  await browser.devtools(tab, 'Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false })
  const features = [
    { name: 'prefers-color-scheme', value: theme },
    { name: 'forced-colors', value: forced },
  ]
  await browser.devtools(tab, 'Emulation.setEmulatedMedia', { features })
}

/** axe finds nothing, and cannot judge nothing but the drawn z's; nothing has to be scrolled sideways; faces are seen. */
export async function fit(browser, tab, state, sizes = SIZES) {
  for (const theme of THEMES) {
    for (const size of sizes) {
      await resize(browser, tab, size, theme)
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
  await resize(browser, tab, [1000, 700])
}
