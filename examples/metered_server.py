"""An HTTP service that answers 429 beyond N requests in any window of some seconds.

python examples/metered_server.py 10 1    prints its address, and at the end what it has seen
"""

import math
import signal
import sys
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
admitted = deque()
served = refused = 0


def handler(limit, period):
    class Service(BaseHTTPRequestHandler):
        def do_GET(self):
            global served, refused
            with lock:
                now = time.monotonic()
                while admitted and admitted[0] <= now - period:
                    admitted.popleft()
                fine = len(admitted) < limit
                if fine:
                    admitted.append(now)
                served += fine
                refused += not fine
            self.send_response(200 if fine else 429)
            self.send_header("Content-Length", "0")
            if not fine:
                self.send_header("Retry-After", str(math.ceil(period)))
            self.end_headers()

        def log_message(self, *args):
            pass

    return Service


def main(limit, period):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(limit, period))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever(0.1)
    print(f"served {served}, refused {refused}")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
