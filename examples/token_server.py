"""A model's API that counts requests and tokens: 429 with Retry-After beyond either in a window.

    python examples/token_server.py 10 2000 1    prints its address, and at the end what it has seen

A request names the most tokens that its answer may have, which are counted at first. The answer
tells how many it has, which are counted from then on.
"""

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
admitted = []  # [time, tokens] of the requests in the window
served = refused = 0


def handler(requests, tokens, period):
    def admit(most):
        global served, refused
        with lock:
            now = time.monotonic()
            admitted[:] = [one for one in admitted if one[0] > now - period]
            fine = len(admitted) < requests and sum(n for _, n in admitted) + most <= tokens
            served += fine
            refused += not fine
            if not fine:
                return None
            admitted.append([now, most])
            return admitted[-1]

    class Service(BaseHTTPRequestHandler):
        def do_GET(self):
            most = int(self.path.rpartition("/")[2])
            entry = admit(most)
            body = b""
            if entry is not None:
                time.sleep(0.05)  # it thinks
                with lock:
                    entry[1] = most * 2 // 3
                body = json.dumps({"tokens": entry[1]}).encode()
            self.send_response(200 if entry else 429)
            if not entry:
                self.send_header("Retry-After", str(int(period) + 1))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    return Service


def main(requests, tokens, period):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(requests, tokens, period))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever(0.1)
    print(f"served {served}, refused {refused}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
