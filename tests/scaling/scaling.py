"""How cost grows: with users, with frames, with instances, with Redis; and what stalled receivers take.

Started by tests/scaling/run. Fills the tables of tests/CAPACITY.md and draws tests/scaling/*.svg from results.json.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
from measure import TOP, Bench, digits, medians, redis_cpu, say, table

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = TOP / "tests" / "CAPACITY.md"

DEVICES = [50, 200, 800, 3200]
INSTANCES = [1, 2, 4, 8]
# Held while devices, instances or Redis grow.
FRAMES = 6000
# Receivers that stop reading, and what may wait for each.
STALLED, QUEUE_BYTES, STALLED_FRAME = 1000, 32768, 8000
US, MS = 1e6, 1e3


class Fleet:
    """Instances of one worker each on a Redis of so many nodes; none: one instance with its rooms in memory."""

    def __init__(self, bench, instances, nodes, **settings):
        self.bench = bench
        if nodes == 0:
            self.redis, self.redis_url = [], None
        elif nodes == 1:
            self.redis = [bench.redis()]
            self.redis_url = f"redis://127.0.0.1:{self.redis[0].port}"
        else:
            self.redis = bench.redis_cluster(nodes)
            self.redis_url = f"redis-cluster://127.0.0.1:{self.redis[0].port}"
        self.instances = [bench.relay(self.redis_url, **settings) for _ in range(instances)]

    def load(self, scenario, *flags, **more):
        return self.bench.load(scenario, self.instances, *flags, redis_url=self.redis_url, **more)


def stream(instances, nodes, devices, frames, *flags):
    """Figures of one run in which so many devices send so many frames a second in all."""
    with Bench() as bench:
        fleet = Fleet(bench, instances, nodes, DUORELAY_MESSAGES_PER_SECOND=0, DUORELAY_BYTES_PER_SECOND=0)
        results = fleet.load(
            "stream", f"--users={devices // 2}", f"--fps={frames / devices}", "--duration=6s", "--warmup=2s", *flags
        )
        return results["figures"]


def rounds_of(rounds, name, steps, run):
    """The median of each step over rounds that are taken in turn."""
    taken = {step: [] for step in steps}
    for turn in range(rounds):
        for step in steps:
            figures = run(step)
            say(f"{name} {step}, round {turn + 1}: p99 {figures['p99'] * MS:.2f} ms, CPU {figures['cpu_per_frame'] * US:.1f} us")
            taken[step].append(figures)
    return {str(step): medians(runs) for step, runs in taken.items()}


def users(rounds):
    return rounds_of(rounds, "devices", DEVICES, lambda devices: stream(2, 1, devices, FRAMES))


def frames(rounds):
    return rounds_of(rounds, "frames/s", [1500, 6000, 12000, 24000], lambda rate: stream(2, 1, rate // 30, rate))


def instances(rounds):
    return rounds_of(rounds, "instances", INSTANCES, lambda count: stream(count, 1, 200, FRAMES))


def backplane(rounds):
    nodes = {"memory": (1, 0), "one Redis": (2, 1), "cluster of 3": (2, 3), "one Redis, same instance": (2, 1)}
    same = {"one Redis, same instance": ["--placement=same"]}
    return rounds_of(rounds, "backplane", nodes, lambda name: stream(*nodes[name], 200, FRAMES, *same.get(name, [])))


def claims(rounds):
    """What a handshake costs, claim, subscription and goodbye included."""
    taken = []
    for _ in range(rounds):
        with Bench() as bench:
            fleet = Fleet(bench, 2, 1)
            results = fleet.load("storm", "--users=500", "--rate=200", "--duration=6s", "--warmup=1s")
            figures = dict(results["figures"])
            welcomed = sum(point["welcomed"] for point in results["timeline"])
            figures["redis_cpu_per_handshake"] = redis_cpu(results) / welcomed
            say(f"handshakes: {figures['cpu_per_handshake'] * US:.0f} us, Redis {figures['redis_cpu_per_handshake'] * US:.0f} us")
            taken.append(figures)
    return medians(taken)


def used_memory(redis):
    """In bytes."""
    command = ["redis-cli", "-p", str(redis.port), "info", "memory"]
    info = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout
    return int(re.search(r"^used_memory:(\d+)", info, re.MULTILINE)[1])


def idle(_):
    """What a silent connection costs: memory, and the CPU of leases and heartbeats."""
    with Bench() as bench:
        fleet = Fleet(bench, 2, 1)
        before = sum(instance.rss() for instance in fleet.instances)
        redis_before = used_memory(fleet.redis[0])
        results = fleet.load("idle", "--users=5000", "--connect-rate=1000", "--duration=30s", "--warmup=5s")
        first, last = results["readings"][0], results["readings"][-1]
        connections = results["figures"]["connected"]
        each_second = (last["at"] - first["at"]) * connections
        cpu = sum(later["cpu"] - sooner["cpu"] for later, sooner in zip(last["instances"], first["instances"]))
        return {
            "instance_rss": before / len(fleet.instances),
            "rss_per_connection": results["figures"]["rss_per_connection"],
            "redis_bytes_per_connection": (last["redis"]["memory"] - redis_before) / connections,
            "cpu_per_connection_second": cpu / each_second,
            "redis_cpu_per_connection_second": redis_cpu(results) / each_second,
        }


def stalled(_):
    """Receivers that stop reading while volatile and reliable frames are sent to them: what the instances' memory grows by."""
    settings = {"DUORELAY_QUEUE_BYTES": QUEUE_BYTES, "DUORELAY_MESSAGE_BYTES": STALLED_FRAME, "DUORELAY_MESSAGES_PER_SECOND": 0, "DUORELAY_BYTES_PER_SECOND": 0}
    found = {}
    # Five volatile streams are more than a queue holds; a reliable one overflows it, and its receiver is closed.
    for name, streams in (("volatile", "0,1,2,3,4"), ("volatile and reliable", "0,1,2,3,4,128")):
        with Bench() as bench:
            fleet = Fleet(bench, 2, 1, **settings)
            before = sum(instance.rss() for instance in fleet.instances)

            def sample():
                largest, until = 0, time.monotonic() + 18
                while time.monotonic() < until:
                    largest = max(largest, sum(instance.rss() for instance in fleet.instances))
                    time.sleep(0.1)
                still_there = sum(
                    value
                    for instance in fleet.instances
                    for metric, value in instance.metrics().items()
                    if metric.startswith("duorelay_connections") and "mobile" in metric
                )
                return {"rss": largest, "let_go": STALLED - still_there}

            flags = [f"--users={STALLED}", "--link=0", f"--stream={streams}", f"--frame-bytes={STALLED_FRAME}", "--fps=1"]
            results = fleet.load("slow", *flags, "--connect-rate=1000", "--duration=12s", "--warmup=0s", meanwhile=sample)
            meanwhile = results["meanwhile"]
            found[name] = {
                "sent_bytes": results["figures"]["sent"] * STALLED_FRAME,
                "grown": meanwhile["rss"] - before,
                "let_go": meanwhile["let_go"],
            }
            say(f"stalled, {name}: {found[name]}")
    return found


