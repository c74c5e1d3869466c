"""A client of an API that allows ten requests and 2,000 tokens in any second, over all machines.

    python examples/token_server.py 10 2000 1 &
    etcdsem dev -- python examples/token_client.py http://127.0.0.1:PORT/ 30

Start it as often as you like, anywhere: the service never has to answer 429. Requests take
different times to arrive, so our period is longer than the service's.
"""

import json
import random
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from etcdsem import RateLimit

requests = RateLimit("llm-requests", 10, "2s")
tokens = RateLimit("llm-tokens", 2000, "2s")
both = RateLimit.all(requests, tokens)


def ask(url):
    most = random.randint(20, 600)
    with both.start(cost=(1, most)) as permit:
        try:
            with urllib.request.urlopen(f"{url}{most}", timeout=30) as answer:
                used = json.load(answer)["tokens"]
        except urllib.error.HTTPError as refusal:
            return refusal.code  # 429, if a client ignores the rate limits
        permit.settle((1, used))  # those that were not used go to the next one
        return answer.status


def main(url, count):
    with ThreadPoolExecutor(max_workers=10) as pool:
        statuses = list(pool.map(ask, [url] * count))
    print(f"{statuses.count(200)} of {count} requests were served")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
