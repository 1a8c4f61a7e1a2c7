"""One machine without containers: k8s/single/, read by systemd, Caddy and the program."""

import json
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from shipped import DEFAULTS, DUORELAY, TOP, Relay, find, leaving, read, setting


class Single(unittest.TestCase):
    UNIT = read("k8s/single/duorelay.service")

    def value(self, name):
        return re.search(rf"^{name}=(.*)$", self.UNIT, re.M)[1]

    def test_the_unit_starts_a_relay_with_settings_that_exist(self):
        environment = dict(pair.split("=", 1) for pair in shlex.split(self.value("Environment")))
        self.assertLessEqual(set(environment), set(DEFAULTS))
        command = self.value("ExecStart").split()
        self.assertEqual(Path(command[0]).name, "duorelay")
        with Relay(command[1:], {**environment, "FIREBASE_PROJECT_ID": "my-project"}) as relay:
            self.assertIsNotNone(relay.address, relay.log)
        self.assertGreater(int(self.value("TimeoutStopSec")), leaving(environment))
        self.assertGreater(int(self.value("LimitNOFILE")), setting(environment, "DUORELAY_MAX_CONNECTIONS"))

    def test_systemd_accepts_the_unit(self):
        if not shutil.which("systemd-analyze"):
            print("not checked: the systemd unit's syntax, because there is no systemd-analyze (Debian's package systemd)")
            return
        for broken in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                unit = Path(folder) / "duorelay.service"
                # It looks for the program, too.
                text = self.UNIT.replace("/usr/local/bin/duorelay", str(Path(DUORELAY).resolve()))
                unit.write_text(text.replace("DynamicUser=", "DynamicUsr=") if broken else text)
                verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
                said = [line for line in verified.stderr.splitlines() if unit.name in line]
                self.assertEqual(bool(said), broken, verified.stderr)

    def test_caddy_hands_each_connection_to_the_unit(self):
        with tempfile.TemporaryDirectory() as home:
            environment = {"HOME": home, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
            command = ["caddy", "adapt", "--validate", "--config", TOP / "k8s/single/Caddyfile"]
            adapted = subprocess.run(command, capture_output=True, text=True, env=environment)
        self.assertEqual(adapted.returncode, 0, adapted.stderr)
        listen = re.search(r"DUORELAY_LISTEN=(\S+)", self.value("Environment"))[1]
        self.assertEqual(list(find(json.loads(adapted.stdout), "dial")), [listen])


if __name__ == "__main__":
    unittest.main()
