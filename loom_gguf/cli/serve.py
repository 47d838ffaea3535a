"""`loom-gguf serve`: models over HTTP, to programs that speak Ollama's, OpenAI's or The Loom's API."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoomError
from .output import info

if TYPE_CHECKING:
    import logging
    import socket
    from collections.abc import Awaitable, Callable

    from ..server.models import Models
    from ..settings import ServerSettings

_SHOWN = 8  # names of models
_GRACE = 5.0  # seconds that answers under way still have after Ctrl-C or SIGTERM
_LAST_WORDS = 1.0  # seconds that clients then have to read the error with which theirs ends


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "serve",
        help="offer models over HTTP: Ollama's, OpenAI's and The Loom's APIs, with hidden states",
        usage="loom-gguf serve [MODEL ...] [options]",
        description="Offer models over HTTP to programs that speak Ollama's, OpenAI's or The Loom's API, with hidden "
        "states where they are asked for. Options beat the environment (LOOM_PORT for --port), which beats a file of "
        "settings: --config, else config.yaml or loom.yaml here, ~/.config/loom/config.yaml, /etc/loom/config.yaml.",
        epilog="Example: loom-gguf serve ~/models/qwen3.gguf --port 8080",
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="paths of .gguf files to offer beside the models of `loom-gguf list`, or names of those; the first is "
        "loaded at once",
    )  # fmt: skip
    parser.add_argument("--config", "-c", type=Path, metavar="FILE", help="settings in YAML")

    listen = parser.add_argument_group("who may ask")
    listen.add_argument("--host", help="address to listen on; 0.0.0.0 is all of them (default: 127.0.0.1)")
    listen.add_argument("--port", "-p", type=_as("port"), metavar="N", help="0 is any free one (default: 11434)")
    listen.add_argument("--transport", "-t", choices=("http", "unix", "both"), help="default: http")
    listen.add_argument(
        "--unix-socket", "-u", type=_as("path"), metavar="PATH", help="for unix and both (default: /tmp/loom.sock)"
    )
    listen.add_argument(
        "--origins", type=_as("origins"), metavar="LIST",
        help="web pages that may ask, besides those of this machine: origins with commas (https://a.example), or *",
    )  # fmt: skip
    listen.add_argument(
        "--api-key", type=_as("secret"), metavar="KEY",
        help="ask for this key; better set as LOOM_API_KEY, where no list of processes shows it",
    )  # fmt: skip
    listen.add_argument(
        "--queue", type=_as("positive"), metavar="N", help="requests that may wait for one model (default: 64)"
    )

    models = parser.add_argument_group("models")
    models.add_argument("--models-dir", type=_as("path"), metavar="DIR", help="offer all .gguf files in this folder")
    models.add_argument(
        "--allow-paths", action="store_const", const=True,
        help="open any .gguf file of this machine that a request names by its path",
    )  # fmt: skip
    models.add_argument(
        "--preload", nargs="+", metavar="MODEL", help="names of models to load before anybody is served"
    )
    models.add_argument(
        "--parallel", type=_as("positive"), metavar="N", help="requests that one model computes at once (default: 4)"
    )
    models.add_argument("--max-models", type=_as("positive"), metavar="N", help="models in memory at once (default: 3)")
    models.add_argument(
        "--keep-alive", type=_as("duration"), metavar="TIME",
        help="how long an unused model stays loaded: seconds, or e.g. 5m, 1h30m; -1 is for ever (default: 5m)",
    )  # fmt: skip
    models.add_argument(
        "--ctx", type=_as("positive"), metavar="N",
        help="tokens of one request's context, where it does not say (default: 4096)",
    )  # fmt: skip
    models.add_argument("--precision", choices=("fast", "exact"), help="as in `loom-gguf run` (default: fast)")
    models.add_argument(
        "--device", "-d", metavar="NAME", help="auto (all GPUs, else the CPU), cpu, cuda, cuda:1, metal (default: auto)"
    )
    models.add_argument(
        "--split-mode", choices=("layer", "row", "none"), help="how a model lies on several GPUs (default: layer)"
    )
    models.add_argument("--main-gpu", type=_as("index"), metavar="N", help="the one for --split-mode none (default: 0)")
    models.add_argument(
        "--tensor-split", type=_as("proportions"), metavar="LIST", help="each GPU's part, e.g. 3,1 (default: by memory)"
    )

    log = parser.add_argument_group("log")
    log.add_argument("--log-level", choices=("debug", "info", "warning", "error", "critical"), help="default: info")
    log.add_argument("--log-file", type=_as("path"), metavar="FILE", help="append to this file (default: stderr)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    import asyncio

    from ..devices import check_device
    from ..library import Library, LibrarySettings, find
    from ..server.models import Models
    from ..server.sockets import listening
    from ..settings import ServerSettings

    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
    settings = ServerSettings.read(os.environ, flags, args.config)
    _log(settings)
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise LoomError(f"--models-dir: there is no folder {settings.models_dir}")
    check_device(settings.device)
    named = [find(model).usable() for model in args.models]
    files = [entry.path.absolute() for entry in named if entry.place == "file" and entry.path is not None]
    library = Library(
        LibrarySettings.read(os.environ, folder=settings.models_dir), files, allow_paths=settings.allow_paths
    )
    preload = [*(entry.name for entry in named[:1]), *settings.preload]
    with listening(settings) as sockets:
        asyncio.run(_serve(settings, Models(library=library), preload, sockets))
    return 0


def _log(settings: ServerSettings) -> None:
    import logging

    try:
        to_file = [logging.FileHandler(settings.log_file)] if settings.log_file else None
    except OSError as error:
        raise LoomError(f"--log-file: cannot write to {settings.log_file}: {error.strerror}") from None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", handlers=to_file)
    logging.getLogger("loom_gguf").setLevel(settings.log_level.upper())
    logging.getLogger("loom_gguf.llama_cpp").setLevel(logging.WARNING)  # it says hundreds of lines about each model


def _as(name: str) -> Any:
    """A parser of the settings', which are imported when there is something to be parsed."""

    def parse(text: str) -> Any:
        from ..settings import values

        try:
            return getattr(values, name)(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


async def _serve(settings: ServerSettings, models: Models, preload: list[str], sockets: list[socket.socket]) -> None:
    import asyncio

    import uvicorn

    from ..manager import Manager
    from ..runner import Runner
    from ..server import create_app
    from ..server.metrics import Metrics
    from ..server.ollama.options import load_wishes, parse_options
    from ..server.services import Services
    from ..server.sockets import addresses

    metrics = Metrics()
    manager = Manager(
        metrics.timing(Runner.start), max_models=settings.max_models, default_keep_alive=settings.keep_alive
    )
    services = Services(models, manager, settings, metrics)
    try:
        for name in dict.fromkeys(preload):
            info(f"loading {name}")
            entry, facts, extras = await services.find(name)
            async with manager.use(services.load_params(entry, facts, load_wishes(parse_options(None, extras.params)))):
                pass
        config = uvicorn.Config(create_app(services), log_level="warning", access_log=False, ws="none")
        offered = [entry.name for entry in await asyncio.to_thread(models.entries)]
        names = ", ".join(offered[:_SHOWN]) + (f" and {len(offered) - _SHOWN} more" if len(offered) > _SHOWN else "")
        info(f"serving {names} at {' and '.join(addresses(sockets))} (Ctrl-C ends it)")
        await _server(config, manager.close).serve(sockets=sockets)
    finally:
        await manager.close()


def _server(config: Any, end_answers: Callable[[], Awaitable[None]]) -> Any:
    """A server that just returns after a signal; uvicorn's own would raise it again, and end the process by it.

    `end_answers` makes those under way end with an error, when their time is over. Who does not read even that is cut.
    """
    import asyncio
    import contextlib
    import logging
    import signal
    from collections.abc import Iterator

    import uvicorn

    config.timeout_graceful_shutdown = _GRACE + _LAST_WORDS
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut)

    async def end_late() -> None:
        await asyncio.sleep(_GRACE)
        await end_answers()

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            ending = asyncio.create_task(end_late())
            try:
                await super().shutdown(sockets)
            finally:
                ending.cancel()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

    return Server(config)


def _is_no_cut(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log is not the traceback of an answer that it cut itself; it tells of those."""
    import asyncio

    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, asyncio.CancelledError)
