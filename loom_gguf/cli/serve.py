"""`loom-gguf serve`: models over HTTP, to programs that speak Ollama's API."""

from __future__ import annotations

import argparse
import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoomError
from .output import info

if TYPE_CHECKING:
    from ..library import Entry
    from ..server.models import Models
    from ..settings import ServerSettings

_SHOWN = 8  # names of models
_GRACE = 5  # seconds that answers under way still have after Ctrl-C or SIGTERM


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "serve",
        help="offer models over HTTP, with Ollama's API and hidden states",
        usage="loom-gguf serve [MODEL ...] [options]",
        description="Offer models over HTTP to programs that speak Ollama's API; `expose_hidden` in a request adds "
        "hidden states to the answer. Each option can be set in the environment too, e.g. LOOM_PORT for --port.",
        epilog="Example: loom-gguf serve ~/models/qwen3.gguf --port 8080",
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="paths of .gguf files to offer beside the models of `loom-gguf list`, or names of those; the first is "
        "loaded at once",
    )  # fmt: skip
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 is all of them (default: 127.0.0.1)")
    parser.add_argument("--port", type=_as("port"), metavar="N", help="0 is any free one (default: 11434)")
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="offer all .gguf files in this folder by name")
    parser.add_argument(
        "--allow-paths", action="store_const", const=True,
        help="open any .gguf file of this machine that a request names by its path",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", type=_as("positive"), metavar="N", help="requests that one model computes at once (default: 4)"
    )
    parser.add_argument("--max-models", type=_as("positive"), metavar="N", help="models in memory at once (default: 3)")
    parser.add_argument(
        "--keep-alive", type=_as("duration"), metavar="TIME",
        help="how long an unused model stays loaded: seconds, or e.g. 5m, 1h30m; -1 is for ever (default: 5m)",
    )  # fmt: skip
    parser.add_argument(
        "--ctx", type=_as("positive"), metavar="N",
        help="tokens of one request's context, where it does not say (default: 4096)",
    )  # fmt: skip
    parser.add_argument("--precision", choices=("fast", "exact"), help="as in `loom-gguf run` (default: fast)")
    parser.add_argument(
        "--origins", type=_as("origins"), metavar="LIST",
        help="web pages that may ask, besides those of this machine: origins with commas (https://a.example), or *",
    )  # fmt: skip
    parser.add_argument(
        "--api-key", metavar="KEY", help="ask for this key; better set as LOOM_API_KEY, where no list of processes "
        "shows it",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=_as("positive"), metavar="N", help="requests that may wait for one model (default: 64)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    import asyncio
    import logging

    from ..library import Library, LibrarySettings, find
    from ..server.models import Models
    from ..settings import ServerSettings

    settings = ServerSettings.read(os.environ, vars(args))
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise LoomError(f"--models-dir: there is no folder {settings.models_dir}")
    named = [find(model).usable() for model in args.models]
    files = [entry.path.absolute() for entry in named if entry.place == "file" and entry.path is not None]
    library = Library(
        LibrarySettings.read(os.environ, folder=settings.models_dir), files, allow_paths=settings.allow_paths
    )
    models = Models(library=library)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("loom_gguf").setLevel(logging.INFO)
    logging.getLogger("loom_gguf.llama_cpp").setLevel(logging.WARNING)  # it says hundreds of lines about each model
    with _listen(settings.host, settings.port) as listening:
        asyncio.run(_serve(settings, models, named[0] if named else None, listening))
    return 0


def _as(name: str) -> Any:
    """A parser of the settings', which are imported when there is something to be parsed."""

    def parse(text: str) -> Any:
        from .. import settings

        try:
            return getattr(settings, name)(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise LoomError(f"--host {host}: {error.strerror}") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # else two servers could bind, and only one of them hear of it later
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise LoomError(
                f"port {port} on {host} is taken, likely by Ollama, which uses it too: stop that, or use another one "
                f"with --port"
            ) from None
        raise LoomError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    return listening


async def _serve(settings: ServerSettings, models: Models, first: Entry | None, listening: socket.socket) -> None:
    import asyncio

    import uvicorn

    from ..manager import Manager
    from ..runner import Runner
    from ..server import create_app
    from ..server.options import load_params, parse_options

    manager = Manager(Runner.start, max_models=settings.max_models, default_keep_alive=settings.keep_alive)
    try:
        if first is not None and first.path is not None:
            path = first.path.absolute()
            facts = await asyncio.to_thread(models.facts, path)
            extras = await asyncio.to_thread(models.extras, first)
            info(f"loading {first.name}")
            options = parse_options(None, extras.params)
            async with manager.use(load_params(path, options, settings, facts.n_ctx_train)):
                pass
        config = uvicorn.Config(
            create_app(models, manager, settings),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GRACE,
            ws="none",
        )
        offered = [entry.name for entry in await asyncio.to_thread(models.entries)]
        names = ", ".join(offered[:_SHOWN]) + (f" and {len(offered) - _SHOWN} more" if len(offered) > _SHOWN else "")
        host, port = listening.getsockname()[:2]
        info(f"serving {names} at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
        await _server(config).serve(sockets=[listening])
    finally:
        await manager.close()


def _server(config: Any) -> Any:
    """A server that just returns after a signal; uvicorn's own would raise it again, and end the process by it."""
    import contextlib
    import signal
    from collections.abc import Iterator

    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

    return Server(config)
