"""Whether a server that is treated badly for long stays right, and gives everything back.

    python scripts/soak.py --write docs/benchmarks.md

Starts `loom-gguf serve` with several small models, of which two may be loaded at once, and asks it requests of all
kinds from several clients: some leave in the middle, some read slowly, and now and then a model's process is killed.
Every answer is checked (soak_answers.py), and at each quarter of the way, when nobody asks, what the server still
holds. Ends with status 1 where something is wrong, and says with which request. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import soak_answers as answers
from soak_answers import Interrupted, Wrong, require
from soak_client import TIMEOUT, Answer, Client, Manner
from soak_reference import CTX, TEXTS, References, Subject
from soak_requests import Plan, plans
from soak_server import Counts, Process, Server, serving, until

PARALLEL, QUEUE, MAX_MODELS = 3, 6, 2
RSS_BOUND = 16.0  # MiB that the server may grow by between a quarter of the way and the end
_WARM = "after the warm-up"
_SETTLE_SECONDS = 30.0
_QUIET_SECONDS = 0.5  # after which a process that nobody asks is at rest
_KILL_SECONDS = 5.0  # after a kill, requests may still meet the process that is gone
_WARM_SEED = -1
_QUEUE_FULL = "maximum pending requests exceeded"
_DIED = "the process of the model"
_STREAMS = ("application/x-ndjson", "text/event-stream")
_ENOUGH = 10  # failures
_ABOUT = (
    f"`loom-gguf serve --max-models {MAX_MODELS} --parallel {PARALLEL} --queue {QUEUE} --precision exact` with five "
    "small models, asked by several clients at once. Some leave before the answer or in the middle of it, some read a "
    "few bytes at a time, and now and then a model's process gets SIGKILL. Every whole answer is checked: its API's "
    "form, every position of every node once, text and rows against those that the same model computed alone. An error "
    "counts as right only where the request asks for it, where the queue is full, or where a process was killed during "
    f"the request or in the {_KILL_SECONDS:.0f} s before it. The longest request includes waiting for other models to "
    "be done, and loading. At each quarter the clients stop: all sequences must be free, which as many requests as a "
    "model computes at once show by all having one at the same time; then every model is unloaded, and what the server "
    "still holds is counted."
)

# What does not end before its context is full, and is then more than the 4 MiB that lie on the way to a client that
# stands still: nodes, and what the text must be. State space models have other nodes, but only one sequence.
_MANY = ["l_out-*", "*norm-*#*", "*out-*#*", "ffn_*", "*cur-*#*"]
_LONG = {"type": "array", "items": {"enum": [0, 1]}, "minItems": 2 * CTX}


@dataclass
class Outcomes:
    """What became of the requests."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, outcome
    longest: dict[str, float] = field(default_factory=dict)  # seconds, of the kind's whole answers
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, plan: Plan, outcome: str, seconds: float) -> None:
        with self.lock:
            self.counts[plan.kind, outcome] += 1
            if not plan.manner.slow:
                self.longest[plan.kind] = max(seconds, self.longest.get(plan.kind, 0.0))

    def fail(self, text: str) -> None:
        with self.lock:
            self.failures.append(text)
            print(f"WRONG: {text}", file=sys.stderr, flush=True)


