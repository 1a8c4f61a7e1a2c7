"""The `websockets` package of Python, as a native mobile client."""

import json
import os
import socket
import subprocess
import time
import unittest
import urllib.error
import urllib.request

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

LIMIT = 10


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class WebsocketsPackage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        port = free_port()
        cls.http = f"http://127.0.0.1:{port}"
        cls.ws = f"ws://127.0.0.1:{port}/ws"
        arguments = ["demo", "--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{free_port()}"]
        binary = os.environ["DUORELAY_BIN"]
        cls.relay = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cls.addClassCleanup(cls.relay.wait)
        cls.addClassCleanup(cls.relay.kill)
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                with urllib.request.urlopen(f"{cls.http}/healthz/ready", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                if cls.relay.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def token(self, user):
        body = json.dumps({"user": user}).encode()
        request = urllib.request.Request(
            f"{self.http}/demo/token", data=body, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=LIMIT) as response:
            return json.load(response)

    def open(self, subprotocols=None, query="", **headers):
        connection = connect(
            self.ws + query, subprotocols=subprotocols, additional_headers=headers, proxy=None, legacy=True
        )
        self.addCleanup(connection.close)
        return connection

    def expect(self, connection, kind):
        message = json.loads(connection.recv(timeout=LIMIT))
        self.assertEqual(message["type"], kind, message)
        return message

    def test_classic_mobile_with_the_clientid_header(self):
        answer = self.token("py-classic")
        mobile = self.open(clientid=answer["token"])
        self.assertIsNone(mobile.subprotocol)
        mobile.send("hello")
        expected = f"\nDesktop connected: false\nMobile connected: true\nRoom: {answer['email']}\nMessage: hello\n"
        self.assertEqual(mobile.recv(timeout=LIMIT), expected)

        newer = self.open(clientid=answer["token"])
        self.assertEqual(mobile.recv(timeout=LIMIT), "This connection has been overwritten with a new one")
        with self.assertRaises(ConnectionClosed) as closed:
            mobile.recv(timeout=LIMIT)
        self.assertEqual(closed.exception.rcvd.code, 4001)
        newer.send("again")
        self.assertIn("Message: again", newer.recv(timeout=LIMIT))

    def test_v1_mobile_streams_to_a_v1_desktop(self):
        token = self.token("py-v1")["token"]
        mobile = self.open(subprotocols=["duorelay.v1"], clientid=token)
        self.assertEqual(mobile.subprotocol, "duorelay.v1")
        self.assertEqual(self.expect(mobile, "welcome")["device"], "mobile")
        desktop = self.open(subprotocols=["duorelay.v1", token])
        self.assertEqual(self.expect(desktop, "welcome")["device"], "desktop")
        self.assertEqual(self.expect(mobile, "peer")["state"], "connected")

        for size in (0, 1, 300, 60_000):
            frame = b"\x80" + bytes(index % 256 for index in range(size))
            mobile.send(frame)
            self.assertEqual(desktop.recv(timeout=LIMIT), frame)
        desktop.send(json.dumps({"type": "send", "data": ["ä", 1.5, None]}))
        self.assertEqual(self.expect(mobile, "message")["data"], ["ä", 1.5, None])
        self.assertTrue(mobile.ping().wait(LIMIT))

        # A message in fragments arrives whole.
        mobile.send([b"\x80one", b" two", b" three"])
        self.assertEqual(desktop.recv(timeout=LIMIT), b"\x80one two three")

        mobile.close(1001)
        self.assertEqual(mobile.close_code, 1001)
        self.assertEqual(self.expect(desktop, "peer")["state"], "disconnected")

    def test_authorization_in_any_letter_case(self):
        token = self.token("py-bearer")["token"]
        mobile = self.open(subprotocols=["duorelay.v1"], authorization=f"bearer {token}")
        self.assertEqual(self.expect(mobile, "welcome")["device"], "mobile")

    def test_a_refusal_is_a_problem_document(self):
        with self.assertRaises(InvalidStatus) as refused:
            self.open(clientid="x")
        response = refused.exception.response
        self.assertEqual(response.status_code, 403)
        self.assertEqual(json.loads(response.body)["code"], "malformed_token")


if __name__ == "__main__":
    unittest.main()
