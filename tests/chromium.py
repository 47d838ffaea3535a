"""A real Chromium for pages that the package writes: what they ask the network for, and what they complain about.

Chromium is driven by its DevTools protocol over two pipes, so nothing but the browser itself is needed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_TIMEOUT = 60.0


@dataclass
class Page:
    """What was seen of a page."""

    requests: list[str] = field(default_factory=list)  # every URL that it asked for, itself first
    problems: list[str] = field(default_factory=list)  # errors and warnings on the console, failed loads, exceptions
    screenshot: bytes = b""  # PNG of the whole page
    value: Any = None  # of the expression that was asked for


def open_page(path: Path, *, dark: bool = False, width: int = 1280, expression: str = "document.title") -> Page:
    """Open a file as a person would; skips the test, in words, where there is no Chromium."""
    if PROGRAM is None:
        pytest.skip("no Chromium here: install Debian's chromium, or any that is on the PATH")
    with tempfile.TemporaryDirectory() as profile, _browser(profile) as browser:
        return browser.visit(path.resolve().as_uri(), dark=dark, width=width, expression=expression)


@contextlib.contextmanager
def _browser(profile: str) -> Iterator[_Browser]:
    arguments = [
        PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4; copies from high numbers, so that neither overwrites the other.
    high = [os.dup(fd) for fd in (read_commands, write_answers)]
    while min(high) < 10:
        high = [os.dup(fd) for fd in high]
    quiet = os.open(os.devnull, os.O_RDWR)
    actions = [
        (os.POSIX_SPAWN_DUP2, quiet, 0),
        (os.POSIX_SPAWN_DUP2, quiet, 1),
        (os.POSIX_SPAWN_DUP2, quiet, 2),
        (os.POSIX_SPAWN_DUP2, high[0], 3),
        (os.POSIX_SPAWN_DUP2, high[1], 4),
    ]
    pid = os.posix_spawn(PROGRAM, arguments, {**os.environ, "HOME": profile}, file_actions=actions)
    for fd in {quiet, read_commands, write_answers, *high}:
        os.close(fd)
    browser = _Browser(write_commands, read_answers)
    try:
        yield browser
    finally:
        with contextlib.suppress(Exception):
            browser.ask("Browser.close")
        os.close(write_commands)
        os.close(read_answers)
        os.waitpid(pid, 0)


class _Browser:
    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._buffer, self._id = to, back, b"", 0
        self._events: list[dict[str, Any]] = []

    def visit(self, url: str, *, dark: bool, width: int, expression: str) -> Page:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def ask(method: str, **params: Any) -> dict[str, Any]:
            return self.ask(method, session, **params)

        for domain in ("Network", "Log", "Runtime", "Page"):
            ask(f"{domain}.enable")
        ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        ask("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._message())
        # Two frames later the page is drawn, and what its drawing asked for was asked for.
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 200))))"
        ask("Runtime.evaluate", expression=frames, awaitPromise=True)
        page = Page()
        page.value = ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")
        shot = ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        page.screenshot = base64.b64decode(shot["data"])
        for event in self._events:
            _note(page, event["method"], event["params"])
        return page

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._id += 1
        message = {"id": self._id, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + _TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._back, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("Chromium does not answer" if not ready else "Chromium has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


def _note(page: Page, method: str, params: dict[str, Any]) -> None:
    if method == "Network.requestWillBeSent":
        page.requests.append(params["request"]["url"])
    elif method == "Network.loadingFailed":
        page.problems.append(f"not loaded: {params['errorText']}")
    elif method == "Log.entryAdded":
        page.problems.append(params["entry"]["text"])
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        page.problems.append(str(params["args"]))
    elif method == "Runtime.exceptionThrown":
        page.problems.append(str(params["exceptionDetails"]))