@dataclass
class Soak:
    """One run."""

    server: Server
    references: References
    n_clients: int
    random: Random
    outcomes: Outcomes = field(default_factory=Outcomes)
    kills: Counter[str] = field(default_factory=Counter)
    _child: dict[str, Process] = field(default_factory=dict)  # by name: at rest

    # -- requests -------------------------------------------------------------------------------------------------

    def run(self, planned: Sequence[Plan]) -> None:
        """All of them, from several clients; returns when all are answered."""
        left, lock = iter(planned), threading.Lock()

        def client() -> None:
            mine = Client(self.server.address)
            try:
                while True:
                    with lock:
                        plan = next(left, None)
                    if plan is None or len(self.outcomes.failures) >= _ENOUGH:
                        return
                    self._one(mine, plan)
            finally:
                mine.close()

        threads = [threading.Thread(target=client) for _ in range(self.n_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, client: Client, plan: Plan) -> None:
        time.sleep(plan.pause)
        killer = None
        if plan.kill is not None:
            killer = threading.Timer(plan.kill, self._kill)
            killer.start()
        began = time.monotonic()
        try:
            ask = plan.ask
            answer = client.ask(ask.method, ask.path, ask.body, ask.headers, plan.manner)
            outcome = self._judge(plan, answer)
            self.outcomes.add(plan, outcome, answer.ended - answer.began)
        except Wrong as wrong:
            self.outcomes.fail(f"{wrong}\n  {plan}")
        except TimeoutError:
            self.outcomes.fail(f"no byte in {TIMEOUT:.0f} s\n  {plan}")
        except (OSError, http.client.HTTPException) as error:
            self.outcomes.fail(f"{type(error).__name__}: {error} after {time.monotonic() - began:.2f} s\n  {plan}")
        finally:
            if killer is not None:
                killer.join()

    def _kill(self) -> None:
        if name := self.server.kill_one(self.random):
            self.kills[name] += 1

    def _judge(self, plan: Plan, answer: Answer) -> str:
        """What became of a request; raises Wrong."""
        ask = plan.ask
        if not answer.status:
            return "left before the answer"
        if not answer.whole and (answer.status != 200 or answer.content_type not in _STREAMS):
            return "left in the answer"  # a piece of one JSON object: nothing to be checked
        if answer.status == 200:
            require(200 in ask.statuses, f"answered in place of a refusal: {answer.body[:300]!r}")
            try:
                ask.check(answer)
            except Interrupted as error:
                return self._excused(str(error), answer)
            return "complete" if answer.whole else "left in the answer"
        if plan.ask.method == "HEAD":
            raise Wrong(f"status {answer.status}")
        text = answers.error_text(ask.path, answer)
        if answer.status in ask.statuses:
            return "refused as it should be"
        if answer.status in (500, 503):
            return self._excused(text, answer)
        raise Wrong(f"status {answer.status}: {text}")

    def _excused(self, text: str, answer: Answer) -> str:
        """Why a request may end with this error."""
        if _QUEUE_FULL in text:
            return "queue full"
        if _DIED in text and any(answer.began - _KILL_SECONDS < t < answer.ended for t in self.server.kills):
            return "process killed"
        raise Wrong(f"status {answer.status}: {text}")

    # -- what is held ---------------------------------------------------------------------------------------------

    def warm_up(self, n_requests: int) -> Counts:
        """All that a server makes once and keeps: threads for reading files, modules, caches."""
        burst = [threading.Thread(target=self._get, args=("/api/tags",)) for _ in range(64)]
        for thread in burst:
            thread.start()
        for thread in burst:
            thread.join()
        for subject in self.references.subjects:
            self._post("/api/embed", {"model": subject.name, "input": [TEXTS[0]] * 2 * PARALLEL})
            self._sequences_are_free("in the warm-up")
            time.sleep(_QUIET_SECONDS)
            self._child = {**self._child, **{child.name: child for child in self.server.children()}}
        kept, self.outcomes = self.outcomes, Outcomes()  # the warm-up's requests are checked, but not counted
        self.run(plans(self.references, _WARM_SEED, range(n_requests), chaos=False))
        kept.failures += self.outcomes.failures
        self.outcomes = kept
        return self.settle(_WARM, None)

    def settle(self, when: str, base: Counts | None) -> Counts:
        """What is held when nobody asks and every model was unloaded. More than `base` is a failure."""
        self._sequences_are_free(when)
        if not until(self._children_rest, _SETTLE_SECONDS):
            self.outcomes.fail(f"{when}: {self.server.children()} hold more than {list(self._child.values())}")
        if not until(self._nothing_loaded, _SETTLE_SECONDS):
            self.outcomes.fail(f"{when}: processes that do not leave: {self.server.children()}")
        if base is not None:

            def back() -> bool:
                now = self.server.counts()
                return now.threads <= base.threads and now.files <= base.files and not now.left_files

            if not until(back, _SETTLE_SECONDS):
                self.outcomes.fail(
                    f"{when}: {self.server.counts()} in place of {base}; open: {self.server.open_files()}, "
                    f"left: {self.server.left_files()}"
                )
        return self.server.counts()

    def _children_rest(self) -> bool:
        """Whether the models' processes hold no more threads (a request has one) and files than in the warm-up."""
        return all(
            child.threads <= known.threads and child.files <= known.files
            for child in self.server.children()
            if (known := self._child.get(child.name))
        )

    def _nothing_loaded(self) -> bool:
        for model in self._loaded():
            self._post("/api/generate", {"model": model, "keep_alive": 0})
        return not self._loaded() and not self.server.children()

    def _sequences_are_free(self, when: str) -> None:
        """As many requests as a model computes at once have a sequence each, all at the same time.

        Their clients read one line and wait; what a request writes fills every buffer on the way, so none of them can
        end meanwhile. A sequence that somebody left behind would leave one of these without a first line.
        """
        known = {subject.name: subject for subject in self.references.subjects}
        for name in self._loaded():
            subject = known[name]
            if not subject.generates:
                continue
            with suppress(OSError, http.client.HTTPException):
                _hold(self.server.address, subject)[0].close()  # a process that was just killed is found dead here
            got = [_hold(self.server.address, subject) for _ in range(PARALLEL if subject.parallel else 1)]
            for connection, error in got:
                if error:
                    self.outcomes.fail(f"{when}: {subject.name} has a sequence that is not free: {error}")
                connection.close()

    def _loaded(self) -> list[str]:
        return [model["name"].removesuffix(":latest") for model in self._get("/api/ps")["models"]]

    def _get(self, path: str) -> dict[str, list[dict[str, str]]]:
        return self._ask("GET", path, None)

    def _post(self, path: str, body: object) -> dict[str, list[dict[str, str]]]:
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, list[dict[str, str]]]:
        client = Client(self.server.address)
        try:
            answer = client.ask(method, path, body, {}, Manner())
        finally:
            client.close()
        if answer.status != 200:
            self.outcomes.fail(f"{method} {path}: {answer.status} {answer.body[:200]!r}")
            return {"models": []}
        return json.loads(answer.body)  # type: ignore[no-any-return]


