"""Whether clients that do not read cost memory, or cost the others time: a server, some of them, and one that reads.

    python scripts/soak_stalled_reader.py MODEL.gguf --write docs/benchmarks.md

Those that stand still ask for all layers as float32 in JSON, take the first bytes and no more. The one that reads asks
again and again, without hidden states, for tokens to be counted.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_tools import command_line, machine, table, write_section

PROMPT = "One morning a fox went to the river"
TOKENS = 32  # of one answer that is read
PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Server:
    """`loom-gguf serve` with one model."""

    port: int
    pid: int
    model: str

    def pids(self) -> tuple[int, int]:
        """The server's own process, and the model's, which is its largest child."""
        children = [int(child) for task in Path(f"/proc/{self.pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]  # fmt: skip
        return self.pid, max(children, key=resident)

    def ask(self, n_tokens: int, **fields: Any) -> http.client.HTTPConnection:
        """Send a request. Its answer is still to be read."""
        options = {"temperature": 0, "num_predict": n_tokens}
        body = {"model": self.model, "prompt": PROMPT, "raw": True, "options": options} | fields
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/api/generate", json.dumps(body))
        return connection

    def tokens_per_second(self) -> float:
        """Of one answer, as its client sees it: from the first token on."""
        with closing(self.ask(TOKENS)) as connection:
            answer = connection.getresponse()
            times = [time.perf_counter() for _ in answer]
        assert answer.status == 200, "this model does not answer: loom-gguf run shows why"
        return (len(times) - 2) / (times[-2] - times[0])  # the last line has no token

    def bytes_per_token(self) -> float:
        """What the JSON of one token's layers weighs."""
        with closing(self.ask(4, expose_hidden={})) as connection:
            lines = [len(line) for line in connection.getresponse()]
        return float(np.mean(lines[:-1]))


def resident(pid: int) -> int:
    """Bytes of a process that are in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextmanager
def served(path: Path, parallel: int) -> Iterator[Server]:
    """The command, on a free port, with the model loaded."""
    command = [sys.executable, "-m", "loom_gguf", "serve", str(path), "--port", "0", "--parallel", str(parallel)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(found for line in process.stderr if (found := PORT.search(line)))
            log = threading.Thread(target=process.stderr.read)  # a full pipe would stop the server
            log.start()
            yield Server(int(found[1]), process.pid, path.name.removesuffix(".gguf"))
        finally:
            process.terminate()
            process.wait(60)
            log.join()


@contextmanager
def stalled(server: Server) -> Iterator[None]:
    """A client that reads the first bytes of an answer without end, and then nothing."""
    connection = server.ask(-1, expose_hidden={})
    with closing(connection):
        assert isinstance(connection.sock, socket.socket)
        status = connection.sock.recv(12)
        assert status == b"HTTP/1.1 200", status
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch memory and speed while clients do not read.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--readers", type=int, default=3, help="clients that stand still")
    parser.add_argument("model", type=Path, help="a GGUF file with a tokenizer, whose greedy text does not end soon")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this Markdown file")
    options = parser.parse_args()

    path: Path = options.model
    rows, speeds = [], []
    with served(path, options.readers + 1) as server, ExitStack() as stack:
        weight = server.bytes_per_token()
        alone = [server.tokens_per_second() for _ in range(5)]
        pids = server.pids()
        before = [resident(pid) for pid in pids]
        for _ in range(options.readers):
            stack.enter_context(stalled(server))
        began = time.perf_counter()
        samples = []
        while (seconds := time.perf_counter() - began) < options.seconds:
            speeds.append(server.tokens_per_second())
            samples.append((seconds, *(resident(pid) for pid in pids)))
        for i in np.linspace(0, len(samples) - 1, 7).astype(int):
            seconds, *sizes = samples[i]
            grown = [f"{(size - first) / 2**20:.1f}" for size, first in zip(sizes, before, strict=True)]
            rows.append([f"{seconds:.0f}", *(f"{size / 2**20:.1f}" for size in sizes), *grown])
    unread = weight * len(speeds) * TOKENS * options.readers / 2**20
    text = "\n\n".join(
        [
            "## Clients that do not read",
            f"`{command_line()}`: {machine(os.cpu_count() or 1)}",
            f"{options.readers} clients asked `loom-gguf serve` ({path.name}) for all layers in JSON "
            f"({weight / 2**20:.2f} MiB a token), took the first bytes, and then read nothing for "
            f"{options.seconds:.0f} s. Beside them one client read {len(speeds)} answers of {TOKENS} tokens, without "
            f"hidden states, at {np.median(speeds):.1f} tokens/s; with nobody beside it, it got "
            f"{np.median(alone):.1f}. Rows for as many tokens of each of the others would have been {unread:,.0f} MiB.",
            table(
                ["seconds", "server, RSS MiB", "model's process, RSS MiB", "server, grown", "model's process, grown"],
                rows,
            ),
        ]
    )
    print(text)
    if options.write:
        write_section(options.write, "stalled readers", text)


if __name__ == "__main__":
    main()
