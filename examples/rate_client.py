"""A client of a service that allows ten requests in any second over all our machines.

    python examples/metered_server.py 10 1 &
    etcdsem dev -- python examples/rate_client.py http://127.0.0.1:PORT/ 30

Start it as often as you like, anywhere: the service never has to answer 429. The service counts
requests on arrival, and some take longer to arrive than others, so our period is longer. If it
answers 429 all the same, because others use it too, none of our programs makes a request for as
long as it says.
"""

import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from etcdsem import RateLimit

api = RateLimit("metered_api", 10, "2s")


def fetch(url):
    while True:
        api.acquire()
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as refusal:
            if refusal.code != 429:
                raise
            api.penalize(refusal.headers.get("Retry-After", "1"), reason="429 from the service")


def main(url, count):
    with ThreadPoolExecutor(max_workers=10) as pool:
        statuses = list(pool.map(fetch, [url] * count))
    print(f"{statuses.count(200)} of {count} requests were served")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
