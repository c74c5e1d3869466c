"""A program that exports its semaphores' metrics to Prometheus, next to its own.

    pip install 'etcdsem[metrics]'
    etcdsem dev -- python examples/metrics_in_process.py

docs/metrics.md explains each metric; `etcdsem exporter` covers all programs together.
"""

import urllib.request

from prometheus_client import Counter, start_http_server

from etcdsem import Semaphore, metrics

reports = Counter("reports_total", "Reports made.")


def main():
    metrics.register()  # in prometheus_client's default registry
    server, _ = start_http_server(0, addr="127.0.0.1")  # use a fixed port in production

    database = Semaphore(max_leases=2, name="my_database")
    for _ in range(3):
        with database:
            reports.inc()

    # The same as plain data, without prometheus_client:
    for one in metrics.snapshot().semaphores:
        print(f"{one.name}: {one.acquire_total} granted, {one.losses_total} lost")

    url = f"http://127.0.0.1:{server.server_port}/metrics"
    with urllib.request.urlopen(url) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(
                ("reports_total", "semaphore_acquire_total", "semaphore_max_leases")
            ):
                print(line)


if __name__ == "__main__":
    main()
