"""Users of the demo who stream through a balancer until a file appears: streams.py BASE-URL FILE [USERS].

Each desktop sends 30 volatile and 10 reliable frames a second to its mobile, and both make before they break.
Prints what was seen; exit code 1 when a reliable frame was lost or came twice, or a connection was refused.
"""

import asyncio
import json
import struct
import sys
import time
import urllib.request
from pathlib import Path

import websockets

LIMIT = 20
VOLATILE, RELIABLE = 0x01, 0x80


class Device:
    def __init__(self, base, user, device):
        self.url = base.replace("http", "ws", 1) + f"/ws?device={device}&client={device}-{user}"
        self.base, self.user = base, user
        self.current, self.generation = None, 0
        self.ready, self.pong = asyncio.Event(), asyncio.Event()
        self.received, self.silence, self.last, self.moves = [], 0.0, None, -1
        self.tasks = set()

    def token(self):
        body = json.dumps({"user": self.user}).encode()
        request = urllib.request.Request(self.base + "/demo/token", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return json.load(answer)["token"]

    async def connect(self):
        """Opens the next connection; the one before is read until the relay ends it."""
        token = await asyncio.to_thread(self.token)
        # From here on reliable frames are held. What the old relay passes on after the claim of the next
        # connection is dropped: the pong says that all has left.
        self.ready.clear()
        if self.current:
            self.pong.clear()
            await self.current.send('{"type":"ping"}')
            await asyncio.wait_for(self.pong.wait(), LIMIT)
        socket = await websockets.connect(self.url, subprotocols=["duorelay.v1", token], compression=None, open_timeout=LIMIT)
        self.spawn(self.read(socket))
        await asyncio.wait_for(self.ready.wait(), LIMIT)

    def spawn(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)

    async def read(self, socket):
        try:
            async for message in socket:
                if isinstance(message, bytes):
                    self.on_frame(message)
                else:
                    self.on_control(json.loads(message), socket)
        except websockets.ConnectionClosed:
            pass

    def on_control(self, message, socket):
        if message["type"] == "welcome" and message["generation"] > self.generation:
            self.current, self.generation = socket, message["generation"]
            self.moves += 1
            self.ready.set()
        elif message["type"] == "reconnect" and socket is self.current:
            self.spawn(self.move(message["in_ms"] / 1000))
        elif message["type"] == "pong":
            self.pong.set()
        elif message["type"] == "error":
            raise AssertionError(message)

    async def move(self, wait):
        await asyncio.sleep(wait)
        await self.connect()

    def on_frame(self, frame):
        stream, number = struct.unpack_from(">BI", frame)
        if stream == RELIABLE:
            self.received.append(number)
            return
        now = time.monotonic()
        if self.last is not None:
            self.silence = max(self.silence, now - self.last)
        self.last = now

    async def send(self, stream, number):
        try:
            await self.current.send(struct.pack(">BI", stream, number) + bytes(295))
        except websockets.ConnectionClosed:
            # Volatile ones may go missing while the device moves; reliable ones are held then.
            if stream == RELIABLE:
                raise


async def user(base, name, done):
    desktop, mobile = (Device(base, name, device) for device in ("desktop", "mobile"))
    await asyncio.gather(desktop.connect(), mobile.connect())
    sent = 0

    async def reliable():
        nonlocal sent
        while not done.exists():
            await asyncio.wait_for(desktop.ready.wait(), LIMIT)
            await desktop.send(RELIABLE, sent)
            sent += 1
            await asyncio.sleep(0.1)

    sending = asyncio.ensure_future(reliable())
    while not sending.done():
        await desktop.send(VOLATILE, 0)
        await asyncio.sleep(1 / 30)
    await sending
    silence = mobile.silence
    end = time.monotonic() + LIMIT
    while len(mobile.received) < sent and time.monotonic() < end:
        await asyncio.sleep(0.05)
    broken = [task for device in (desktop, mobile) for task in device.tasks if task.done() and task.exception()]
    for task in broken:
        print(f"{name}: {task.exception()!r}")
    lost = set(range(sent)) - set(mobile.received)
    if lost:
        print(f"{name}: lost {sorted(lost)} of {sent}")
    twice = len(mobile.received) - len(set(mobile.received))
    return sent, len(lost), twice, len(broken), desktop.moves + mobile.moves, silence


async def main(base, done, users="50"):
    results = await asyncio.gather(*(user(base, f"user-{number}", Path(done)) for number in range(int(users))))
    sent, lost, twice, broken, moves = (sum(result[column] for result in results) for column in range(5))
    silence = max(result[5] for result in results)
    print(f"{users} users, {sent} reliable frames: {lost} lost, {twice} twice; {moves} moves, {broken} broken; "
          f"longest silence of a volatile stream {silence * 1000:.0f} ms")
    sys.exit(1 if lost or twice or broken or not moves else 0)


asyncio.run(main(*sys.argv[1:]))
