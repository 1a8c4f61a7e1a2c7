"""What is seen of relays: the metrics' form, before and after traffic over Redis, and what Prometheus makes of them
with the scrape configuration, the alerts and the dashboard that are shipped.

Needs redis-server; the last part needs Prometheus (Debian's package of that name).
"""

import json
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import prometheus_client.openmetrics.parser as openmetrics
import prometheus_client.parser as older
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from shipped import TOP, Relay, load, of_kind, read, seconds, setting

LABELS = {"cause", "code", "device", "lane", "le", "path", "protocol", "queue", "result", "version"}
# Section 5 of the contract: each family's labels.
CONTRACT = {
    "duorelay_connections": {"device", "protocol"},
    "duorelay_handshakes": {"result"},
    "duorelay_frames": {"lane", "path"},
    "duorelay_frame_bytes": {"lane", "path"},
    "duorelay_dropped": {"cause"},
    "duorelay_overwritten": {"cause"},
    "duorelay_closes": {"code"},
    "duorelay_relay_seconds": set(),
    "duorelay_claim_seconds": set(),
    "duorelay_backplane_up": set(),
    "duorelay_backplane_probe_seconds": set(),
    "duorelay_backplane_gaps": set(),
}
RULES = load("k8s/observe/rules.yml")
DASHBOARD = json.loads(read("k8s/observe/duorelay.json"))
LIMIT = 20
# Streams of both lanes, and how many frames of each a device sends.
STREAMS, FRAMES = (0x01, 0x80), 20


def free_port():
    """Below the range of outgoing connections, any of which could take it meanwhile."""
    while True:
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", random.randrange(10_000, 30_000)))
                return found.getsockname()[1]
            except OSError:
                pass


def wait_for(what, limit=LIMIT):
    """The first answer of `what` that is true."""
    end = time.monotonic() + limit
    while not (answer := what()):
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.05)
    return answer


class Fleet:
    """Two demos that share a Redis."""

    def __enter__(self):
        self.directory, port = tempfile.TemporaryDirectory(), free_port()
        self.redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", self.directory.name],
            stdout=subprocess.DEVNULL)
        command = ["demo", "--redis-url", f"redis://127.0.0.1:{port}"]
        # The alert about what is nearly full is of no use without a limit, nor is it an error.
        self.relays = [Relay(command, {}), Relay(command, {"DUORELAY_MAX_CONNECTIONS": "0"})]
        wait_for(lambda: all(self.is_ready(relay) for relay in self.relays))
        return self

    def __exit__(self, *_):
        for relay in self.relays:
            relay.__exit__()
        self.redis.kill()
        self.redis.wait()
        self.directory.cleanup()

    def is_ready(self, relay):
        try:
            return urllib.request.urlopen(f"http://{relay.address}/healthz/ready", timeout=LIMIT).status == 200
        except urllib.error.HTTPError:
            return False

    def open(self, sockets, relay, device, token):
        url = f"ws://{relay.address}/ws?device={device}"
        opened = sockets.enter_context(connect(url, subprotocols=["duorelay.v1", token], compression=None, open_timeout=LIMIT))
        assert json.loads(opened.recv(LIMIT))["type"] == "welcome"
        return opened

    def traffic(self):
        """Both lanes both ways through Redis, frames to nobody, an overwrite, a refused handshake."""
        here, there = self.relays
        body = json.dumps({"user": "ada"}).encode()
        asked = urllib.request.Request(f"http://{here.address}/demo/token", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=LIMIT) as answer:
            token = json.load(answer)["token"]
        with ExitStack() as sockets:
            try:
                self.open(sockets, here, "desktop", "a.b.c")
                raise AssertionError("a bad token was accepted")
            except InvalidStatus as refused:
                assert refused.response.status_code == 403

            desktop = self.open(sockets, here, "desktop", token)
            desktop.send(b"\x01to nobody")
            mobile = self.open(sockets, there, "mobile", token)
            assert json.loads(desktop.recv(LIMIT))["type"] == "peer"
            for sender, receiver in ((desktop, mobile), (mobile, desktop)):
                for number in range(FRAMES):
                    for stream in STREAMS:
                        frame = bytes([stream, number])
                        sender.send(frame)
                        # One at a time: none is replaced by a newer one.
                        assert receiver.recv(LIMIT) == frame
            self.open(sockets, there, "mobile", token)
            assert json.loads(mobile.recv(LIMIT))["type"] == "overwritten"


