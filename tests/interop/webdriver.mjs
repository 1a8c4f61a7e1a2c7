// The few WebDriver calls (https://www.w3.org/TR/webdriver2/) that the browser tests need.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/**
 * Starts chromedriver and one headless Chromium with a profile of its own, and with these arguments beside the usual ones.
 * `place` is a network namespace and its address: both run there.
 */
export async function startBrowser(more = [], place) {
  const profile = await mkdtemp(join(tmpdir(), 'duorelay-chromium-'))
  const program = process.env.CHROMEDRIVER ?? 'chromedriver'
  const command = place
    ? ['ip', 'netns', 'exec', place.name, program, '--port=9515', '--allowed-ips', '--allowed-origins=*']
    : [program, '--port=0']
  const driver = spawn(command[0], command.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = once(driver, 'exit')
  const stop = async () => {
    driver.kill('SIGKILL')
    await ended
    await rm(profile, { recursive: true, force: true, maxRetries: 10 })
  }
  try {
    const port = await announcedPort(driver)
    const call = async (method, path, body) => {
      const response = await fetch(`http://${place?.address ?? '127.0.0.1'}:${port}${path}`, {
        method,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: AbortSignal.timeout(60_000),
      })
      const { value } = await response.json()
      if (!response.ok) throw new Error(`${method} ${path}: ${value?.error}: ${value?.message}`)
      return value
    }
    const args = [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--disable-dev-shm-usage',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      // All windows of these tests are in the background of each other.
      '--disable-renderer-backgrounding',
      '--disable-background-timer-throttling',
      '--disable-backgrounding-occluded-windows',
      '--window-size=1000,700',
      `--user-data-dir=${profile}`,
      ...more,
    ]
    const options = { args }
    if (process.env.CHROMIUM) options.binary = process.env.CHROMIUM
    const capabilities = { alwaysMatch: { browserName: 'chrome', 'goog:chromeOptions': options } }
    const { sessionId } = await call('POST', '/session', { capabilities })
    const session = (method, path, body) => call(method, `/session/${sessionId}${path}`, body)
    return new Browser(session, stop)
  } catch (error) {
    await stop()
    throw error
  }
}

async function announcedPort(driver) {
  let output = ''
  driver.stdout.setEncoding('utf8')
  const deadline = AbortSignal.timeout(20_000)
  for (;;) {
    const [text] = await once(driver.stdout, 'data', { signal: deadline })
    output += text
    const port = /started successfully on port (\d+)/.exec(output)?.[1]
    if (port) return Number(port)
  }
}

class Browser {
  #session
  #stop

  constructor(session, stop) {
    this.#session = session
    this.#stop = stop
  }

  /** Opens `url` in a new window (a tab in the background draws nothing); its handle. */
  async open(url) {
    const { handle } = await this.#session('POST', '/window/new', { type: 'window' })
    await this.#session('POST', '/window', { handle })
    await this.#session('POST', '/url', { url })
    return handle
  }

  /** Runs a function's body in a tab and returns its result. */
  async run(handle, script) {
    await this.#session('POST', '/window', { handle })
    return await this.#session('POST', '/execute/sync', { script, args: [] })
  }

  /** Runs the body of a function whose last argument is the callback for its result. */
  async runAsync(handle, script, ...args) {
    await this.#session('POST', '/window', { handle })
    return await this.#session('POST', '/execute/async', { script, args })
  }

  /** One command of the Chrome DevTools protocol (https://chromedevtools.github.io/devtools-protocol/). */
  async devtools(handle, cmd, params = {}) {
    await this.#session('POST', '/window', { handle })
    return await this.#session('POST', '/goog/cdp/execute', { cmd, params })
  }

  /** Loads `url` in a tab that is open. */
  async go(handle, url) {
    await this.#session('POST', '/window', { handle })
    await this.#session('POST', '/url', { url })
  }

  /** Closes a tab. */
  async close(handle) {
    await this.#session('POST', '/window', { handle })
    await this.#session('DELETE', '/window')
  }

  /** The data attributes of a tab's root element. */
  dataset(handle) {
    return this.run(handle, 'return { ...document.documentElement.dataset }')
  }

  /** A PNG of what a tab shows. */
  async screenshot(handle) {
    await this.#session('POST', '/window', { handle })
    return Buffer.from(await this.#session('GET', '/screenshot'), 'base64')
  }

  /** Ends the browser and its driver. */
  async stop() {
    await this.#session('DELETE', '').catch(() => {})
    await this.#stop()
  }
}
