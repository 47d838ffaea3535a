"""The server's settings: flags, else environment, else a file, else defaults. The only place that reads these for it.

Each setting has a flag (`--max-models`), a variable of the environment (`LOOM_MAX_MODELS`), and a section and key in
files in The Loom's form (`models: {max_loaded: 3}`), which is a variable too (`LOOM_MODELS__MAX_LOADED`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..context import Precision
from ..errors import SettingsError
from . import values
from .file import Given, find_file, read_file

__all__ = ["ServerSettings", "Transport", "duration"]

logger = logging.getLogger(__name__)

PREFIX = "LOOM_"
Transport = Literal["http", "unix", "both"]
duration = values.duration


@dataclass(frozen=True)
class ServerSettings:
    """How the server runs."""

    host: str = "127.0.0.1"
    port: int = 11434  # 0: any free one
    transport: Transport = "http"
    unix_socket: Path = Path("/tmp/loom.sock")
    models_dir: Path | None = None  # whose .gguf files are offered by name
    allow_paths: bool = False  # whether requests may name files by their paths
    preload: tuple[str, ...] = ()  # models to be loaded before anybody is served
    parallel: int = 4  # sequences of one model at once
    max_models: int = 3  # loaded at once
    keep_alive: float = 300.0  # seconds that an idle model stays; negative: for ever
    ctx: int = 4096  # tokens of one sequence, where a request does not say; at most the model's own length
    precision: Precision = "fast"
    device: str = "auto"  # where models are loaded; see loom_gguf.placement
    split_mode: str = "layer"  # over several GPUs
    main_gpu: int = 0  # the one that has a model whole where the split mode is none
    tensor_split: tuple[float, ...] = ()  # of each GPU; (): by their free memory
    default_layers: tuple[int, ...] | None = (-1,)  # of The Loom's requests that do not say; None: all
    chat_hidden_states: bool = False  # whether /v1/chat/completions gives them where a request does not say
    origins: tuple[str, ...] = ()  # web pages' origins that may ask, besides those of this machine; "*": all
    api_key: str | None = None  # to be sent as `Authorization: Bearer ...`
    queue: int = 64  # requests that may wait for one model
    max_body: int = 64 * 2**20  # bytes of a request
    max_answer: int = 2**30  # bytes of captured numbers in one answer without streaming
    log_level: str = "info"
    log_file: Path | None = None  # None: stderr

    @classmethod
    def read(cls, environ: Mapping[str, str], flags: Mapping[str, Any], file: Path | None = None) -> ServerSettings:
        """Settings from `flags` (those that are None were not given), the environment, and a file.

        `file`: None looks in the usual places. SettingsError names the file, the line and the key, or the variable.
        """
        where = file or find_file(environ)
        in_file = (
            {}
            if where is None
            else _from_file(read_file(where, chosen=file is not None, opaque=lambda key: _instead(key) is not None))
        )
        in_environ = _from_environment(environ)
        given = {field.name: flags.get(field.name) for field in fields(cls)}
        return cls(**in_file | in_environ | {name: value for name, value in given.items() if value is not None})


# A setting's parser, and where it stands in a file: "section.key".
_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "host": (values.text, "server.http_host"),
    "port": (values.port, "server.http_port"),
    "transport": (values.transport, "server.transport"),
    "unix_socket": (values.path, "server.unix_socket"),
    "origins": (values.origins, "server.cors_origins"),
    "api_key": (values.secret, "server.api_key"),
    "queue": (values.positive, "server.queue"),
    "max_body": (values.positive, "server.max_body"),
    "max_answer": (values.positive, "server.max_answer"),
    "models_dir": (values.path, "models.dir"),
    "allow_paths": (values.boolean, "models.allow_paths"),
    "preload": (values.words, "models.preload"),
    "max_models": (values.positive, "models.max_loaded"),
    "keep_alive": (values.duration, "models.keep_alive"),
    "parallel": (values.positive, "models.parallel"),
    "ctx": (values.positive, "models.ctx"),
    "device": (values.device, "gpu.default_device"),
    "split_mode": (values.split_mode, "gpu.split_mode"),
    "main_gpu": (values.index, "gpu.main_gpu"),
    "tensor_split": (values.proportions, "gpu.tensor_split"),
    "default_layers": (values.layers, "hidden_states.default_layers"),
    "precision": (values.precision, "hidden_states.precision"),
    "chat_hidden_states": (values.boolean, "hidden_states.chat_default"),
    "log_level": (values.log_level, "logging.level"),
    "log_file": (values.path, "logging.file"),
}

# Other names of settings, with parsers of their own.
_ALIASES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "models.auto_unload_minutes": ("keep_alive", values.minutes),
}
_VARIABLES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "LOOM_AUTO_UNLOAD_MINUTES": ("keep_alive", values.minutes),
    "LOOM_DEFAULT_DEVICE": ("device", values.device),
}

# What The Loom knows and a GGUF file has no use for, by the end of the name: accepted, with a word on what to do.
_MEANINGLESS: Mapping[str, str] = {
    "trust_remote_code": "a GGUF file holds no code: leave it out",
    "memory_fraction": "llama.cpp takes what a model needs: choose a smaller quantization, --ctx or fewer layers on "
    "the GPU (the option num_gpu)",
    "default_dtype": "a GGUF file has its type already: choose the file, or --precision",
    "default_kwargs": "give --device, --ctx and --precision instead",
    "model_overrides": "give options with each request, or start another server",
    "cors_allow_credentials": "this server knows no cookies: give --api-key where not everybody may ask",
    "include_attention": "ask for it with return_attention",
    "cache_dir": "set HF_HOME, or name a folder of .gguf files with --models-dir",
    "format": "log lines have one form",
    "persistence": "save answers in your program, or use `loom-gguf run --out`",
    "memory": "choose a smaller quantization, or --ctx",
    "loaders": "a GGUF file has one loader: leave it out",
    "gpu.devices": "choose GPUs with --device or --tensor-split, or hide them with CUDA_VISIBLE_DEVICES",
}
_THE_LOOMS_PRECISIONS = ("float32", "float16", "bfloat16")


def _from_file(given: Mapping[str, Given]) -> dict[str, Any]:
    keys = {at: (name, parser) for name, (parser, at) in _SETTINGS.items()} | dict(_ALIASES)
    found: dict[str, Any] = {}
    for at, item in given.items():
        if _is_meaningless(at, item.where):
            continue
        if at not in keys:
            section, _, key = at.partition(".")
            known = sorted(each.partition(".")[2] for each in keys if each.startswith(f"{section}."))
            raise SettingsError(
                f"{item.where}: there is no key {key!r:.60} in {section!r:.60}; it may have {', '.join(known)}"
                if known
                else f"{item.where}: there is no section {section!r:.60}; there may be {', '.join(_sections())}"
            )
        name, parser = keys[at]
        if at == "hidden_states.precision" and item.text in _THE_LOOMS_PRECISIONS:
            logger.warning("%s: %s has no effect: a request chooses how rows are sent", item.where, at)
            continue
        try:
            found[name] = parser(item.text)
        except ValueError as error:
            raise SettingsError(f"{item.where}: {at}: {error}") from None
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    # A later name wins over an earlier one: the short names over those with a section.
    names = {f"{PREFIX}{at.upper().replace('.', '__')}": (name, parser) for name, (parser, at) in _SETTINGS.items()}
    names |= {f"{PREFIX}{at.upper().replace('.', '__')}": found for at, found in _ALIASES.items()}
    names |= _VARIABLES
    names |= {f"{PREFIX}{name.upper()}": (name, parser) for name, (parser, _) in _SETTINGS.items()}
    found: dict[str, Any] = {}
    for variable, (name, parser) in names.items():
        if text := environ.get(variable):
            try:
                found[name] = parser(text)
            except ValueError as error:
                raise SettingsError(f"the environment variable {variable}: {error}") from None
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in names and environ[variable]:
            name = variable.removeprefix(PREFIX).lower()
            if not _is_meaningless(name, f"the environment variable {variable}") and "__" in name:
                raise SettingsError(f"the environment variable {variable} names no setting")
    return found


def _instead(key: str) -> str | None:
    """What to do in place of a key of The Loom's that has no meaning here; None for all others."""
    return next((instead for end, instead in _MEANINGLESS.items() if key.lower().endswith(end)), None)


def _is_meaningless(key: str, where: str) -> bool:
    instead = _instead(key)
    if instead is not None:
        logger.warning("%s: %s has no meaning for GGUF files: %s", where, key, instead)
    return instead is not None


def _sections() -> list[str]:
    return sorted({at.partition(".")[0] for _, at in _SETTINGS.values()})
