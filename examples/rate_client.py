"""A client of a service that allows ten requests in any second over all our machines.

    python examples/metered_server.py 10 1 &
    etcdsem dev -- python examples/rate_client.py http://127.0.0.1:PORT/ 30

Start it as often as you like, anywhere: the service never has to answer 429. The service counts
requests on arrival, and some take longer to arrive than others, so our period is longer.
"""

import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from etcdsem import RateLimit

api = RateLimit("metered_api", 10, "2s")


@api
def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code  # 429, if a client ignores the rate limit


def main(url, count):
    with ThreadPoolExecutor(max_workers=10) as pool:
        statuses = list(pool.map(fetch, [url] * count))
    print(f"{statuses.count(200)} of {count} requests were served")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
