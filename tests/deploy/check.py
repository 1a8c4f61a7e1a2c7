"""What is shipped agrees with the program and with itself.

docker-compose.yml, k8s/, app.yaml and the Dockerfile are read as their platforms read them, and held against
the real binary: its settings, its ports, its probes, the time it takes to leave. So is the page of settings.
"""

import ipaddress
import json
import re
import subprocess
import tomllib
import unittest
import urllib.error
import urllib.request

import kubernetes_validate
import yaml
from google.appengine.api import appinfo, yaml_errors

from shipped import (
    AFTER_DRAIN, APP, COMPOSE, DEFAULTS, DUORELAY, HAPROXY, OVERLAYS, TOP, VERSION, Relay, find, interpolated, leaving,
    load, of_kind, read, relay_container, relay_pod, seconds, setting,
)

KUBERNETES = "1.35"
# Kinds of the cluster's own extensions: kubernetes-validate has no schema of them, and schemas.mjs has.
EXTENSIONS = {"cloud.google.com/v1", "networking.gke.io/v1", "networking.gke.io/v1beta1", "monitoring.coreos.com/v1"}
# What a person fills in, and what the tests do.
FILL_IN = {"PROJECT_ID": "my-project", "MEMORYSTORE_IP": "127.0.0.1", "BALANCER_IP": "203.0.113.7"}


def filled(text):
    return re.sub(rf"(?<![A-Z_])({'|'.join(FILL_IN)})(?![A-Z_])", lambda word: FILL_IN[word[0]], text)


def environments():
    """What each platform sets for a relay."""
    yield "docker-compose.yml", {k: interpolated(v) for k, v in COMPOSE["services"]["relay"]["environment"].items()}
    for overlay in OVERLAYS:
        yield f"k8s/overlays/{overlay}", of_kind(overlay, "ConfigMap")["data"]
    yield "app.yaml", APP["env_variables"]


class Settings(unittest.TestCase):
    def test_every_variable_exists_and_every_value_is_accepted(self):
        for place, environment in environments():
            with self.subTest(place):
                self.assertLessEqual(set(environment), set(DEFAULTS))
                values = {}
                for name, value in environment.items():
                    self.assertIsInstance(value, str, f"{name} is not text, as environments are")
                    values[name] = filled(value)
                values["FIREBASE_PROJECT_ID"] = values.get("FIREBASE_PROJECT_ID") or "my-project"
                with Relay(["serve"], values) as relay:
                    self.assertIsNotNone(relay.address, relay.log)
                    self.assertNotIn("is not a setting", relay.log)
                    self.assertNotIn("did you mean", relay.log)

    def test_values_to_fill_in_are_refused_until_they_are(self):
        with Relay(["serve"], APP["env_variables"]) as relay:
            self.assertIsNone(relay.address)
            self.assertIn("FIREBASE_PROJECT_ID", relay.log)

    def test_every_command_is_one_of_the_program(self):
        services = COMPOSE["services"]
        commands = [interpolated(services[name]["command"]).split() for name in ("relay", "load")]
        commands += [relay_container(overlay).get("args", ["serve"]) for overlay in OVERLAYS]
        commands += [services["relay"]["healthcheck"]["test"][2:]]
        commands += json.loads(re.search(r'HEALTHCHECK.*CMD (\[.*\])', read("Dockerfile"))[1])[1:],
        commands += json.loads(re.search(r'^CMD (\[.*\])', read("Dockerfile"), re.M)[1]),
        for command in commands:
            with self.subTest(" ".join(command)):
                asked = subprocess.run([DUORELAY, *command, "--help"], capture_output=True, text=True)
                self.assertEqual(asked.returncode, 0, asked.stderr)

    def test_the_page_of_settings_has_the_programs_defaults(self):
        """tests/docs.rs holds its names against the program."""
        rows = [row.split(" | ") for row in read("src/config/README.md").splitlines() if row.startswith("| `")]
        described = {row[0].strip("| `"): row[2].strip() for row in rows}
        self.assertEqual(set(described), set(DEFAULTS))
        for name, default in DEFAULTS.items():
            if re.fullmatch(r"[^\s']+", default):
                self.assertEqual(described[name], default if default in ("none", "any") else f"`{default}`", name)
            elif not default:
                self.assertTrue(described[name] == "none" or described[name].startswith("none"), name)

    def test_secrets_come_from_secrets(self):
        for overlay in OVERLAYS:
            self.assertFalse({"REDIS_URL", "DUORELAY_ADMIN_TOKEN"} & set(of_kind(overlay, "ConfigMap")["data"]))
            self.assertTrue(any("secretRef" in source for source in relay_container(overlay)["envFrom"]))


