"""A thin path: TCP to PORT with UP and DOWN bytes a second (0: no limit), and small buffers in the kernel.

Usage: thin.py PORT UP DOWN; prints the port that it listens on.
"""
import asyncio
import socket
import sys

PORT, UP, DOWN = map(int, sys.argv[1:])
LEAST_BUFFER = 2304


async def carry(source, target, rate):
    loop = asyncio.get_running_loop()
    free = loop.time()
    # Less than a frame of 300 bytes: of two that arrive at once, the relay passes on the newer one alone.
    chunk = max(256, rate // 50) if rate else 65536
    try:
        while data := await loop.sock_recv(source, chunk):
            await loop.sock_sendall(target, data)
            if rate:
                # A sleep that was too long is made up for.
                free = max(free, loop.time() - 0.1) + len(data) / rate
                await asyncio.sleep(max(0, free - loop.time()))
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def small(sock, rate):
    size = max(LEAST_BUFFER, rate // 10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


async def pair(near):
    loop = asyncio.get_running_loop()
    far = socket.socket()
    if DOWN:
        small(far, DOWN)
    far.setblocking(False)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    near.setblocking(False)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await loop.sock_connect(far, ("127.0.0.1", PORT))
    await asyncio.gather(carry(near, far, UP), carry(far, near, DOWN))
    near.close()
    far.close()


async def main():
    loop = asyncio.get_running_loop()
    listener = socket.socket()
    if UP:
        small(listener, UP)  # what it accepts inherits them
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    pairs = set()
    while True:
        near, _ = await loop.sock_accept(listener)
        task = asyncio.create_task(pair(near))
        pairs.add(task)
        task.add_done_callback(pairs.discard)


asyncio.run(main())
