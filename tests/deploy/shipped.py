"""What is shipped, as its platforms read it, and the program that it is for.

tests/deploy/run sets DUORELAY (the binary) and KUBECTL (which builds the overlays).
"""

import json
import os
import re
import select
import subprocess
import time
import tomllib
from pathlib import Path

import yaml

TOP = Path(__file__).parents[2]
DUORELAY = os.environ["DUORELAY"]


def read(path):
    return (TOP / path).read_text()


def load(path):
    return yaml.safe_load(read(path))


def interpolated(text):
    """`${NAME:-default}` without NAME, as Compose reads it."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


def kustomize(overlay):
    built = subprocess.run([os.environ["KUBECTL"], "kustomize", TOP / "k8s" / overlay], capture_output=True, text=True)
    assert built.returncode == 0 and not built.stderr, f"{overlay}: {built.stderr}"
    return [found for found in yaml.safe_load_all(built.stdout) if found]


HELP = subprocess.run([DUORELAY, "serve", "--help"], capture_output=True, text=True, check=True).stdout
DEFAULTS = {name: default for default, name in re.findall(r"(?:\[default: ([^\]]*)\] )?\[env: (\w+)\]", HELP)}
VERSION = tomllib.loads(read("Cargo.toml"))["package"]["version"]
COMPOSE = load("docker-compose.yml")
APP = load("app.yaml")
HAPROXY = read("k8s/balancers/haproxy.cfg")
# How long an instance may take beyond drain delay and drain time.
AFTER_DRAIN = 2
OVERLAYS = {name: kustomize(f"overlays/{name}") for name in ("local", "gke")}


def of_kind(overlay, kind, name="duorelay"):
    found = [it for it in OVERLAYS[overlay] if it["kind"] == kind and re.fullmatch(rf"{name}(-\w{{10}})?", it["metadata"]["name"])]
    assert len(found) == 1, f"{overlay} has {len(found)} {kind} {name}"
    return found[0]


def relay_pod(overlay):
    return of_kind(overlay, "Deployment")["spec"]["template"]


def relay_container(overlay):
    (container,) = relay_pod(overlay)["spec"]["containers"]
    return container


def setting(environment, name):
    return float(environment.get(name) or DEFAULTS[name])


class Relay:
    """A relay with this environment, on free ports; its log until it listens or ends."""

    def __init__(self, command, environment):
        own = {"DUORELAY_LISTEN": "127.0.0.1:0", "DUORELAY_ADMIN_LISTEN": "127.0.0.1:0", "REDIS_URL": "redis://127.0.0.1:1"}
        self.process = subprocess.Popen(
            [DUORELAY, *command], env={**environment, **own, "LOG_FORMAT": "json"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
        self.log = ""
        deadline = time.monotonic() + 20
        while "duorelay listens" not in self.log:
            assert select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0], f"silent: {self.log}"
            text = self.process.stdout.read(65536).decode()
            if not text:
                break
            self.log += text
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        listens = next((line for line in lines if line.get("message") == "duorelay listens"), {})
        self.address, self.admin = listens.get("address"), listens.get("admin.address")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def leaving(environment):
    return setting(environment, "DUORELAY_DRAIN_DELAY_SECONDS") + setting(environment, "DUORELAY_DRAIN_SECONDS") + AFTER_DRAIN


def find(tree, key):
    """All values of `key`, however deep."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from find(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from find(value, key)