class Ports(unittest.TestCase):
    def test_the_public_port_is_one(self):
        port = int(DEFAULTS["PORT"])
        self.assertEqual(int(re.search(r"^EXPOSE (\d+)$", read("Dockerfile"), re.M)[1]), port)
        relay, balancer = COMPOSE["services"]["relay"], COMPOSE["services"]["balancer"]
        self.assertEqual(int(relay["environment"]["PORT"]), port)
        self.assertEqual(balancer["environment"]["RELAYS"], f"relay:{port}")
        published = interpolated(balancer["ports"][0]).rsplit(":", 1)
        self.assertEqual(published[0], "127.0.0.1:8080")
        self.assertEqual(balancer["environment"]["LISTEN"], f":{published[1]}")
        for overlay in OVERLAYS:
            self.assertEqual(int(of_kind(overlay, "ConfigMap")["data"]["PORT"]), port)
            self.assertEqual(container_ports(overlay)["public"], port)
        self.assertEqual(of_kind("gke", "BackendConfig")["spec"]["healthCheck"]["port"], port)
        # App Engine sets it.
        self.assertNotIn("PORT", APP["env_variables"])

    def test_the_admin_port_is_one_and_not_published(self):
        port = int(DEFAULTS["DUORELAY_ADMIN_LISTEN"].rsplit(":", 1)[1])
        for place, environment in environments():
            if place != "app.yaml":
                self.assertEqual(environment["DUORELAY_ADMIN_LISTEN"], f"0.0.0.0:{port}", place)
        self.assertNotIn("DUORELAY_ADMIN_LISTEN", APP["env_variables"], "its port would be the machine's")
        (scraped,) = load("k8s/compose/prometheus.yml")["scrape_configs"]
        self.assertEqual(scraped["dns_sd_configs"][0]["port"], port)
        self.assertNotIn("ports", COMPOSE["services"]["relay"])
        for overlay in OVERLAYS:
            self.assertEqual(container_ports(overlay)["admin"], port)
            service = of_kind(overlay, "Service")["spec"]["ports"]
            self.assertEqual([entry["targetPort"] for entry in service], ["public"])

    def test_every_port_that_is_named_exists(self):
        for overlay, objects in OVERLAYS.items():
            services = {it["metadata"]["name"]: {entry["name"] for entry in it["spec"]["ports"]} for it in objects if it["kind"] == "Service"}
            for backend in find(objects, "service"):
                self.assertIn(backend["port"]["name"], services[backend["name"]])
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                # Kubelet's decisions must not depend on how many clients the public port has.
                self.assertEqual(relay_container(overlay)[probe]["httpGet"]["port"], "admin")
                self.assertIn("admin", container_ports(overlay))
            rules = of_kind(overlay, "NetworkPolicy")["spec"]["ingress"]
            self.assertEqual({entry["port"] for rule in rules for entry in rule["ports"]}, set(container_ports(overlay)))


