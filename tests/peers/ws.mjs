// The relay as one process with `ws` and a Map of rooms: what one writes first.
// It says as much of the protocol duorelay.v1 as the load generator needs. Usage: node ws.mjs PORT

import { createServer } from 'node:http'
import { WebSocketServer } from 'ws'
import { verify } from './sign-in.mjs'

/** By uid: { desktop, mobile }. */
const rooms = new Map()
const server = createServer((request, response) => response.writeHead(426).end())
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false })

/** Browsers send the token in the list of protocols, native apps in a header. */
function signIn(request) {
  const bearer = request.headers.authorization?.replace(/^Bearer /, '')
  const offered = request.headers['sec-websocket-protocol']?.split(',').map((part) => part.trim())
  const token = bearer ?? offered?.find((part) => part !== 'duorelay.v1')
  return { uid: verify(token), device: bearer ? 'mobile' : 'desktop' }
}

server.on('upgrade', (request, stream, head) => {
  let who
  try {
    who = signIn(request)
  } catch {
    stream.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n')
    return
  }
  sockets.handleUpgrade(request, stream, head, (socket) => join(socket, who))
})

function join(socket, { uid, device }) {
  const other = device === 'desktop' ? 'mobile' : 'desktop'
  let room = rooms.get(uid)
  if (!room) rooms.set(uid, (room = {}))
  const old = room[device]
  room[device] = socket
  if (old) {
    old.send('{"type":"overwritten"}')
    old.close(4001)
  }
  socket.send('{"type":"welcome"}')
  socket.on('message', (data, isBinary) => {
    if (room[device] !== socket) return
    if (isBinary) room[other]?.send(data)
    else if (JSON.parse(data).type === 'ping') socket.send('{"type":"pong"}')
  })
  socket.on('error', () => socket.terminate())
  socket.on('close', () => {
    if (room[device] !== socket) return
    delete room[device]
    if (!room[other]) rooms.delete(uid)
  })
}

server.listen(Number(process.argv[2]), '127.0.0.1')