PARTS = {part.__name__: part for part in (users, frames, instances, backplane, claims, idle, stalled)}


def cost_rows(results, unit):
    return [
        [step if not step.isdigit() else f"{int(step):,}", *(
            digits(figures[name] * factor) if name in figures else "-"
            for name, factor in (("p50", MS), ("p99", MS), ("cpu_per_frame", US), ("redis_cpu_per_frame", US), ("redis_commands_per_frame", 1))
        )]
        for step, figures in results[unit].items()
    ]


COST = ["p50, ms", "p99, ms", "server CPU per frame, us", "Redis CPU per frame, us", "Redis commands per frame"]


def millions(number):
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{number:,.0f}"


# The example of the page: this share of the users online streams at a time, both devices at this rate.
STREAMING, RATE = 0.05, 30
# A socket is asked to move after so many seconds (DUORELAY_MAX_LIFETIME_SECONDS).
LIFETIME = 2700
# How much of a core is planned for: beyond it, waiting grows faster than work.
PLANNED = 0.6
# DUORELAY_MAX_CONNECTIONS
CONNECTIONS = 100_000


def capacity(results):
    """What a fleet needs; tests/CAPACITY.md explains each column."""
    frame, claim, silent = results["frames"]["12000"], results["claims"], results["idle"]
    rows = []
    for online in (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        sockets = 2 * online
        sent = online * STREAMING * 2 * RATE
        claimed = sockets / LIFETIME
        cpu = sent * frame["cpu_per_frame"] + claimed * claim["cpu_per_handshake"] + sockets * silent["cpu_per_connection_second"]
        redis = (
            sent * frame["redis_cpu_per_frame"]
            + claimed * claim["redis_cpu_per_handshake"]
            + sockets * silent["redis_cpu_per_connection_second"]
        )
        cores = max(2, math.ceil(cpu / PLANNED), math.ceil(sockets / CONNECTIONS))
        nodes = max(1, math.ceil(redis / PLANNED))
        memory = cores * silent["instance_rss"] + sockets * silent["rss_per_connection"]
        # 300 bytes of frame, and some 66 of WebSocket, TCP, IP and Ethernet, in and out again.
        network = sent * (300 + 66) * 8 * 2
        if cpu < PLANNED and redis < PLANNED:
            first = "none: a second instance only for safety"
        elif nodes == 1:
            first = "CPU of the instances: add some"
        elif cores <= 64:
            first = "one Redis is one core: a cluster"
        else:
            first = "Redis's nodes; then connections between all instances and all nodes"
        rows.append(
            [millions(online), millions(sent), digits(cpu), cores, digits(redis), nodes, f"{memory / 1e9:,.2f} GB", f"{network / 1e9:,.2f} Gbit/s", first]
        )
    head = ["users online", "frames/s", "instances' CPU, cores", "instances of one core", "Redis's CPU, cores", "Redis nodes", "memory", "network", "first limit"]
    return table(head, rows)


def constants(results):
    at, claim, idle_cost = results["frames"]["12000"], results["claims"], results["idle"]
    rows = [
        ["F", "a frame across two instances, on both together", f"{digits(at['cpu_per_frame'] * US)} us of CPU"],
        ["Fr", "the same frame, on Redis", f"{digits(at['redis_cpu_per_frame'] * US)} us of CPU"],
        ["Fl", "a frame whose two sockets are on one instance", f"{digits(results['backplane']['one Redis, same instance']['cpu_per_frame'] * US)} us of CPU, none on Redis"],
        ["C", "a handshake: signature, claim, subscription, goodbye", f"{digits(claim['cpu_per_handshake'] * US)} us of CPU"],
        ["Cr", "the same, on Redis", f"{digits(claim['redis_cpu_per_handshake'] * US)} us of CPU"],
        ["S", "a silent socket: renewing its lease, heartbeats", f"{digits(idle_cost['cpu_per_connection_second'] * US)} us of CPU a second"],
        ["Sr", "the same, on Redis", f"{digits(idle_cost['redis_cpu_per_connection_second'] * US)} us of CPU a second"],
        ["M", "memory of a silent socket", f"{digits(idle_cost['rss_per_connection'] / 1e3)} KB, above {digits(idle_cost['instance_rss'] / 1e6)} MB for an instance"],
        ["Mr", "the same, on Redis", f"{digits(idle_cost['redis_bytes_per_connection'] / 1e3)} KB"],
    ]
    return table(["", "what", "cost"], rows)


def report(results):
    fill = lambda name, text: measure.fill(PAGE, name, text)
    done = [part for part in PARTS if part in results]
    fill("machine", results["machine"] + ".")
    for part, first in (("users", "devices"), ("frames", "frames/s"), ("instances", "instances"), ("backplane", "backplane")):
        if part in done:
            fill(part, table([first, *COST], cost_rows(results, part)))
    if "users" in done and "instances" in done:
        draw(results)
    if {"frames", "claims", "idle", "backplane"} <= set(done):
        fill("constants", constants(results))
        fill("capacity", capacity(results))
    if {"idle", "stalled"} <= set(done):
        # Two full lanes and what is gathered for one write (16 KiB and a message, in a buffer that doubles to 32 KiB), for each
        # receiver; and all connections.
        bound = (2 * QUEUE_BYTES + 32768) * STALLED + 2 * STALLED * results["idle"]["rss_per_connection"]
        rows = [
            [name, f"{found['sent_bytes'] / 1e6:,.0f} MB", f"{found['let_go']:,.0f}", f"{found['grown'] / 1e6:,.1f} MB", f"{bound / 1e6:,.1f} MB"]
            for name, found in results["stalled"].items()
        ]
        fill("stalled", table(["streams", "sent", "receivers let go", "memory grew by, at most", "full queues would be"], rows))


def draw(results):
    def line(part, figure, factor):
        return [(int(step), figures[figure] * factor) for step, figures in results[part].items()]

    for part, title, label in (
        ("users", f"CPU per frame as devices grow, {FRAMES:,} frames/s", "devices"),
        ("frames", "CPU per frame as traffic grows, 30 frames/s a device", "frames a second"),
        ("instances", f"CPU per frame as instances grow, {FRAMES:,} frames/s", "instances"),
    ):
        if part in results:
            series = {"instances": line(part, "cpu_per_frame", US), "Redis": line(part, "redis_cpu_per_frame", US)}
            measure.chart(HERE / f"{part}.svg", title, label, "us of CPU for each frame", series, results["machine"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the median is taken (default 3)")
    parser.add_argument("--table", action="store_true", help="measure nothing, write page and pictures from results.json")
    options = parser.parse_args()
    for part in [] if options.table else options.part or PARTS:
        found = PARTS[part](options.rounds)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results.update({part: found, "machine": measure.machine()})
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report(json.loads(RESULTS.read_text()))


main()
