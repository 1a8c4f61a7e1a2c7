"""How cost grows: with users, with frames, with instances, with Redis; and what stalled receivers take.

Started by tests/scaling/run. Fills the tables of tests/CAPACITY.md and draws tests/scaling/*.svg from results.json.
Longer than most files: each part is one measurement, and they share the fleet and the page.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import textwrap
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


# Handshakes a second of two workers' storm.
STORM_RATE = 1500


def workers(rounds):
    """What a handshake and goodbye cost in a storm, for each number of workers."""

    def run(count):
        with Bench() as bench:
            fleet = Fleet(bench, 1, 1, DUORELAY_WORKERS=count)
            return fleet.load("storm", "--users=2000", f"--rate={STORM_RATE}", "--duration=6s", "--warmup=1s")["figures"]

    taken = {count: [] for count in (1, 2)}
    for turn in range(rounds):
        for count in taken:
            figures = run(count)
            taken[count].append(figures)
            say(f"workers {count}, round {turn + 1}: {figures['cpu_per_handshake'] * US:.0f} us, p99 {figures['handshake_p99'] * MS:.1f} ms")
    return {str(count): medians(runs) for count, runs in taken.items()}


def one_core(rounds):
    """Servers and Redis on one core, the generator on another: how many frames a second they carry."""

    def run(key):
        rate, place = key.split()
        with Bench() as bench:
            bench.cores = (0, 1)
            fleet = Fleet(bench, 2, 1, DUORELAY_MESSAGES_PER_SECOND=0, DUORELAY_BYTES_PER_SECOND=0)
            flags = [f"--users={int(rate) // 60}", "--fps=30", "--duration=8s", "--warmup=2s", f"--placement={place}"]
            figures = dict(fleet.load("stream", *flags)["figures"])
            say(f"  missing: {figures.get('vanished')}, superseded: {figures.get('superseded')}")
            return figures

    return rounds_of(rounds, "one core", [f"{rate} {place}" for place, rates in ONE_CORE.items() for rate in rates], run)


# Frames a second by where a pair's devices are.
ONE_CORE = {"cross": (30_000, 36_000, 40_000, 44_000, 50_000), "same": (60_000,)}


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


def info(redis, section="all"):
    """What INFO says, by name."""
    command = ["redis-cli", "-p", str(redis.port), "info", section]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def spent(redis):
    """Commands, scripts' own among them, and seconds of CPU."""
    told = info(redis)
    calls = sum(int(re.search(r"calls=(\d+)", value)[1]) for name, value in told.items() if name.startswith("cmdstat_"))
    return {"commands": calls, "cpu": float(told["used_cpu_user"]) + float(told["used_cpu_sys"])}


def spent_in(seconds, nodes, doing=time.sleep):
    """What each node spends a second, meanwhile."""
    before = [spent(node) for node in nodes]
    begun = time.monotonic()
    doing(seconds)
    took = time.monotonic() - begun
    return [{name: (later[name] - sooner[name]) / took for name in later} for sooner, later in zip(before, map(spent, nodes))]


def cpu_of(server):
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Instances, workers of each, nodes of Redis.
IDLE_FLEETS = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (16, 1, 1), (2, 2, 1), (2, 4, 1), (2, 1, 3), (2, 1, 12), (2, 1, 24)]


def silence(_):
    """What instances without a socket cost: announcements, probes, looks at the cluster."""
    found = {}
    for count, workers, nodes in IDLE_FLEETS:
        with Bench() as bench:
            fleet = Fleet(bench, count, nodes, DUORELAY_WORKERS=workers)
            time.sleep(5)
            before = sum(map(cpu_of, fleet.instances))
            each = spent_in(20, fleet.redis)
            own = (sum(map(cpu_of, fleet.instances)) - before) / 20 / count
            found[f"{count} {workers} {nodes}"] = {
                "commands": sum(node["commands"] for node in each),
                "redis_cpu": sum(node["cpu"] for node in each),
                "instance_cpu": own,
                "rss": sum(instance.rss() for instance in fleet.instances) / count,
            }
            say(f"silence {count} x {workers} on {nodes}: {found[f'{count} {workers} {nodes}']}")
    return found


# Nodes of Redis, frames a second in all (100 and 1,000 on each of two instances' connections to each node), flags.
SMALL = {
    f"{nodes} {each} {place}": (nodes, 2 * nodes * each, place)
    for nodes, each, place in [(1, 100, "cross"), (1, 1000, "cross"), (1, 100, "same"), (3, 100, "cross"), (3, 1000, "cross"), (12, 100, "cross"), (24, 100, "cross"), (24, 100, "same")]
}


def batches(rounds):
    """A frame where few travel together: over clusters, with 100 frames a second on each connection to a node."""

    def run(name):
        nodes, frames, place = SMALL[name]
        with Bench() as bench:
            fleet = Fleet(bench, 2, nodes, DUORELAY_MESSAGES_PER_SECOND=0, DUORELAY_BYTES_PER_SECOND=0)
            devices = 2 * max(100, nodes * 20)
            flags = [f"--users={devices // 2}", f"--fps={frames / devices}", "--duration=8s", "--warmup=2s", f"--placement={place}"]
            told = {}

            def measured():
                time.sleep(4)
                told["nodes"] = spent_in(5, fleet.redis)

            results = fleet.load("stream", *flags, meanwhile=measured)
            figures = dict(results["figures"])
            figures["redis_cpu_per_frame"] = sum(node["cpu"] for node in told["nodes"]) / frames
            figures["redis_commands_per_frame"] = sum(node["commands"] for node in told["nodes"]) / frames
            return figures

    return rounds_of(rounds, "batches", SMALL, run)


