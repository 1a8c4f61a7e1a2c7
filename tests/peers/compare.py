"""The relay beside its peers and the floor: the same generator, the same scenarios, one after the other in turn.

Started by tests/peers/run, which installs and builds what is compared.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
from measure import BUILT, TOP, Bench, digits, medians, say, table

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
FLOOR = BUILT / "examples" / "floor"


def peer_environment(bench):
    return {"PUBLIC_KEY": str(bench.public_key), "ISSUER": measure.ISSUER, "AUDIENCE": measure.AUDIENCE, "NODE_ENV": "production"}.items()


def node(bench, script, *arguments):
    port = measure.free_port()
    return bench.start(["node", HERE / script, port, *arguments], port, peer_environment(bench))


def duorelay(bench, redis):
    return [bench.relay(f"redis://127.0.0.1:{redis.port}") for _ in range(2)]


def floor(bench, redis):
    ports = [measure.free_port() for _ in range(2)]
    return [bench.start([FLOOR, port, redis.port], port) for port in ports]


# Title, how it starts, whether it needs Redis, flags of the generator and the path of its WebSocket, what it cannot do.
SERVERS = {
    "floor": ("floor", floor, True, [], "/", {"overwrite"}),
    "duorelay": ("**duorelay**, two instances", duorelay, True, [], "/ws", set()),
    "duorelay-one": ("**duorelay**, one", lambda bench, _: [bench.relay()], False, [], "/ws", set()),
    "socket.io": (
        "Socket.IO 4 + Redis adapter, two",
        lambda bench, redis: [node(bench, "socket-io.mjs", redis.port) for _ in range(2)],
        True,
        ["--dialect=socket.io"],
        "/socket.io/",
        set(),
    ),
    "ws": ("`ws` with a Map, one", lambda bench, _: [node(bench, "ws.mjs")], False, [], "/", set()),
}

SCENARIOS = {
    "stream-3000": ["stream", "--users=50", "--duration=8s", "--warmup=2s"],
    "stream-12000": ["stream", "--users=200", "--duration=8s", "--warmup=2s"],
    "storm": ["storm", "--users=500", "--rate=200", "--duration=6s", "--warmup=1s"],
    "overwrite": ["overwrite", "--users=200", "--rate=50", "--duration=15s", "--warmup=0s"],
    "slow": ["slow", "--users=20", "--duration=20s", "--warmup=2s"],
    "idle": ["idle", "--users=5000", "--connect-rate=1000", "--duration=5s", "--warmup=1s"],
}

# The same slow receivers behind a balancer, which takes their frames whether they read or not. They stream, too, as a
# phone does, and their buffer is one that Linux does not close again and again.
BEHIND = ["slow", "--users=20", "--duration=10s", "--warmup=1s", "--direction=both", "--receive-buffer=4608"]


def haproxy(bench, servers):
    """Settings of k8s/balancers/haproxy.cfg, without what asks a relay for its health."""
    port, file = measure.free_port(), bench.folder / "haproxy.cfg"
    lines = "".join(f" server s{index} 127.0.0.1:{server.port}\n" for index, server in enumerate(servers))
    file.write_text(
        "defaults\n mode http\n timeout connect 3s\n timeout client 30s\n timeout server 30s\n timeout tunnel 90s\n"
        f" option forwardfor\n balance leastconn\nlisten peers\n bind 127.0.0.1:{port}\n{lines}"
    )
    return bench.start(["haproxy", "-db", "-f", file], port)


def nginx(bench, servers):
    """Settings of k8s/balancers/nginx.conf, without the hash of users."""
    port, folder = measure.free_port(), Path(bench.enter_context(tempfile.TemporaryDirectory(prefix="duorelay-")))
    # Its worker drops root's rights.
    folder.chmod(0o755)
    lines = " ".join(f"server 127.0.0.1:{server.port};" for server in servers)
    folders = " ".join(f"{name}_temp_path {name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        "worker_processes 1; pid nginx.pid; error_log log; events { worker_connections 8192; }\n"
        f"http {{ access_log off; {folders} upstream peers {{ least_conn; {lines} }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://peers; proxy_http_version 1.1;\n"
        "proxy_set_header Host $host; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n"
        "proxy_read_timeout 90s; proxy_send_timeout 90s; } } }\n"
    )
    return bench.start(["nginx", "-p", folder, "-c", "nginx.conf", "-g", "daemon off;"], port)


BALANCERS = {"HAProxy": haproxy, "nginx": nginx}

US, MS, KB = 1e6, 1e3, 1e-3
# What is read: title, scenario, figure, factor, unit.
ROWS = [
    ("p50 at 3,000 frames/s", "stream-3000", "p50", MS, "ms"),
    ("p99 at 3,000 frames/s", "stream-3000", "p99", MS, "ms"),
    ("p50 at 12,000 frames/s", "stream-12000", "p50", MS, "ms"),
    ("p99 at 12,000 frames/s", "stream-12000", "p99", MS, "ms"),
    ("server CPU per frame at 3,000/s", "stream-3000", "cpu_per_frame", US, "us"),
    ("server CPU per frame at 12,000/s", "stream-12000", "cpu_per_frame", US, "us"),
    ("Redis CPU per frame at 3,000/s", "stream-3000", "redis_cpu_per_frame", US, "us"),
    ("Redis CPU per frame at 12,000/s", "stream-12000", "redis_cpu_per_frame", US, "us"),
    ("RSS per idle connection", "idle", "rss_per_connection", KB, "KB"),
    ("server CPU per handshake and goodbye", "storm", "cpu_per_handshake", US, "us"),
    ("handshake p99 at 200/s", "storm", "handshake_p99", MS, "ms"),
    ("an overwritten device is notified, p99", "overwrite", "told_p99", MS, "ms"),
    ("age of frames over a thin link after 20 s, p99", "slow", "age_end_p99", 1, "s"),
]


def measure_once(scenario, name, balancer=None):
    """One run against servers that were started for it, with its receivers behind a balancer if one is named."""
    _, start, needs_redis, flags, path, _ = SERVERS[name]
    with Bench() as bench:
        redis = bench.redis() if needs_redis else None
        servers = start(bench, redis)
        redis_url = redis and f"redis://127.0.0.1:{redis.port}"
        kind, *load = BEHIND if balancer else SCENARIOS[scenario]
        if balancer:
            load.append(f"--through=ws://127.0.0.1:{BALANCERS[balancer](bench, servers).port}{path}")
        results = bench.load(kind, servers, *load, *flags, path=path, redis_url=redis_url, reads="process")
        figures = results["figures"]
        if balancer:
            say(f"  {name}: p99 of the age of frames after 10 s {figures['age_end_p99']:.3g} s")
        else:
            say(f"  {name}: " + ", ".join(f"{title} {figures[figure] * factor:.3g} {unit}" for title, of, figure, factor, unit in ROWS if of == scenario and figure in figures))
        for what, counts in results["counts"].items():
            if counts:
                say(f"    {what}: {counts}")
        return figures


def run(scenarios, names, rounds):
    for scenario in scenarios:
        able = [name for name in names if scenario not in SERVERS[name][5]]
        runs = {name: [] for name in able}
        for turn in range(rounds):
            say(f"{scenario}, round {turn + 1} of {rounds}")
            for name in able:
                runs[name].append(measure_once(scenario, name))
        for name in able:
            keep(scenario, name, {"rounds": rounds, "figures": medians(runs[name])})


def run_behind(names, rounds):
    """The slow receivers behind each balancer; one instance of the relay says nothing that two do not."""
    for balancer in BALANCERS:
        for name in (name for name in names if name != "duorelay-one"):
            say(f"behind {balancer}: {name}")
            runs = [measure_once("slow", name, balancer) for _ in range(rounds)]
            keep(f"behind {balancer}", name, {"machine": measure.machine(), "rounds": rounds, "figures": medians(runs)})


def keep(scenario, name, result):
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if scenario in SCENARIOS:
        results["machine"] = measure.machine()
    results.setdefault(scenario, {})[name] = result
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def figure(results, scenario, name, which):
    with contextlib.suppress(KeyError):
        return results[scenario][name]["figures"][which]


def report(results):
    """The table; in brackets, how many times duorelay: one instance for `ws`, which is one, two for the others."""
    head = ["", *(title for title, *_ in SERVERS.values()), "duorelay / floor"]
    rows = []
    for title, scenario, which, factor, unit in ROWS:
        ours, least = figure(results, scenario, "duorelay", which), figure(results, scenario, "floor", which)
        cells = []
        for name in SERVERS:
            value = figure(results, scenario, name, which)
            base = figure(results, scenario, "duorelay-one", which) if name == "ws" else ours
            ratio = f" ({digits(value / base)})" if value is not None and base and not name.startswith("duorelay") else ""
            cells.append("-" if value is None else digits(value * factor) + ratio)
        rows.append([f"{title}, {unit}", *cells, digits(ours / least) if ours and least else ""])
    cells = []
    for name in SERVERS:
        left = [figure(results, "overwrite", name, f"{count}_left") for count in ("none", "one", "both")]
        cells.append("-" if None in left else " / ".join(f"{count:.0f}" for count in left))
    rows.append(["two desktops at the same instant: none / exactly one / both left", *cells, ""])
    cells = []
    for name in SERVERS:
        wrong = [
            figure(results, scenario, name, which)
            for scenario in ("stream-3000", "stream-12000")
            for which in ("wrong_user", "duplicates", "out_of_order", "vanished", "superseded")
        ]
        cells.append("-" if None in wrong else digits(sum(wrong)))
    rows.append(["frames to a wrong user, doubled, out of order, missing (both streams)", *cells, ""])
    return table(head, rows)


def report_behind(results):
    """Seconds of age at the end; in brackets, how many times duorelay's."""
    rows = []
    for name, (title, *_) in SERVERS.items():
        ages = [figure(results, f"behind {balancer}", name, "age_end_p99") for balancer in BALANCERS]
        ours = [figure(results, f"behind {balancer}", "duorelay", "age_end_p99") for balancer in BALANCERS]
        ratio = lambda age, base: f" ({digits(age / base)})" if base and name != "duorelay" else ""
        if None not in ages:
            rows.append([title, *(f"{digits(age)}{ratio(age, base)}" for age, base in zip(ages, ours))])
    return table(["age of frames after 10 s, p99, s", *(f"behind {balancer}" for balancer in BALANCERS)], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one; repeatable")
    parser.add_argument("--server", action="append", choices=SERVERS, help="only this one; repeatable")
    parser.add_argument("--balancers", action="store_true", help="only the slow receivers behind HAProxy and nginx, once each")
    parser.add_argument("--rounds", type=int, help="runs of each, of which the median is taken (default 3, behind balancers 1)")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the tables from results.json")
    options = parser.parse_args()
    if not options.table and not options.balancers:
        run(options.scenario or SCENARIOS, options.server or SERVERS, options.rounds or 3)
    if options.balancers or not (options.table or options.scenario):
        run_behind(options.server or SERVERS, options.rounds or 1)
    results = json.loads(RESULTS.read_text())
    text, behind = report(results), report_behind(results)
    print(f"{text}\n\n{behind}")
    if behind_machine := results.get("behind nginx", {}).get("duorelay", {}).get("machine"):
        measure.fill(TOP / "tests/peers/README.md", "balancers", f"{textwrap.fill(behind_machine, 109)}.\n\n{behind}")
    for page in ("tests/peers/README.md", "tests/README.md"):
        if "<!-- peers -->" in (TOP / page).read_text():
            measure.fill(TOP / page, "peers", f"{textwrap.fill(results['machine'], 109)}.\n\n{text}")


main()