class Prometheus:
    """A Prometheus with the shipped configuration, except that it has a list of relays and does not ask DNS."""

    def __init__(self, relays):
        configuration = load("k8s/compose/prometheus.yml")
        (scraped,) = configuration["scrape_configs"]
        del scraped["dns_sd_configs"]
        scraped["static_configs"] = [{"targets": [relay.admin for relay in relays]}]
        self.rate_interval = 4 * seconds(configuration["global"]["scrape_interval"])
        self.evaluation = seconds(configuration["global"]["evaluation_interval"])
        self.directory, self.port = tempfile.TemporaryDirectory(), free_port()
        home = Path(self.directory.name)
        (home / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        shutil.copy(TOP / "k8s/observe/rules.yml", home)
        self.log = home / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                # It listens before it is ready.
                if error.code == 503:
                    return None
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        except urllib.error.URLError:
            assert self.process.poll() is None, self.log.read_text()
            return None

    def query(self, expression):
        return self.get("query", query=expression)["result"]

    def value(self, expression):
        """The only value; 0 as long as there is none."""
        return sum(float(found["value"][1]) for found in self.query(expression))

    def targets(self):
        return (self.get("targets", state="active") or {}).get("activeTargets", [])

    def rules(self):
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


class Metrics(unittest.TestCase):
    """What relays report, read by Prometheus's own parsers in both formats."""

    @classmethod
    def setUpClass(cls):
        with Relay(["serve"], {"FIREBASE_PROJECT_ID": "my-project"}) as relay:
            cls.before = [scrape(relay, *each) for each in FORMATS]
        with Fleet() as fleet:
            fleet.traffic()
            cls.after = [[scrape(relay, *each) for each in FORMATS] for relay in fleet.relays]

    def test_they_are_well_formed_before_and_after_traffic(self):
        for current, text in [self.before, *self.after]:
            self.assertEqual(set(current) - {"duorelay_build"}, set(text) - {"duorelay_build_info"})
            for name, family in current.items():
                with self.subTest(name):
                    self.assert_well_formed(name, family)

    def assert_well_formed(self, name, family):
        self.assertRegex(name, r"^(duorelay|process)_[a-z]+(_[a-z]+)*$")
        self.assertGreater(len(family.documentation), 5)
        self.assertIn(family.type, ("counter", "gauge", "histogram", "info"))
        for unit in ("seconds", "bytes"):
            self.assertEqual(family.unit == unit, name.endswith(f"_{unit}"))
        if family.type == "counter":
            self.assertFalse(name.endswith("_total"), "the format adds it")
        seen = series(family)
        self.assertEqual(len(seen), len(family.samples), "a series is there twice")
        self.assertLessEqual(len(seen), 25, "a label has too many values")
        for sample in family.samples:
            self.assertLessEqual(set(sample.labels), LABELS)
            self.assertTrue(all(re.fullmatch(r"[a-z0-9_.+-]+|\+Inf", value) for value in sample.labels.values()))

    def test_the_contracts_are_there_from_the_start(self):
        current, _ = self.before
        for name, labels in CONTRACT.items():
            with self.subTest(name):
                samples = current[name].samples
                self.assertTrue(samples)
                self.assertEqual(set(samples[0].labels) - {"le"}, labels)
        values = {sample.labels["result"] for sample in current["duorelay_handshakes"].samples}
        self.assertGreater(len(values), 15)
        self.assertEqual(len(current["duorelay_connections"].samples), 4)

    def test_traffic_changes_values_and_adds_no_series(self):
        """Nothing that a client sends becomes a label."""
        for formats in self.after:
            for before, after in zip(self.before, formats):
                self.assertEqual(set(before), set(after))
                for name in before:
                    self.assertEqual(series(before[name]), series(after[name]))

    def test_traffic_is_counted(self):
        (here, _), (there, _) = self.after
        for relay in (here, there):
            for lane in ("volatile", "reliable"):
                self.assertEqual(value(relay, "duorelay_frames_total", lane=lane, path="backplane"), FRAMES)
                self.assertEqual(value(relay, "duorelay_frames_total", lane=lane, path="local"), 0)
                self.assertEqual(value(relay, "duorelay_frame_bytes_total", lane=lane, path="backplane"), 2 * FRAMES)
            self.assertGreaterEqual(value(relay, "duorelay_claim_seconds_count"), 1)
            self.assertEqual(value(relay, "duorelay_backplane_up"), 1)
            self.assertLess(0, value(relay, "duorelay_backplane_probe_seconds"))
        self.assertEqual(value(here, "duorelay_handshakes_total", result="malformed_token"), 1)
        self.assertEqual(value(here, "duorelay_dropped_total", cause="peer_absent"), 1)
        self.assertEqual(value(there, "duorelay_overwritten_total", cause="eviction"), 1)
        self.assertEqual(value(there, "duorelay_closes_total", code="4001"), 1)

    def test_alerts_are_about_metrics_that_exist(self):
        for rule in RULES["groups"][0]["rules"]:
            self.assert_known(rule["expr"])
            self.assertTrue(rule["annotations"]["summary"] and rule["annotations"]["description"])
        self.assertEqual(of_kind("gke", "PrometheusRule")["spec"], RULES, "rules.yml and prometheusrule.yaml differ")

    def test_the_dashboard_is_about_metrics_that_exist(self):
        self.assertGreater(len(expressions()), 10)
        for expression in expressions():
            self.assert_known(expression)
        (source,) = load("k8s/compose/grafana/datasources/prometheus.yml")["datasources"]
        self.assertEqual({panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}, {source["uid"]})

    def test_instances_are_added_before_they_are_full(self):
        (pods,) = [it["pods"] for it in of_kind("gke", "HorizontalPodAutoscaler")["spec"]["metrics"] if it["type"] == "Pods"]
        self.assert_known(pods["metric"]["name"])
        limit = setting(of_kind("gke", "ConfigMap")["data"], "DUORELAY_MAX_CONNECTIONS")
        self.assertLess(int(pods["target"]["averageValue"]), 0.8 * limit)

    def test_every_metric_stands_in_the_documents_and_nothing_else_does(self):
        wire, operating = read("src/relay/README.md"), read("k8s/OPERATING.md")
        _, text = self.before
        counted = {name if family.type != "counter" else f"{name}_total" for name, family in text.items()}
        described = {name for row in (wire + operating).splitlines() if row.startswith("| `") for name in names(row.split(" | ")[0])}
        self.assertEqual(described - counted, set())
        self.assertEqual(counted - described, set())
        causes = {sample.labels["cause"] for sample in text["duorelay_dropped"].samples}
        row = next(row for row in wire.splitlines() if row.startswith("| `duorelay_dropped_total`"))
        self.assertEqual(set(re.findall(r"`(\w+)`", row.split(" | ")[1])) - {"cause"}, causes)

    def assert_known(self, expression):
        for name in names(expression):
            self.assertIn(re.sub(r"_(total|bucket|sum|count|info)$", "", name), self.before[0], expression)


@unittest.skipUnless(shutil.which("prometheus"), "prometheus is not installed (Debian's package prometheus)")
class Scraped(unittest.TestCase):
    """A real Prometheus in front of real relays."""

    def test_targets_are_up_and_every_question_of_the_dashboard_and_the_alerts_has_an_answer(self):
        with Fleet() as fleet, Prometheus(fleet.relays) as prometheus:
            wait_for(lambda: [target["health"] for target in prometheus.targets()] == ["up", "up"])
            self.assertEqual([target["lastError"] for target in prometheus.targets()], ["", ""])
            # A rate needs two looks: one that has seen nothing, and one that has seen the traffic.
            wait_for(lambda: prometheus.value("count(duorelay_frames_total)") == 8)
            self.assertEqual(prometheus.value("sum(duorelay_frames_total)"), 0)
            fleet.traffic()
            wait_for(lambda: prometheus.value("sum(duorelay_frames_total)") == 4 * FRAMES)

            alerts = [rule["expr"] for rule in RULES["groups"][0]["rules"]]
            for name in set().union(*map(names, expressions() + alerts)):
                with self.subTest(name):
                    found = {it["metric"]["instance"] for it in prometheus.query(name)}
                    self.assertEqual(found, {relay.admin for relay in fleet.relays})
            for expression in expressions():
                with self.subTest(expression):
                    asked = expression.replace("$__rate_interval", f"{prometheus.rate_interval}s").replace("$instance", ".*")
                    self.assertTrue(prometheus.query(asked), "no data")
            for counted in (
                'duorelay_frames_total{lane="volatile",path="backplane"}', 'duorelay_frames_total{lane="reliable",path="backplane"}',
                'duorelay_handshakes_total{result="malformed_token"}', 'duorelay_overwritten_total{cause="eviction"}',
                'duorelay_closes_total{code="4001"}', 'duorelay_dropped_total{cause="peer_absent"}', "duorelay_relay_seconds_count",
                "duorelay_claim_seconds_count", "duorelay_verify_seconds_count",
            ):
                with self.subTest(counted):
                    self.assertGreater(prometheus.value(f"sum(rate({counted}[{prometheus.rate_interval}s]))"), 0)

            with self.subTest("the rules are evaluated without an error, and all is well"):
                wait_for(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()), 2 * prometheus.evaluation)
                for rule in prometheus.rules():
                    self.assertEqual((rule["health"], rule.get("lastError"), rule["state"]), ("ok", None, "inactive"), rule["name"])
                self.assertEqual({rule["name"] for rule in prometheus.rules()}, {rule["alert"] for rule in RULES["groups"][0]["rules"]})
            with self.subTest("without Redis an alert begins"):
                fleet.redis.kill()
                states = lambda: {rule["name"]: rule["state"] for rule in prometheus.rules()}
                wait_for(lambda: states()["DuorelayBackplaneDown"] == "pending", LIMIT + prometheus.evaluation)


def names(expression):
    return set(re.findall(r"\b(?:duorelay|process)_\w+", expression))


def expressions():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def series(family):
    return {(sample.name, *sorted(sample.labels.items())) for sample in family.samples}


def value(families, name, **labels):
    (found,) = [it.value for family in families.values() for it in family.samples if (it.name, it.labels) == (name, labels)]
    return found


FORMATS = [
    ("application/openmetrics-text", openmetrics.text_string_to_metric_families),
    ("text/plain", older.text_string_to_metric_families),
]


def scrape(relay, accept, parse):
    """The families by their names."""
    request = urllib.request.Request(f"http://{relay.admin}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith(accept), answer.headers["Content-Type"]
        found = list(parse(answer.read().decode()))
    families = {family.name: family for family in found}
    assert len(families) == len(found), "a family is there twice"
    return families


if __name__ == "__main__":
    unittest.main()
