"""What measurements are made of: servers to start, the load generator, medians, tables and charts.

Used by tests/peers and tests/scaling. Python's standard library, openssl, redis-server and redis-cli are all it takes.
"""

import base64
import contextlib
import http.server
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

TOP = Path(__file__).parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target")).resolve()
# `debug` measures what the tests have built: for ages and counts, not for CPU.
BUILT = TARGET / os.environ.get("DUORELAY_PROFILE", "release")
PROGRAM = Path(os.environ.get("DUORELAY_BIN", BUILT / "duorelay"))
PEERS = BUILT / "examples" / "loadtest"
ISSUER, AUDIENCE, KID = "https://securetoken.google.com/measured", "measured", "k1"
# How long a server may take until it answers.
START_LIMIT = 30
# A run is broken off after its own time and this.
SLACK = 90


def say(text):
    print(text, file=sys.stderr, flush=True)


def free_port():
    """Below the range of outgoing connections, and with a port 10000 above, where a node of a cluster has its bus."""
    while True:
        port = 11000 + int.from_bytes(os.urandom(2)) % 9000
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10000))
            return port


def machine():
    """One line on where this was measured, and when."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", text)
    cpu = model[1].strip() if model else platform.machine()
    redis = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"v=([\d.]+)", redis)
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({cpu}), Linux {platform.release().split('-')[0]}, "
        f"Redis {version[1] if version else '?'}, loopback; the generator and Redis share the cores with the servers"
    )


class Server:
    """A process that is measured."""

    def __init__(self, process, port, log, admin=None):
        self.process, self.port, self.log, self.admin = process, port, log, admin
        self.pid = process.pid

    def rss(self):
        """In bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def metrics(self):
        """Name and labels to value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line and line[0] != "#"]
        return {line.split(" ")[0] if "{" not in line else line[: line.rindex("}") + 1]: float(line.split()[-1]) for line in lines}

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Bench(contextlib.ExitStack):
    """Servers and an issuer of tokens, until the end of the `with`."""

    def __enter__(self):
        super().__enter__()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="duorelay-")))
        self.key, self.public_key = self.folder / "key.pem", self.folder / "public.pem"
        openssl = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.key]
        subprocess.run(openssl, check=True, capture_output=True)
        subprocess.run(["openssl", "rsa", "-in", self.key, "-pubout", "-out", self.public_key], check=True, capture_output=True)
        self.jwks_url = self._serve_keys()
        self._servers = 0
        # Cores of servers and Redis, and of the generator, as `taskset` names them; none: all.
        self.cores = None
        return self

    def _serve_keys(self):
        modulus = subprocess.run(
            ["openssl", "rsa", "-in", self.key, "-noout", "-modulus"], check=True, capture_output=True, text=True
        ).stdout
        number = bytes.fromhex(modulus.strip().split("=")[1])
        n = base64.urlsafe_b64encode(number).rstrip(b"=").decode()
        body = json.dumps({"keys": [{"kty": "RSA", "kid": KID, "alg": "RS256", "use": "sig", "e": "AQAB", "n": n}]}).encode()

        class Keys(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("cache-control", "max-age=86400")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.callback(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}/keys"

    def _pinned(self, command, which):
        return ["taskset", "--cpu-list", str(self.cores[which]), *command] if self.cores else command

    def start(self, command, port, environment=(), admin=None, answers=None):
        """Starts a process and waits until its port takes connections, or until `answers()`."""
        self._servers += 1
        log = self.folder / f"{self._servers}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._pinned([str(part) for part in command], 0),
                env={"PATH": os.environ["PATH"], **dict(environment)},
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        server = Server(process, port, log, admin)
        self.callback(server.stop)

        def connects():
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True

        deadline = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(OSError):
                if (answers or connects)():
                    return server
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)

    def redis(self, *arguments):
        """One Redis that stores nothing."""
        port = free_port()
        command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return self.start([*command, "--dir", self.folder, *arguments], port)

    def redis_cluster(self, nodes=3):
        """The masters of a Redis cluster without replicas."""
        servers = []
        for _ in range(nodes):
            own = self.folder / f"node-{len(servers)}.conf"
            servers.append(self.redis("--cluster-enabled", "yes", "--cluster-config-file", own))
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "0", "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        return servers

    def relay(self, redis_url=None, command=(PROGRAM, "serve"), **settings):
        """One instance of the relay with one worker, unless said otherwise."""
        port, admin = free_port(), free_port()
        environment = {
            "DUORELAY_LISTEN": f"127.0.0.1:{port}",
            "DUORELAY_ADMIN_LISTEN": f"127.0.0.1:{admin}",
            "FIREBASE_PROJECT_ID": AUDIENCE,
            "DUORELAY_JWKS_URL": self.jwks_url,
            "DUORELAY_HANDSHAKES_PER_SECOND_PER_IP": "0",
            "DUORELAY_DRAIN_DELAY_SECONDS": "0",
            "DUORELAY_DRAIN_SECONDS": "1",
            "DUORELAY_WORKERS": "1",
            "LOG_FORMAT": "json",
            **{name: str(value) for name, value in settings.items()},
        }
        if redis_url:
            environment["REDIS_URL"] = redis_url

        def ready():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz/ready", timeout=1) as answer:
                return answer.status == 200

        return self.start(command, port, environment.items(), admin, ready)

    def load(self, scenario, servers, *flags, path="/ws", redis_url=None, reads="metrics", meanwhile=None):
        """Runs the load generator against servers; its results. It reads their `metrics`, their `process`, or nothing."""
        # Only the peers' generator reads the figures of processes.
        generator = [PEERS] if reads == "process" else [PROGRAM, "loadtest"]
        command = [*generator, scenario, "--json=-", "--progress=off"]
        command += ["--signing-key", self.key, "--issuer", ISSUER, "--audience", AUDIENCE, "--kid", KID]
        for server in servers:
            command += ["--url", f"ws://127.0.0.1:{server.port}{path}"]
            if reads == "metrics":
                command += ["--metrics", f"http://127.0.0.1:{server.admin}/metrics"]
            elif reads == "process":
                command += ["--process", server.pid]
        if redis_url:
            command += ["--redis-url", redis_url]
        command = self._pinned([str(part) for part in [*command, *flags]], 1)
        seconds = [float(flag.partition("=")[2].rstrip("s")) for flag in command if flag.startswith(("--duration=", "--warmup="))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            seen = meanwhile() if meanwhile else None
            out, err = process.communicate(timeout=sum(seconds) + SLACK)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        if not out.strip():
            logs = "\n".join(server.log.read_text()[-500:] for server in servers)
            raise SystemExit(f"{' '.join(command)}\n{err}\n{logs}")
        results = json.loads(out)
        if seen is not None:
            results["meanwhile"] = seen
        return results


def redis_cpu(results):
    """Seconds of Redis's CPU between the first and the last reading; None without."""
    readings = [reading["redis"]["cpu"] for reading in results["readings"] if reading["redis"]]
    return readings[-1] - readings[0] if len(readings) > 1 else None


