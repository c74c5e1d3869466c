"""A client of a service that allows three concurrent requests over all our machines.

    python examples/strict_server.py 3 &
    etcdsem dev -- python examples/http_client.py http://127.0.0.1:PORT/ 20

Start it as often as you like, anywhere: the service never sees a fourth concurrent request.
"""

import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from etcdsem import Semaphore

api = Semaphore(max_leases=3, name="strict_api", lease_timeout="30s")


def fetch(url):
    with (
        api.hold(timeout="5m") as lease,
        # A hanging request must not outlive its lease: another holder would send a fourth one.
        urllib.request.urlopen(url, timeout=lease.remaining) as answer,
    ):
        return answer.status


def main(url, count):
    with ThreadPoolExecutor(max_workers=10) as pool:
        statuses = list(pool.map(fetch, [url] * count))
    print(f"{statuses.count(200)} of {count} requests were served")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
