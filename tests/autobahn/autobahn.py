"""Runs the Autobahn cases against `conformance` (conformance.rs), and writes down what they say.

The cases know nothing of signing in, so they come through a gate that signs each of their connections in as a user of its own.
Started by tests/autobahn/run, which installs the suite and builds the program.
"""

import asyncio
import contextlib
import html
import importlib.metadata
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections import Counter
from pathlib import Path

import kosoku
from kosoku.cases import CASES

RESULTS = Path(__file__).with_name("RESULTS.md")
LAST_SECTION = 10
# Seconds.
START_LIMIT, RUN_LIMIT, STOP_LIMIT = 20, 600, 10
# The largest messages of section 9 have 16 MiB. Nothing else differs from what every relay does.
SETTINGS = {
    "DUORELAY_MESSAGE_BYTES": str(16 << 20),
    "DUORELAY_QUEUE_BYTES": str(32 << 20),
    "DUORELAY_MESSAGES_PER_SECOND": "0",
    "DUORELAY_BYTES_PER_SECOND": "0",
    "DUORELAY_HANDSHAKES_PER_SECOND_PER_IP": "0",
    "RUST_LOG": "error",
}
# What makes a verdict no failure although it is not OK; one without a reason fails the run.
REASONS = {
    "6.4.3": "UTF-8 is checked as each frame is complete (6.4.1 and 6.4.2 are OK), and this is one frame that comes in three parts: it is "
    "refused with 1007 when its last part is there",
    "6.4.4": "as 6.4.3",
    "7.1.6": "the relay drops what waits for a client that closes, completes the message that is being written, and answers the close",
    "7.13.1": "what follows a code above 4999 is not specified; the relay answers 1002",
    "7.13.2": "as 7.13.1",
}
EXCUSABLE = {"NON-STRICT", "INFORMATIONAL"}