def used(_):
    """Memory of sockets that have sent one message of 60 KB, and of those that never did."""
    found = {}
    for size in (0, 60_000):
        with Bench() as bench:
            fleet = Fleet(bench, 2, 1)
            before = sum(instance.rss() for instance in fleet.instances)
            plan = {"clients": 2000, "ports": [instance.port for instance in fleet.instances], "send": size, "rate": 200, "limit": 120_000, "key": str(bench.key)}
            plan |= {"issuer": measure.ISSUER, "audience": measure.AUDIENCE, "kid": measure.KID}
            with subprocess.Popen(["node", HERE / "storm.mjs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                process.stdin.write(json.dumps(plan))
                process.stdin.close()
                if process.stdout.readline().strip() != "sent":
                    raise SystemExit("the clients did not connect")
                # Lists of errors and the allocator's free pages go back within that time.
                time.sleep(15)
                found[str(size)] = (sum(instance.rss() for instance in fleet.instances) - before) / 2000
                process.kill()
            say(f"used, {size} bytes: {found[str(size)]:.0f} bytes a socket")
    return found


# What tests/model/fleet plays in numbers at the size that fits here: clients, instances, settings, and what is lost.
STORMS = {
    "one of three instances": (1800, 3, {}, None),
    "one of two, all behind one address": (1200, 2, {"DUORELAY_HANDSHAKES_PER_SECOND_PER_IP": 20}, None),
    "Redis stands still for 10 s": (600, 2, {}, 10_000),
}


def storm_once(clients, count, settings, during):
    """Clients of the JavaScript library lose an instance, or come while Redis stands still."""
    with Bench() as bench:
        fleet = Fleet(bench, count, 1, **settings)
        plan = {
            "clients": clients,
            "ports": [instance.port for instance in fleet.instances],
            "kill": fleet.redis[0].pid if during else fleet.instances[0].pid,
            "during": during,
            # Below what one address may.
            "rate": 80,
            "limit": 120_000,
            "key": str(bench.key),
            **{"issuer": measure.ISSUER, "audience": measure.AUDIENCE, "kid": measure.KID},
        }
        command = ["node", HERE / "storm.mjs"]
        done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout)


def storms(rounds):
    found = {}
    for name, case in STORMS.items():
        runs = [storm_once(*case) for _ in range(rounds)]
        refused = [sum(run.pop("refused").values()) for run in runs]
        found[name] = {**medians(runs), "refused": sorted(refused)[len(refused) // 2]}
        say(f"storm, {name}: {found[name]}")
    return found


PARTS = {part.__name__: part for part in (users, frames, instances, backplane, claims, workers, one_core, idle, stalled, storms, silence, batches, used)}


# Measured on another day than the others.
PLAN = {"storms", "silence", "batches", "used"}


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
    fill("machine", textwrap.fill(results["machine"] + ".", 110))
    for part, first in (("users", "devices"), ("frames", "frames/s"), ("instances", "instances"), ("backplane", "backplane")):
        if part in done:
            fill(part, table([first, *COST], cost_rows(results, part)))
    if "users" in done and "instances" in done:
        draw(results)
    if {"frames", "claims", "idle", "backplane"} <= set(done):
        fill("constants", constants(results))
        fill("capacity", capacity(results))
    if "plan_machine" in results:
        fill("plan machine", textwrap.fill(results["plan_machine"] + ".", 110))
    if "workers" in done:
        rows = [[count, digits(run["cpu_per_handshake"] * US), digits(run["handshake_p50"] * MS), digits(run["handshake_p99"] * MS)] for count, run in results["workers"].items()]
        fill("workers", table(["workers", "CPU of a handshake and goodbye, us", "p50, ms", "p99, ms"], rows))
    if "one_core" in done:
        rows = [
            [f"{int(rate):,}", "apart" if place == "cross" else "together", *row[1:]]
            for key, row in zip(results["one_core"], cost_rows(results, "one_core")) for rate, place in [key.split()]
        ]
        fill("one core", table(["frames/s", "pairs", *COST], rows))
    if "silence" in done:
        rows = [
            [*key.split(), digits(found["commands"]), digits(found["redis_cpu"] * MS), digits(found["instance_cpu"] * MS), f"{found['rss'] / 1e6:,.0f} MB"]
            for key, found in results["silence"].items()
        ]
        head = ["instances", "workers each", "Redis nodes", "Redis commands/s, all nodes", "Redis CPU, ms/s", "CPU of an instance, ms/s", "memory of an instance"]
        fill("silence", table(head, rows))
    if "batches" in done:
        rows = [[nodes, each, "together" if place == "same" else "apart", *row[3:]] for key, row in zip(results["batches"], cost_rows(results, "batches")) for nodes, each, place in [key.split()]]
        fill("batches", table(["Redis nodes", "frames/s a connection", "pairs", *COST[2:]], rows))
    if "used" in done:
        silent, once = (results["used"][size] for size in ("0", "60000"))
        fill("used", f"A socket that never sent takes {silent / 1e3:.1f} KB, one that has sent 60 KB once {once / 1e3:.1f} KB.")
    if "storms" in done:
        rows = [
            [name, f"{run['lost']:,.0f}", " / ".join(f"{run[part]:.1f}" for part in ("half", "most", "all")), f"{run['attempts']:,.0f}", f"{run['refused']:,.0f}"]
            for name, run in results["storms"].items()
        ]
        fill("storms", table(["lost", "sockets", "back: 50 % / 99 % / all, s", "handshakes", "refused"], rows))
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
        results.update({part: found, "plan_machine" if part in PLAN else "machine": measure.machine()})
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report(json.loads(RESULTS.read_text()))


main()