def _hold(address: str, subject: Subject) -> tuple[http.client.HTTPConnection, str]:
    """A request that has a sequence and keeps it for as long as its connection is open; what went wrong else."""
    client = Client(address)
    connection = client.connect(small=True)
    wanted = {"nodes": _MANY if subject.parallel else ["*-*"]}
    body = {"model": subject.name, "prompt": "A", "raw": True, "format": _LONG, "expose_hidden": wanted}
    try:
        connection.request("POST", "/api/generate", json.dumps(body))
        response = connection.getresponse()
        first = response.read1(100)
        return connection, "" if response.status == 200 and first else f"{response.status} {first!r}"
    except (OSError, http.client.HTTPException) as error:
        return connection, f"{type(error).__name__}: {error}"


# -- the run and its figures --------------------------------------------------------------------------------------


@dataclass
class Result:
    outcomes: Outcomes
    held: dict[str, Counts]  # by when: after the warm-up, and then at some points of the way
    kills: Counter[str]
    worst: dict[str, float]  # by model: difference of a row from the reference's, of the row's largest value
    seconds: float

    @property
    def growth_mib(self) -> float:
        """Of the server's memory, from the first point after the warm-up to the last one."""
        _, first, *_, last = [*self.held.values(), *self.held.values()]
        return last.rss_mib - first.rss_mib


