"""moto's S3 behind a proxy that loses requests and answers: for .ci/object-store.

    bucket.py LOG        serves until standard input ends; the first line printed is the endpoint

Faults are counted, not drawn, so a run is repeated alike: of every seven requests one is answered with 503 and one
with 500 before it is done, one is done and then its connection closed without an answer, and the first PUT of every
manifest is done and answered with 500. POST /faults/on, /faults/off and /faults/down (503 to everything) set the
mood; GET /faults/count tells how many there were.
"""

import http.client
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

state = {"mood": "off", "requests": 0, "faults": 0}
completed = set()
lock = threading.Lock()


def fault_of(method, path):
    """What befalls the next request: None, "503", "500" (both before it is done), "lost" or "late" (both after)."""
    with lock:
        if state["mood"] == "off":
            return None
        state["requests"] += 1
        if state["mood"] == "down":
            fault = "503"
        elif method == "PUT" and path.endswith("/manifest.json") and path not in completed:
            completed.add(path)
            fault = "late"
        else:
            fault = {1: "503", 3: "500", 5: "lost"}.get(state["requests"] % 7)
        state["faults"] += fault is not None
        return fault


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = None

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        length = dict((name.lower(), value) for name, value in headers).get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_any(self):
        body = self.body()
        if self.path.startswith("/faults/"):
            word = self.path.rsplit("/", 1)[1]
            if word != "count":
                state["mood"] = word
            return self.answer(200, [], str(state["faults"]).encode())
        fault = fault_of(self.command, self.path.split("?")[0])
        print(self.command, self.path, fault or "", flush=True)
        if fault in ("500", "503"):
            return self.answer(int(fault), [("Content-Type", "text/plain")], b"a fault of this test")
        connection = http.client.HTTPConnection(*self.upstream)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        if fault == "lost":
            self.close_connection = True
            return None
        if fault == "late":
            return self.answer(500, [], b"done, but who knows")
        return self.answer(response.status, response.getheaders(), content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, *_):
        pass


def main():
    sys.stderr = log = open(sys.argv[1], "w", buffering=1)
    endpoint, sys.stdout = sys.stdout, log
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    Proxy.upstream = moto.get_host_and_port()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{proxy.server_address[1]}", file=endpoint, flush=True)
    sys.stdin.read()


main()