def free_port():
    """Below the range of outgoing connections."""
    while True:
        port = 11000 + int.from_bytes(os.urandom(2)) % 9000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def relay(program):
    """A relay with an echo; its port."""
    port = free_port()
    environment = {**SETTINGS, "DUORELAY_LISTEN": f"127.0.0.1:{port}", "DUORELAY_ADMIN_LISTEN": f"127.0.0.1:{free_port()}"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([program], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_LIMIT
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz/ready", timeout=1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the relay does not get ready")
                time.sleep(0.05)
            yield port
            process.send_signal(signal.SIGINT)
            if process.wait(STOP_LIMIT) != 0:
                raise SystemExit(f"the relay has ended with {process.returncode}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            log.seek(0)
            print(log.read()[-4000:], end="", file=sys.stderr)
        if log.tell() > 0:
            raise SystemExit("the relay has logged an error")


def sign_in(port, user):
    body = json.dumps({"user": user}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/demo/token", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)["token"]


async def pump(reader, writer):
    """Bytes as they come; the end as an end, and a reset as a reset."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


@contextlib.asynccontextmanager
async def gate(port):
    """Lets the cases in: adds a token to each handshake, and touches nothing else. Its port."""
    users = itertools.count()

    async def let_in(reader, writer):
        request_line = await reader.readline()
        token = await asyncio.to_thread(sign_in, port, f"case-{next(users)}")
        from_relay, to_relay = await asyncio.open_connection("127.0.0.1", port)
        to_relay.write(request_line + f"Authorization: Bearer {token}\r\n".encode())
        await asyncio.gather(pump(reader, to_relay), pump(from_relay, writer))
        to_relay.close()
        writer.close()

    tasks = set()
    server = await asyncio.start_server(lambda *ends: tasks.add(asyncio.create_task(let_in(*ends))), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        # Sockets that the relay keeps a second longer than its client.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(port, patterns):
    async with gate(port) as gate_port:
        cases = kosoku.run_fuzzingclient(f"ws://127.0.0.1:{gate_port}/ws", patterns, concurrency=2)
        try:
            return await asyncio.wait_for(cases, RUN_LIMIT)
        except kosoku.FailureError as failure:
            return failure.results


def verdict(result):
    return result.behavior.value, result.behavior_close.value


def is_excused(result):
    return result.case_id in REASONS and EXCUSABLE.issuperset({*verdict(result)} - {"OK"})


def section(case):
    return int(case.split(".")[0])


def ranges(cases):
    """`7.1.1-7.1.3, 7.1.5`"""
    runs = []
    for case in cases:
        *group, number = case.split(".")
        if runs and runs[-1][1] == [*group, str(int(number) - 1)]:
            runs[-1][1] = [*group, number]
        else:
            runs.append([case, [*group, number]])
    return ", ".join(first if first == ".".join(last) else f"{first}-{'.'.join(last)}" for first, last in runs)


def table(results):
    """The result of every case, those of a subsection that expect and got the same in one line; the same text for the same verdicts."""
    rows = {}
    for result in results:
        expected = " ".join(re.sub(r"<[^>]*>", " ", html.unescape(result.expectation)).split())
        subsection = result.case_id.rsplit(".", 1)[0]
        row = (subsection, textwrap.shorten(expected, 150, placeholder=" …"), *verdict(result))
        rows.setdefault(row, []).append(result.case_id)
    counts = Counter(verdict(result) for result in results)
    left_out = Counter(section(case) for case in CASES if section(case) > LAST_SECTION)
    deviating = [result for result in results if verdict(result) != ("OK", "OK")]
    lines = [
        "# The Autobahn test suite's verdict",
        "",
        *textwrap.wrap(
            f"Written by `tests/autobahn/run`, with the case files of kosoku {importlib.metadata.version('kosoku')}: {len(results)} cases, all of sections 1 to "
            f"{LAST_SECTION}. Not applicable: sections {' and '.join(f'{number} ({count} cases)' for number, count in sorted(left_out.items()))} are about "
            "permessage-deflate, which the relay does not offer (`src/README.md`, \"What did not help\").",
            110,
            break_on_hyphens=False,
        ),
        "",
        "| behaviour | close behaviour | cases |",
        "| --- | --- | --- |",
        *(f"| {behavior} | {close} | {count} |" for (behavior, close), count in counts.most_common()),
        "",
        "| not OK | behaviour | close behaviour | why it stands |",
        "| --- | --- | --- | --- |",
        *(f"| {r.case_id} | {' | '.join(verdict(r))} | {REASONS.get(r.case_id, '**no reason is known**')} |" for r in deviating),
        "",
        "| cases | expected | behaviour | close behaviour |",
        "| --- | --- | --- | --- |",
        *(f"| {ranges(cases)} | {expected} | {behavior} | {close} |" for (_, expected, behavior, close), cases in rows.items()),
        "",
    ]
    return "\n".join(lines)


def main():
    program, *patterns = sys.argv[1:]
    wanted = [case for case in CASES if section(case) <= LAST_SECTION]
    with relay(program) as port:
        results = asyncio.run(run(port, patterns or wanted))
    failed = [result for result in results if verdict(result) != ("OK", "OK") and not is_excused(result)]
    for result in failed:
        print(f"{result.case_id}: {' / '.join(verdict(result))}: {result.result} {result.result_close} Expected: {result.expectation}")
    if not patterns:
        RESULTS.write_text(table(results))
        missing = set(wanted) - {result.case_id for result in results}
        if missing:
            raise SystemExit(f"autobahn: FAILED: these did not run: {' '.join(sorted(missing))}")
    counts = ", ".join(f"{count} {' / '.join(each)}" for each, count in Counter(map(verdict, results)).most_common())
    print(f"autobahn: {'FAILED' if failed or not results else 'passed'}, {len(results)} cases (behaviour / close behaviour): {counts}")
    sys.exit(bool(failed) or not results)


main()
