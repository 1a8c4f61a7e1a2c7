// Starts `duorelay demo` on free ports and gets tokens from it.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'

const BINARY = process.env.DUORELAY_BIN
// A demo that runs already, such as the one behind the balancer of docker-compose.yml.
const RUNNING = process.env.DUORELAY_DEMO
if (!BINARY && !RUNNING) throw new Error('DUORELAY_BIN must name the duorelay program (tests/interop/run sets it)')

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

/** Calls `attempt` until it does not throw, at most for `ms`. */
export async function eventually(what, ms, attempt) {
  const deadline = Date.now() + ms
  for (;;) {
    try {
      return await attempt()
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`waited ${ms} ms for ${what}: ${error.message}`, { cause: error })
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}

/** A running demo: `{http, admin, ws, token(user), stop()}`; with these arguments beside its ports, on this address. */
export async function startDemo(more = [], host = '127.0.0.1') {
  if (RUNNING) return client(RUNNING, async () => {}, () => '')
  const [port, adminPort] = [await freePort(), await freePort()]
  const args = ['demo', '--listen', `${host}:${port}`, '--admin-listen', `127.0.0.1:${adminPort}`, ...more]
  const child = spawn(BINARY, args, { env: { PATH: process.env.PATH }, stdio: ['ignore', 'pipe', 'pipe'] })
  let log = ''
  for (const pipe of [child.stdout, child.stderr]) pipe.setEncoding('utf8').on('data', (text) => (log += text))
  const ended = once(child, 'exit')
  const http = `http://${host}:${port}`
  const stop = async () => {
    child.kill('SIGKILL')
    await ended
  }
  try {
    await eventually('the demo to be ready', 10_000, async () => {
      if (child.exitCode !== null) throw new Error(`it ended: ${log}`)
      const response = await fetch(`${http}/healthz/ready`)
      if (response.status !== 200) throw new Error(`${response.status}`)
    })
  } catch (error) {
    await stop()
    throw error
  }
  return { ...client(http, stop, () => log), admin: `http://127.0.0.1:${adminPort}` }
}

function client(http, stop, log) {
  const token = async (user) => {
    const response = await fetch(`${http}/demo/token`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ user }),
    })
    if (response.status !== 200) throw new Error(`/demo/token: ${response.status} ${await response.text()}`)
    return await response.json()
  }
  return { http, ws: `${http.replace('http', 'ws')}/ws`, token, stop, log }
}
