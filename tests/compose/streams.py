"""Users of the demo who stream through a balancer until a file appears: streams.py BASE-URL FILE [USERS].

Each desktop sends 30 volatile and 10 reliable frames a second to its mobile, and both make before they break.
Prints what was seen; exit code 1 when a reliable frame was lost or came twice, or a connection was refused. The
longest silences of volatile streams are printed with what they are made of: how long this process itself stood
still, frames that the sender sent late, frames that were dropped while it moved, and the way of the first one that came.
"""

import asyncio
import json
import struct
import sys
import time
import urllib.request
from pathlib import Path

import websockets

LIMIT, FPS = 20, 30
VOLATILE, RELIABLE = 0x01, 0x80
# For how long this process did not go on when it should have, and when it went on.
STANDSTILLS = []
STARTED = time.monotonic()


class Device:
    def __init__(self, base, user, device):
        self.url = base.replace("http", "ws", 1) + f"/ws?device={device}&client={device}-{user}"
        self.base, self.user = base, user
        self.current, self.generation = None, 0
        self.ready, self.pong = asyncio.Event(), asyncio.Event()
        # When each volatile frame was sent, by its number; the last that came, and when.
        self.received, self.sent, self.silences, self.last, self.moves = [], [], [], None, []
        self.tasks = set()

    def token(self):
        body = json.dumps({"user": self.user}).encode()
        request = urllib.request.Request(self.base + "/demo/token", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return json.load(answer)["token"]

    async def connect(self):
        """Opens the next connection; the one before is read until the relay ends it."""
        began = time.monotonic()
        token = await asyncio.to_thread(self.token)
        # From here on reliable frames are held. What the old relay passes on after the claim of the next
        # connection is dropped: the pong says that all has left.
        asked = time.monotonic()
        self.ready.clear()
        if self.current:
            self.pong.clear()
            await self.current.send('{"type":"ping"}')
            await asyncio.wait_for(self.pong.wait(), LIMIT)
        socket = await websockets.connect(self.url, subprotocols=["duorelay.v1", token], compression=None, open_timeout=LIMIT)
        opened = time.monotonic()
        self.spawn(self.read(socket))
        await asyncio.wait_for(self.ready.wait(), LIMIT)
        self.moves.append((began, asked, opened, time.monotonic()))

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
            self.silences.append((now - self.last[1], self, *self.last, number, now))
        self.last = number, now

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
        desktop.sent.append(time.monotonic())
        await desktop.send(VOLATILE, len(desktop.sent) - 1)
        await asyncio.sleep(1 / FPS)
    await sending
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
    # Without the connections of the beginning.
    moves = len(desktop.moves) + len(mobile.moves) - 2
    silences = [described(desktop, *silence) for silence in sorted(mobile.silences)[-3:]]
    return sent, len(lost), twice, len(broken), moves, silences


def described(desktop, length, mobile, before, since, after, until):
    """A silence's length, and what it is made of."""
    ms = lambda seconds: f"{seconds * 1000:.0f} ms"
    late = desktop.sent[after] - desktop.sent[before] - (after - before) / FPS
    stood = max((lag for lag, at in STANDSTILLS if since <= at <= until + lag), default=0)
    moves = [
        f"{name} moved: token {ms(asked - began)}, pong and handshake {ms(opened - asked)}, welcome {ms(done - opened)}"
        for name, device in (("sender", desktop), ("receiver", mobile))
        for began, asked, opened, done in device.moves if began <= until and done >= since
    ]
    return length, (f"{ms(length)}: {after - before - 1} frames dropped, sent {ms(late)} late, on its way "
                    f"{ms(until - desktop.sent[after])}, this process stood still {ms(stood)}; {'; '.join(moves)}")


async def watch_ourselves(pause=0.005):
    """Notes when this process could not go on in time."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(pause)
        lag = time.monotonic() - before - pause
        if lag > 0.01:
            STANDSTILLS.append((lag, time.monotonic()))


async def main(base, done, users="50"):
    watching = asyncio.ensure_future(watch_ourselves())
    results = await asyncio.gather(*(user(base, f"user-{number}", Path(done)) for number in range(int(users))))
    watching.cancel()
    sent, lost, twice, broken, moves = (sum(result[column] for result in results) for column in range(5))
    longest = sorted(silence for result in results for silence in result[5])[-8:]
    print(f"{users} users, {sent} reliable frames: {lost} lost, {twice} twice; {moves} moves, {broken} broken")
    print(f"this process used {time.process_time() / (time.monotonic() - STARTED):.0%} of a core, and stood still "
          f"{sum(lag > 0.05 for lag, _ in STANDSTILLS)} times for over 50 ms, at most for {max(STANDSTILLS, default=(0,))[0] * 1000:.0f} ms")
    print("longest silences of a volatile stream:", *(text for _, text in reversed(longest)), sep="\n  ")
    sys.exit(1 if lost or twice or broken or not moves else 0)


asyncio.run(main(*sys.argv[1:]))
