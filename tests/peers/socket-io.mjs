// The relay with Socket.IO and its Redis adapter, as its documentation shows: any number of processes.
// Usage: node socket-io.mjs PORT REDIS_PORT

import { createServer } from 'node:http'
import { createAdapter } from '@socket.io/redis-adapter'
import { Redis } from 'ioredis'
import { Server } from 'socket.io'
import { verify } from './sign-in.mjs'

const [port, redisPort] = process.argv.slice(2).map(Number)
const publisher = new Redis({ host: '127.0.0.1', port: redisPort })
const subscriber = publisher.duplicate()
const server = createServer()
const io = new Server(server, { adapter: createAdapter(publisher, subscriber), transports: ['websocket'] })

io.use((socket, next) => {
  try {
    const { token, device } = socket.handshake.auth
    socket.data = { uid: verify(token), device }
    next()
  } catch (error) {
    next(error)
  }
})

io.on('connection', (socket) => {
  const { uid, device } = socket.data
  const other = device === 'desktop' ? 'mobile' : 'desktop'
  const slot = `${uid}:${device}`
  // The newest makes the others leave, wherever they are.
  socket.join(slot)
  const others = io.in(slot).except(socket.id)
  others.emit('overwritten')
  others.disconnectSockets(true)
  socket.on('f', (frame) => io.to(`${uid}:${other}`).volatile.emit('f', frame))
  socket.on('ping', () => socket.emit('pong'))
})

publisher.once('ready', () => server.listen(port, '127.0.0.1'))