def soak(
    n_requests: int,
    *,
    seed: int = 0,
    n_clients: int = 8,
    names: Sequence[str] = (),
    only: Sequence[int] = (),
    points: Sequence[int] = (25, 50, 75, 100),
    n_warm: int = 60,
) -> Result:
    """names: of the models; none: all. only: just these requests, one after the other. points: at how many per cent of
    the way all clients stop, and it is looked at what the server holds. n_warm: requests before all that."""
    references = References(names)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, _server(Path(folder), references) as server:
        run = Soak(server, references, 1 if only else n_clients, Random(f"kills {seed}"))
        held = {_WARM: run.warm_up(n_warm)}
        if only:
            run.run([plan for number in only for plan in plans(references, seed, range(number, number + 1))])
            held["end"] = run.settle("at the end", held[_WARM])
        else:
            for before, share in pairwise((0, *points)):
                run.run(plans(references, seed, range(n_requests * before // 100, n_requests * share // 100)))
                held[f"{share} %"] = run.settle(f"at {share} %", held[_WARM])
        run.outcomes.failures += [f"in the log: {line}" for line in server.worries()]
        worst = {name: close.worst for name, close in references.closeness.items()}
        result = Result(run.outcomes, held, run.kills, worst, time.monotonic() - began)
    if result.growth_mib > RSS_BOUND:
        result.outcomes.fail(f"the server's memory grew by {result.growth_mib:.1f} MiB, more than {RSS_BOUND} MiB")
    return result


def _server(folder: Path, references: References):  # type: ignore[no-untyped-def]
    """Only the models above are offered: whoever runs this may have others."""
    models = folder / "models"
    models.mkdir()
    for subject in references.subjects:
        if subject.name != "demo":
            (models / f"{subject.name}.gguf").write_bytes(subject.path.read_bytes())  # links out are not followed
    nowhere = str(folder / "nowhere")
    environment = dict.fromkeys(("LOOM_HOME", "OLLAMA_MODELS", "HF_HUB_CACHE", "LM_STUDIO_MODELS"), nowhere)
    arguments = f"--models-dir {models} --max-models {MAX_MODELS} --parallel {PARALLEL} --queue {QUEUE}"
    arguments += f" --ctx {CTX} --precision exact"
    return serving(arguments.split(), folder / "server", environment)


def report(result: Result, n_requests: int) -> Iterator[str]:
    """Tables."""
    from bench_tools import table

    outcomes = result.outcomes
    kinds = list(dict.fromkeys(kind for kind, _ in sorted(outcomes.counts)))
    columns = [
        "complete", "refused as it should be", "left before the answer", "left in the answer", "queue full",
        "process killed",
    ]  # fmt: skip
    by_kind = [
        [kind, *(str(outcomes.counts[kind, column]) for column in columns), f"{outcomes.longest.get(kind, 0):.1f}"]
        for kind in kinds
    ]
    total = [str(sum(outcomes.counts[kind, column] for kind in kinds)) for column in columns]
    yield table(["", *columns, "longest, s"], [*by_kind, ["all", *total, f"{max(outcomes.longest.values()):.1f}"]])
    yield (
        f"{n_requests:,} requests in {result.seconds:.0f} s, {result.kills.total()} model processes killed, "
        f"{len(outcomes.failures)} failures. Largest difference of a row that was not compressed from the same row "
        f"computed alone, of the row's largest value: "
        f"{', '.join(f'{name} {worst:.1e}' for name, worst in result.worst.items())}."
    )
    held = result.held
    rows = [
        ("processes of models", "models"),
        ("threads", "threads"),
        ("open file handles", "files"),
        ("files left", "left_files"),
    ]
    lines = [[name, *(str(getattr(counts, key)) for counts in held.values()), ""] for name, key in rows]
    growth = f"{result.growth_mib:+.1f} (<= {RSS_BOUND:.0f} {'met' if result.growth_mib <= RSS_BOUND else 'missed'})"
    lines.append(["RSS, MiB", *(f"{counts.rss_mib:.1f}" for counts in held.values()), growth])
    yield table(["held when nobody asks", *held, "growth from the first point"], lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Treat a server badly for long, and look at what it holds then.")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="N", help="just these requests of the seed")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    options = parser.parse_args()

    result = soak(options.requests, seed=options.seed, n_clients=options.clients, only=options.only)
    from bench_tools import command_line, machine, write_section

    text = "\n\n".join(
        [
            "## A server that is treated badly",
            f"`{command_line()}`: {machine(2)}",
            _ABOUT,
            *report(result, len(options.only) or options.requests),
        ]
    )
    print(text)
    if result.outcomes.failures:
        print("\n".join(result.outcomes.failures[:_ENOUGH]), file=sys.stderr)
        print("Again: --seed SEED --only NUMBER", file=sys.stderr)
        return 1
    if options.write:
        write_section(options.write, "soak server", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
