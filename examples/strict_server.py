"""An HTTP service that answers 429 beyond N concurrent requests; for http_client.py.

python examples/strict_server.py 3        prints its address, and at the end what it has seen
"""

import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
busy = most = served = refused = 0


def handler(limit):
    class Service(BaseHTTPRequestHandler):
        def do_GET(self):
            global busy, most, served, refused
            with lock:
                busy += 1
                most = max(most, busy)
                admitted = busy <= limit
                served += admitted
                refused += not admitted
            if admitted:
                time.sleep(0.05)  # work
            with lock:
                busy -= 1  # before the answer: its receiver may send the next request
            self.send_response(200 if admitted else 429)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    return Service


def main(limit):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(limit))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever(0.1)
    print(f"served {served}, refused {refused}, at most {most} at a time")


if __name__ == "__main__":
    main(int(sys.argv[1]))