def medians(runs):
    """The median of each figure over several runs."""
    names = {name for run in runs for name in run}
    values = {name: [run[name] for run in runs if run.get(name) is not None] for name in names}
    return {name: statistics.median(several) for name, several in sorted(values.items()) if several}


def digits(value):
    if value == 0 or value >= 99.5:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def table(head, rows):
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def fill(path, name, text):
    """Puts `text` between `<!-- name -->` and `<!-- /name -->` of a page."""
    page = path.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in page or end not in page:
        raise SystemExit(f"{path} has no place for {name}")
    head, rest = page.split(begin, 1)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def chart(path, title, x_label, y_label, series, note=""):
    """Lines over a logarithmic x axis as SVG: `series` maps a name to [(x, y)]."""
    import math

    width, height, left, right, top, bottom = 640, 320, 64, 150, 36, 48
    points = [point for line in series.values() for point in line]
    xs = sorted({x for x, _ in points})
    low, high = math.log(xs[0]), math.log(xs[-1]) if xs[-1] > xs[0] else math.log(xs[0]) + 1
    largest = max(y for _, y in points)
    step = 10 ** math.floor(math.log10(largest)) if largest > 0 else 1
    step = next(step * factor for factor in (0.2, 0.5, 1, 2) if largest / (step * factor) <= 6)
    most = step * math.ceil(largest / step)
    at_x = lambda x: left + (math.log(x) - low) / (high - low) * (width - left - right)
    at_y = lambda y: height - bottom - y / most * (height - top - bottom)
    colours = ["#0b6e99", "#c4561d", "#4d8b31", "#7b4fa3", "#8a6d00"]
    # A background of its own: pages in dark mode show the picture as it is.
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20" font-size="14" fill="#222">{title}</text>',
    ]
    for index in range(round(most / step) + 1):
        y = index * step
        svg.append(f'<path d="M{left} {at_y(y):.1f}H{width - right}" stroke="#ddd"/>')
        svg.append(f'<text x="{left - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end" fill="#444">{y:g}</text>')
    for x in xs:
        svg.append(f'<text x="{at_x(x):.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#444">{x:,}</text>')
    svg.append(f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle" fill="#222">{x_label}</text>')
    svg.append(
        f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle" fill="#222">{y_label}</text>'
    )
    ends = []
    for (name, line), colour in zip(series.items(), colours):
        line = sorted(line)
        path_data = " ".join(f"{'L' if index else 'M'}{at_x(x):.1f} {at_y(y):.1f}" for index, (x, y) in enumerate(line))
        svg.append(f'<path d="{path_data}" fill="none" stroke="{colour}" stroke-width="2"/>')
        svg += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        ends.append([at_y(line[-1][1]) + 4, name, colour])
    ends.sort()
    for before, after in zip(ends, ends[1:]):
        after[0] = max(after[0], before[0] + 15)
    svg += [f'<text x="{width - right + 10}" y="{y:.1f}" fill="{colour}">{name}</text>' for y, name, colour in ends]
    if note:
        svg.append(f'<desc>{note}</desc>')
    path.write_text("\n".join([*svg, "</svg>"]) + "\n")
