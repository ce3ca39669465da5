"""Soak `drifting serve` on the loopback interface: requests per second, latency, errors, and the memory of the service.

Command: python benchmarks/serving.py RUN [--clients 1 16] [--num-samples 16] [--format npz] [--seconds 60] [--requests 20000]

The service is a process of its own. Every client keeps one connection and sends its next request when the last one is answered. The
baseline is the first number of clients: with one, no request shares its pass with others. Each number of clients is measured for
--seconds, or until --requests are answered. Memory is the resident set of the service, after a warm-up and at the end.
"""

import argparse
import http.client
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

_WARM_UP = 200


@dataclass
class Soak:
    """Counts of one measurement, which its clients share."""

    target: str
    port: int
    seconds: float
    requests: int
    times: list[float] = field(default_factory=list)
    failed: int = 0

    def client(self, number: int) -> None:
        """Send requests until the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        end, seed = time.perf_counter() + self.seconds, number
        while time.perf_counter() < end and len(self.times) < self.requests:
            seed += 1000
            start = time.perf_counter()
            connection.request("GET", f"{self.target}&seed={seed}")
            answer = connection.getresponse()
            size = len(answer.read())
            self.times.append(time.perf_counter() - start)
            self.failed += answer.status != 200 or size == 0
        connection.close()

    def run(self, clients: int) -> float:
        """Run so many clients and return the seconds that they took."""
        threads = [threading.Thread(target=self.client, args=(number,)) for number in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start


def figures(port: int) -> dict[str, float]:
    """Return the figures of /metrics without labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = re.findall(r"^(\w+) ([\d.e+-]+)$", connection.getresponse().read().decode(), re.M)
    return {name: float(value) for name, value in lines}


def measure(port: int, target: str, clients: int, seconds: float, requests: int) -> list[str]:
    """Return a row of the table."""
    before = figures(port)
    soak = Soak(target, port, seconds, requests)
    taken = soak.run(clients)
    after, times = figures(port), sorted(soak.times)
    shared = [after[f"drifting_pass_requests_{part}"] - before[f"drifting_pass_requests_{part}"] for part in ("sum", "count")]
    memory = [1e-6 * each["process_resident_memory_bytes"] for each in (before, after)]
    latency = [f"{1e3 * times[int(share * (len(times) - 1))]:.1f}" for share in (0.5, 0.99)]
    counts = [f"{clients}", f"{len(times):,}", f"{soak.failed}", f"{len(times) / taken:,.0f}"]
    return [*counts, *latency, f"{shared[0] / shared[1]:.1f}", *(f"{each:.0f}" for each in memory)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--format", default="npz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    command = [sys.executable, "-m", "drifting", "serve", options.run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        try:
            found = re.search(r":(\d+);", service.stdout.readline())
            if found is None:
                sys.exit("the service did not start")
            port, target = int(found[1]), f"/sample?num_samples={options.num_samples}&format={options.format}"
            for clients in options.clients:
                Soak(target, port, options.seconds, _WARM_UP).run(clients)
            heads = ("clients", "requests", "failed", "requests/s", "p50 ms", "p99 ms", "requests a pass", "MB before", "MB after")
            print("|", " | ".join(heads), "|")
            print("|", " | ".join("---" for _ in heads), "|")
            for clients in options.clients:
                print("|", " | ".join(measure(port, target, clients, options.seconds, options.requests)), "|", flush=True)
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
