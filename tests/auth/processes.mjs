// Programs that a test starts and ends: the relay and Firebase's emulator.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const BINARY = process.env.DUORELAY_BIN
if (!BINARY) throw new Error('DUORELAY_BIN must name the duorelay program (tests/auth/run sets it)')

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

/** Starts a program and waits until `isReady` (asked with its output) is true, at most for `ms`. */
async function start(command, args, options, ms, isReady) {
  const child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = once(child, 'exit')
  let log = ''
  for (const pipe of [child.stdout, child.stderr]) pipe.setEncoding('utf8').on('data', (text) => (log += text))
  const stop = async (signal) => {
    child.kill(signal)
    const killer = setTimeout(() => child.kill('SIGKILL'), 10_000)
    await ended
    clearTimeout(killer)
  }
  const deadline = Date.now() + ms
  while (!(await isReady(log))) {
    const gone = child.exitCode !== null || child.signalCode !== null
    if (gone || Date.now() > deadline) {
      if (!gone) await stop('SIGKILL')
      throw new Error(`${command} ${gone ? 'ended' : `is not ready after ${ms} ms`}:\n${log}`)
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return { stop, log: () => log }
}

/** A relay with these variables, and nothing else in its environment: `{http, ws, stop()}`. */
export async function startRelay(env) {
  const [port, adminPort] = [await freePort(), await freePort()]
  const http = `http://127.0.0.1:${port}`
  const program = await start(
    BINARY,
    ['serve', '--listen', `127.0.0.1:${port}`, '--admin-listen', `127.0.0.1:${adminPort}`],
    { env: { DUORELAY_HANDSHAKES_PER_SECOND_PER_IP: '0', ...env } },
    10_000,
    async () => {
      const response = await fetch(`${http}/healthz/ready`).catch(() => null)
      return response?.status === 200
    },
  )
  return { http, ws: `ws://127.0.0.1:${port}/ws`, ...program, stop: () => program.stop('SIGKILL') }
}

/** Firebase's Auth emulator, as its own command line starts it: `{host, stop()}`. */
export async function startEmulator(project) {
  const folder = await mkdtemp(join(tmpdir(), 'duorelay-auth-'))
  const [auth, hub, logging] = [await freePort(), await freePort(), await freePort()]
  const at = (port) => ({ host: '127.0.0.1', port })
  const config = { emulators: { auth: at(auth), hub: at(hub), logging: at(logging), ui: { enabled: false } } }
  await writeFile(join(folder, 'firebase.json'), JSON.stringify(config))
  // It reports to Google that it runs, and looks for news there: a proxy that nobody is behind spares it the wait.
  const nowhere = 'http://127.0.0.1:9'
  const env = { PATH: process.env.PATH, HOME: folder, CI: 'true', HTTPS_PROXY: nowhere, HTTP_PROXY: nowhere }
  const cli = fileURLToPath(new URL('node_modules/firebase-tools/lib/bin/firebase.js', import.meta.url))
  const program = await start(
    process.execPath,
    [cli, 'emulators:start', '--only', 'auth', '--project', project],
    { cwd: folder, env },
    120_000,
    (log) => log.includes('All emulators ready'),
  )
  const stop = async () => {
    await program.stop('SIGINT')
    await rm(folder, { recursive: true, force: true })
  }
  return { host: `127.0.0.1:${auth}`, stop }
}