class Probes(unittest.TestCase):
    def test_every_probe_is_answered_and_asks_the_right_question(self):
        live, ready = set(), set()
        for overlay in OVERLAYS:
            container = relay_container(overlay)
            live |= {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")}
            ready.add(container["readinessProbe"]["httpGet"]["path"])
        ready.add(of_kind("gke", "BackendConfig")["spec"]["healthCheck"]["requestPath"])
        ready.add(re.search(r"option httpchk GET (\S+)", HAPROXY)[1])
        live.add(APP["liveness_check"]["path"])
        ready.add(APP["readiness_check"]["path"])
        # Without its Redis an instance lives and is not ready.
        with Relay(["serve"], {"FIREBASE_PROJECT_ID": "my-project"}) as relay:
            for address in (relay.address, relay.admin):
                for path in live:
                    self.assertEqual(self.status(address, path), 200, path)
                for path in ready:
                    self.assertEqual(self.status(address, path), 503, path)

    def status(self, address, path):
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code


class Times(unittest.TestCase):
    def test_the_drain_fits_into_each_grace_period(self):
        grace = {"docker-compose.yml": seconds(COMPOSE["services"]["relay"]["stop_grace_period"])}
        for overlay in OVERLAYS:
            pod = relay_pod(overlay)["spec"]
            pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
            grace[f"k8s/overlays/{overlay}"] = pod["terminationGracePeriodSeconds"] - pause
        # https://docs.cloud.google.com/appengine/docs/flexible/custom-runtimes/build: 30 s after SIGTERM.
        grace["app.yaml"] = 30
        for place, environment in environments():
            with self.subTest(place):
                self.assertGreaterEqual(grace[place], leaving(environment) + 2)

    def test_balancers_notice_within_the_drain_delay(self):
        check = dict(zip(*[iter(re.search(r"default-server .*?check (.*)", HAPROXY)[1].split())] * 2))
        worst = seconds(check["inter"]) + (int(check["fall"]) - 1) * seconds(check["fastinter"])
        self.assertLess(worst, leaving(COMPOSE["services"]["relay"]["environment"]) - AFTER_DRAIN)
        self.assertLess(worst, setting(COMPOSE["services"]["relay"]["environment"], "DUORELAY_DRAIN_DELAY_SECONDS"))
        for overlay in OVERLAYS:
            pod = relay_pod(overlay)["spec"]["containers"][0]
            probe = pod["readinessProbe"]
            delay = setting(of_kind(overlay, "ConfigMap")["data"], "DUORELAY_DRAIN_DELAY_SECONDS")
            self.assertLess(probe["periodSeconds"] * probe["failureThreshold"], pod["lifecycle"]["preStop"]["sleep"]["seconds"] + delay)

    def test_balancers_keep_a_socket_until_it_has_moved(self):
        heartbeat = float(DEFAULTS["DUORELAY_HEARTBEAT_SECONDS"])
        # These count silence: a dead socket is dropped after two heartbeats.
        self.assertGreater(seconds(re.search(r"timeout tunnel (\S+)", HAPROXY)[1]), 2 * heartbeat)
        annotations = load("k8s/balancers/ingress-nginx/ingress.yaml")["metadata"]["annotations"]
        for name in ("proxy-read-timeout", "proxy-send-timeout"):
            self.assertGreater(float(annotations[f"nginx.ingress.kubernetes.io/{name}"]), 2 * heartbeat)
        for name in ("proxy_read_timeout", "proxy_send_timeout"):
            self.assertGreater(seconds(re.search(rf"{name} (\S+);", read("k8s/balancers/nginx.conf"))[1]), 2 * heartbeat)
        self.assertGreater(seconds(re.search(r"stream_idle_timeout: (\S+)", read("k8s/balancers/envoy.yaml"))[1]), 2 * heartbeat)
        # These count life: Google's balancer cuts at its configured time, App Engine after 1 h.
        backend = of_kind("gke", "BackendConfig")["spec"]
        gke = of_kind("gke", "ConfigMap")["data"]
        self.assertGreater(backend["timeoutSec"], 1.2 * setting(gke, "DUORELAY_MAX_LIFETIME_SECONDS"))
        self.assertGreaterEqual(backend["connectionDraining"]["drainingTimeoutSec"], relay_pod("gke")["spec"]["terminationGracePeriodSeconds"])
        self.assertGreater(3600, 1.2 * setting(APP["env_variables"], "DUORELAY_MAX_LIFETIME_SECONDS"))


class AppEngine(unittest.TestCase):
    """As Google's own parser of app.yaml reads it (PyPI appengine-python-standard)."""

    def test_the_platform_accepts_it(self):
        app = appinfo.LoadSingleAppInfo(filled(read("app.yaml")))
        self.assertEqual((app.env, app.GetEffectiveRuntime()), ("flex", "custom"))
        self.assertEqual(app.readiness_check.path, "/readiness_check")
        self.assertEqual(app.automatic_scaling.min_num_instances, 2)

    def test_a_misspelled_word_is_found(self):
        with self.assertRaises(yaml_errors.EventError):
            appinfo.LoadSingleAppInfo(filled(read("app.yaml")).replace("session_affinity", "session_afinity"))

    def test_every_hop_of_the_platform_is_trusted(self):
        # CLIENT, the forwarding rule's own address, the machine's nginx: a hop that is missing would be "the client".
        hops = ["203.0.113.7", "169.254.1.1", "130.211.0.9", "35.191.3.3", "172.17.0.1"]
        for place, environment in (("app.yaml", APP["env_variables"]), ("gke", of_kind("gke", "ConfigMap")["data"])):
            trusted = [ipaddress.ip_network(it) for it in filled(environment["DUORELAY_TRUSTED_PROXIES"]).split(",")]
            for hop in hops if place == "app.yaml" else [hops[0], *hops[2:4]]:
                self.assertTrue(any(ipaddress.ip_address(hop) in net for net in trusted), f"{place}: {hop}")

    def test_the_walk_through_raises_the_limit_of_the_build(self):
        self.assertRegex(read("k8s/README.md"), r"gcloud config set app/cloud_build_timeout \d+")


class Allocator(unittest.TestCase):
    def test_it_works_with_every_size_of_page_of_arm64(self):
        # jemalloc is compiled for one size of page, and aborts where the kernel's is larger: up to 64 KiB on arm64.
        cargo = tomllib.loads(read(".cargo/config.toml"))
        # jemalloc's build script reads a name that begins with its target before the bare one.
        for target in ("AARCH64_UNKNOWN_LINUX_GNU", "AARCH64_UNKNOWN_LINUX_MUSL"):
            self.assertEqual(cargo["env"][f"{target}_JEMALLOC_SYS_WITH_LG_PAGE"], "16")
        self.assertIn("COPY .cargo .cargo", read("Dockerfile"))


class Images(unittest.TestCase):
    def test_one_name_and_the_version_of_the_program(self):
        image = f"duorelay:{VERSION}"
        self.assertEqual(COMPOSE["services"]["relay"]["image"], image)
        self.assertEqual(relay_container("local")["image"], image)
        self.assertTrue(relay_container("gke")["image"].endswith(f"/{image}"))
        self.assertIn(f"ARG VERSION={VERSION}\n", read("Dockerfile"))

    def test_packages_and_changelogs_have_the_version_of_the_program(self):
        self.assertEqual(json.loads(read("src/client/js/package.json"))["version"], VERSION)
        self.assertIn(f"\nversion: {VERSION}\n", read("src/client/dart/pubspec.yaml"))
        for page in ("CHANGELOG.md", "src/client/js/CHANGELOG.md", "src/client/dart/CHANGELOG.md"):
            newest = re.search(r"^## \[?([\d.]+)", read(page), re.M)[1]
            self.assertEqual(newest, VERSION, page)

    def test_it_is_built_by_the_toolchain_of_the_project_from_what_the_context_has(self):
        channel = tomllib.loads(read("rust-toolchain.toml"))["toolchain"]["channel"]
        tag = re.search(r"^FROM rust:([\d.]+)-", read("Dockerfile"), re.M)[1]
        self.assertEqual(tag.split("."), channel.split(".")[: len(tag.split("."))])
        allowed = set(re.findall(r"^!(\S+)$", read(".dockerignore"), re.M))
        copied = re.findall(r"^COPY (?!--from)(.*) \S+$", read("Dockerfile"), re.M)
        self.assertEqual({name for names in copied for name in names.split()}, allowed)

    def test_other_images_are_the_same_everywhere_and_pinned(self):
        redis = of_kind("local", "Deployment", "redis")["spec"]["template"]["spec"]["containers"][0]["image"]
        self.assertEqual(redis, COMPOSE["services"]["redis"]["image"])
        for name, service in COMPOSE["services"].items():
            self.assertRegex(service["image"], r":[^:]*\d", name)


class Memory(unittest.TestCase):
    """The formula of tests/README.md, "Limits"."""

    OWN, CONNECTION, DOOR = 30e6, 10e3, 0.85

    def carries(self, limit):
        budget = (limit - self.OWN) / 2
        return (self.DOOR * limit - self.OWN - budget) / self.CONNECTION

    def test_each_limit_carries_the_connections_that_are_let_in(self):
        limits = {"docker-compose.yml": size(COMPOSE["services"]["relay"]["mem_limit"])}
        for overlay in OVERLAYS:
            limits[f"k8s/overlays/{overlay}"] = size(relay_container(overlay)["resources"]["limits"]["memory"])
        limits["app.yaml"] = APP["resources"]["memory_gb"] * 1e9
        for place, environment in environments():
            with self.subTest(place):
                connections = setting(environment, "DUORELAY_MAX_CONNECTIONS")
                self.assertLessEqual(connections, self.carries(limits[place]))
                # Nor is half of the memory for nothing.
                self.assertGreater(connections, self.carries(limits[place]) / 2)

    def test_what_is_requested_carries_what_the_autoscaler_aims_at(self):
        metrics = of_kind("gke", "HorizontalPodAutoscaler")["spec"]["metrics"]
        aim = next(int(it["pods"]["target"]["averageValue"]) for it in metrics if it["type"] == "Pods")
        requested = size(relay_container("gke")["resources"]["requests"]["memory"])
        self.assertGreaterEqual(requested, self.OWN + 2 * aim * self.CONNECTION)

    def test_the_arithmetic_beside_each_number_is_right(self):
        for place in ("docker-compose.yml", "k8s/base/relay.env", "app.yaml"):
            limit, carried = re.search(r"\(0\.35 x ([\d,]+) MB - 15 MB\) / 10 KB = ([\d,]+)", read(place)).groups()
            limit, carried = (int(it.replace(",", "")) for it in (limit, carried))
            self.assertAlmostEqual(self.carries(limit * 1e6), carried, delta=1000, msg=place)


def size(text):
    """Bytes of a memory limit as Kubernetes (1Gi) or Compose (512m) writes it."""
    number, unit = re.fullmatch(r"(\d+)([kmg]|[KMG]i)", text).groups()
    return int(number) * 1024 ** ("kmg".index(unit[0].lower()) + 1)


class Cluster(unittest.TestCase):
    def test_every_object_is_valid(self):
        for overlay, objects in OVERLAYS.items():
            for it in objects:
                with self.subTest(f"{overlay}: {it['kind']} {it['metadata']['name']}"):
                    if it["apiVersion"] not in EXTENSIONS:
                        kubernetes_validate.validate(it, KUBERNETES, strict=True)

    def test_every_object_of_an_extension_is_valid(self):
        objects = [it for objects in OVERLAYS.values() for it in objects if it["apiVersion"] in EXTENSIONS]
        self.assertEqual({it["apiVersion"] for it in objects}, EXTENSIONS)
        checked = subprocess.run(["node", TOP / "tests/deploy/schemas.mjs"], input=json.dumps(objects), capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        self.assertIn(f"{len(objects)} objects checked, 0 mistakes", checked.stdout)

    def test_a_wrong_value_and_a_misspelled_field_are_found(self):
        wrong = [{**of_kind("gke", "BackendConfig"), "spec": {"timeoutSec": "1h"}}, {**of_kind("gke", "BackendConfig"), "spec": {"timeoutSecs": 3600}}]
        for it in wrong:
            checked = subprocess.run(["node", TOP / "tests/deploy/schemas.mjs"], input=json.dumps([it]), capture_output=True, text=True)
            self.assertEqual(checked.returncode, 1, it)

    def test_the_pause_before_sigterm_names_its_least_version(self):
        for overlay in OVERLAYS:
            self.assertIn("sleep", relay_container(overlay)["lifecycle"]["preStop"])
        self.assertIn("Kubernetes 1.30", read("k8s/README.md"))

    def test_the_rules_that_a_person_may_open_are_valid(self):
        lines = read("k8s/base/networkpolicy.yaml").splitlines()
        opened = [re.sub(r"^    # (?=- |  )", "    ", line) for line in lines]
        policy = yaml.safe_load("\n".join(opened))
        self.assertEqual(len(policy["spec"]["egress"]), len(yaml.safe_load("\n".join(lines))["spec"]["egress"]) + 5)
        kubernetes_validate.validate(policy, KUBERNETES, strict=True)

    def test_what_is_referred_to_exists(self):
        for overlay, objects in OVERLAYS.items():
            with self.subTest(overlay):
                names = {(it["kind"], it["metadata"]["name"]) for it in objects}
                for source in relay_container(overlay)["envFrom"]:
                    if "configMapRef" in source:
                        self.assertIn(("ConfigMap", source["configMapRef"]["name"]), names)
                    elif overlay == "local":
                        self.assertIn(("Secret", source["secretRef"]["name"]), names)
                    else:  # A person makes it; README says how.
                        self.assertIn(f"create secret generic {source['secretRef']['name']} ", read("k8s/README.md"))
                labels = relay_pod(overlay)["metadata"]["labels"].items()
                selectors = [it["spec"]["selector"] for it in objects if it["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor") and it["metadata"]["name"] == "duorelay"]
                for selector in selectors:
                    self.assertLessEqual(selector["matchLabels"].items(), labels)
                self.assertLessEqual(of_kind(overlay, "Service")["spec"]["selector"].items(), labels)
                self.assertEqual(of_kind(overlay, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"], "duorelay")

    def test_ingress_nginx_is_valid_and_its_variable_is_the_controllers(self):
        ingress = load("k8s/balancers/ingress-nginx/ingress.yaml")
        kubernetes_validate.validate(ingress, KUBERNETES, strict=True)
        variable = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/upstream-hash-by"]
        snippet = load("k8s/balancers/ingress-nginx/controller.yaml")["data"]["http-snippet"]
        self.assertIn(f"map $arg_affinity {variable} {{", snippet)
        # The same map as the one that real nginx is tested with.
        self.assertIn(" ".join(snippet.split()), " ".join(read("k8s/balancers/nginx.conf").split()))

    def test_leaving_never_takes_room_away(self):
        for overlay in OVERLAYS:
            strategy = of_kind(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
            self.assertEqual(strategy["maxUnavailable"], 0)
            self.assertGreaterEqual(of_kind(overlay, "HorizontalPodAutoscaler")["spec"]["minReplicas"], 2)
        self.assertGreaterEqual(APP["automatic_scaling"]["min_num_instances"], 2)

    def test_relays_run_without_rights(self):
        for overlay in OVERLAYS:
            context = relay_container(overlay)["securityContext"]
            self.assertTrue(context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"])
            self.assertEqual(context["capabilities"]["drop"], ["ALL"])
            user = relay_pod(overlay)["spec"]["securityContext"]["runAsUser"]
            self.assertIn(f"USER {user}:", read("Dockerfile"))
        for name, service in COMPOSE["services"].items():
            self.assertTrue(service["read_only"] and service["cap_drop"] == ["ALL"] and service["mem_limit"], name)

    def test_a_full_relay_has_files_left(self):
        relay = COMPOSE["services"]["relay"]
        self.assertGreater(relay["ulimits"]["nofile"], setting(relay["environment"], "DUORELAY_MAX_CONNECTIONS") + 1000)

    def test_every_file_that_is_mounted_exists(self):
        for name, service in COMPOSE["services"].items():
            for volume in service.get("volumes", []):
                self.assertTrue((TOP / volume.split(":")[0]).exists(), f"{name}: {volume}")


def container_ports(overlay):
    return {port["name"]: port["containerPort"] for port in relay_container(overlay)["ports"]}


if __name__ == "__main__":
    unittest.main()
