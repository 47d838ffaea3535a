"""Settings: flags, the environment and files, and what is said of wrong ones."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from loom_gguf.cli import main
from loom_gguf.errors import LoomError, SettingsError
from loom_gguf.settings import ServerSettings, duration


def test_flags_beat_the_environment_which_beats_defaults() -> None:
    environ = {"LOOM_PORT": "80", "LOOM_KEEP_ALIVE": "1h", "LOOM_ORIGINS": "https://a.example/, b", "LOOM_API_KEY": "k"}
    settings = ServerSettings.read(environ, {"port": 90, "host": None})
    assert (settings.port, settings.host, settings.keep_alive) == (90, "127.0.0.1", 3600)
    assert (settings.origins, settings.api_key) == (("https://a.example", "b"), "k")
    assert ServerSettings.read({"LOOM_PORT": ""}, {}) == ServerSettings()


@pytest.mark.parametrize("name", ["PORT", "PARALLEL", "KEEP_ALIVE", "PRECISION", "CTX"])
def test_a_wrong_variable_is_named(name: str) -> None:
    with pytest.raises(LoomError, match=f"LOOM_{name}"):
        ServerSettings.read({f"LOOM_{name}": "much"}, {})


@pytest.mark.parametrize("text", ["", "5", "5x", "m", "1h 30m", "nan", "inf", "1e300", "5m5", "--5m", "9" * 40 + "h"])
def test_durations(text: str) -> None:
    if text == "5":
        assert duration(text) == 5
    else:
        with pytest.raises(ValueError, match=r".+"):
            duration(text)


def test_an_empty_key_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "server: {api_key: ''}")
    with pytest.raises(LoomError, match="key is empty"):
        ServerSettings.read({}, {}, file)
    assert main(["serve", "--api-key", ""]) == 2


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


THE_LOOMS = """
server:
  transport: both
  http_host: 0.0.0.0
  http_port: 8080
  unix_socket: /tmp/other.sock
  cors_origins: ["https://a.example", "https://b.example/"]
gpu:
  default_device: cuda:1
hidden_states:
  default_layers: [-1, 0, 5]
models:
  preload:
    - demo
    - other
  max_loaded: 5
  auto_unload_minutes: 20
logging:
  level: DEBUG
  file: null
"""


def test_a_file_in_the_looms_form(tmp_path: Path) -> None:
    settings = ServerSettings.read({}, {}, written(tmp_path / "any.yaml", THE_LOOMS))
    assert settings == ServerSettings(
        transport="both",
        host="0.0.0.0",
        port=8080,
        unix_socket=Path("/tmp/other.sock"),
        origins=("https://a.example", "https://b.example"),
        device="cuda:1",
        default_layers=(-1, 0, 5),
        preload=("demo", "other"),
        max_models=5,
        keep_alive=1200.0,
        log_level="debug",
    )


def test_the_command_line_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "any.yaml", "server: {http_port: 1, queue: 2}\nmodels: {max_loaded: 3, parallel: 4}\n")
    environ = {"LOOM_PORT": "11", "LOOM_MODELS__MAX_LOADED": "13", "LOOM_QUEUE": "12"}
    settings = ServerSettings.read(environ, {"port": 21, "ctx": None}, file)
    assert (settings.port, settings.queue, settings.max_models, settings.parallel) == (21, 12, 13, 4)


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("LOOM_HOST", "::1", "host", "::1"),
        ("LOOM_MAX_MODELS", "7", "max_models", 7),
        ("LOOM_AUTO_UNLOAD_MINUTES", "2", "keep_alive", 120.0),
        ("LOOM_AUTO_UNLOAD_MINUTES", "0", "keep_alive", -1.0),
        ("LOOM_MODELS__AUTO_UNLOAD_MINUTES", "0.5", "keep_alive", 30.0),
        ("LOOM_DEFAULT_DEVICE", "cpu", "device", "cpu"),
        ("LOOM_GPU__DEFAULT_DEVICE", "cpu", "device", "cpu"),
        ("LOOM_LOG_LEVEL", "Warning", "log_level", "warning"),
        ("LOOM_HIDDEN_STATES__DEFAULT_LAYERS", "all", "default_layers", None),
        ("LOOM_CHAT_HIDDEN_STATES", "yes", "chat_hidden_states", True),
        ("LOOM_TENSOR_SPLIT", "3,1", "tensor_split", (3.0, 1.0)),
        ("LOOM_SERVER__TRANSPORT", "unix", "transport", "unix"),
    ],
)
def test_variables(variable: str, text: str, name: str, value: object) -> None:
    assert getattr(ServerSettings.read({variable: text}, {}), name) == value


def test_the_short_variable_beats_the_one_with_a_section() -> None:
    environ = {"LOOM_PORT": "1", "LOOM_SERVER__HTTP_PORT": "2"}
    assert ServerSettings.read(environ, {}).port == 1


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("server:\n  http_prot: 80\n", 2, ["http_prot", "http_port"]),
        ("servers:\n  http_port: 80\n", 2, ["servers", "server"]),
        ("server:\n  http_host: a\n  http_port: eighty\n", 3, ["server.http_port", "eighty"]),
        ("server:\n  http_port: [1, 2]\n", 2, ["server.http_port"]),
        ("server:\n  http_port: {a: 1}\n", 2, ["server.http_port"]),
        ("server:\n  - a\n", 2, ["server"]),
        ("- server\n", 1, ["key: value"]),
        ("server: {http_port: 1\n", 2, ["YAML"]),
        ("server:\n  http_port: 1\n  http_port: 2\n", 3, ["http_port", "twice"]),
        ("models:\n  max_loaded: 0\n", 2, ["models.max_loaded"]),
        ("models:\n  auto_unload_minutes: -1\n", 2, ["auto_unload_minutes"]),
        ("hidden_states:\n  default_layers: [a]\n", 2, ["default_layers"]),
        ("server: !!python/object/apply:os.system [true]\n", 1, ["server"]),
    ],
)
def test_a_wrong_file_is_named_with_line_and_key(text: str, line: int, words: list[str], tmp_path: Path) -> None:
    file = written(tmp_path / "wrong.yaml", text)
    with pytest.raises(SettingsError) as caught:
        ServerSettings.read({}, {}, file)
    for word in [f"{file}, line {line}:", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"# nothing\n", b"server:\n", b"server:\n  http_port:\n"])
def test_a_file_that_says_nothing(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_bytes(text)
    assert ServerSettings.read({}, {}, tmp_path / "empty.yaml") == ServerSettings()


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"a: \x00", b"[" * 5000, b"a: *b"])
def test_what_is_no_yaml(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_bytes(text)
    with pytest.raises(SettingsError, match="YAML"):
        ServerSettings.read({}, {}, tmp_path / "wrong.yaml")


def test_a_chosen_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nosuch"):
        ServerSettings.read({}, {}, tmp_path / "nosuch.yaml")


def test_keys_without_meaning_are_accepted_with_one_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = """
gpu: {memory_fraction: 0.8, devices: [0, 1]}
models: {trust_remote_code: true, default_dtype: auto, transformers_default_kwargs: {a: {b: 1}}, max_loaded: 2}
model_overrides: {"org/model": {loader: transformers}}
hidden_states: {precision: float16}
"""
    with caplog.at_level(logging.WARNING, "loom_gguf"):
        settings = ServerSettings.read({"LOOM_MEMORY_FRACTION": "0.8"}, {}, written(tmp_path / "any.yaml", text))
    assert settings == ServerSettings(max_models=2)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 8
    for key in ("memory_fraction", "devices", "trust_remote_code", "default_dtype", "default_kwargs", "overrides"):
        assert any(key in each for each in said), key


def test_a_variable_with_a_section_that_nobody_knows() -> None:
    with pytest.raises(SettingsError, match="LOOM_SERVER__PROT"):
        ServerSettings.read({"LOOM_SERVER__PROT": "1"}, {})
    ServerSettings.read({"LOOM_OF_ANOTHER_PROGRAM": "1"}, {})  # may be anybody's


def test_files_are_found_where_the_loom_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    home = {"HOME": str(tmp_path)}
    (tmp_path / ".config" / "loom").mkdir(parents=True)
    written(tmp_path / ".config" / "loom" / "config.yaml", "server: {http_port: 3}")
    assert ServerSettings.read(home, {}).port == 3
    written(here / "loom.yaml", "server: {http_port: 2}")
    assert ServerSettings.read(home, {}).port == 2
    written(here / "config.yaml", "server: {http_port: 1}")
    assert ServerSettings.read(home, {}).port == 1
    written(here / "config.yaml", "database: {url: x}")  # of another program
    assert ServerSettings.read(home, {}) == ServerSettings()
    assert "another program" in caplog.text
    with pytest.raises(LoomError, match="there is no section 'database'"):
        ServerSettings.read(home, {}, Path("config.yaml"))


def test_a_whole_file_of_the_looms(tmp_path: Path) -> None:
    """Every key that The Loom's own settings have, as its defaults are: nothing of it stops the server."""
    text = """
server: {transport: http, http_host: 0.0.0.0, http_port: 8080, unix_socket: /tmp/loom.sock, cors_origins: ["*"],
         cors_allow_credentials: false}
gpu: {devices: [0], default_device: 0, memory_fraction: 0.9}
hidden_states: {default_layers: [-1], include_attention: false, precision: float32}
models: {cache_dir: ~/.cache/huggingface, preload: [], max_loaded: 3, default_dtype: auto, trust_remote_code: false,
         auto_unload_minutes: 20}
loaders: {fallback_order: [transformers], transformers_default_kwargs: {}}
logging: {level: INFO, file: null, format: "%(message)s"}
persistence: {enabled: false}
memory: {precision_mode: auto}
model_overrides: {}
"""
    settings = ServerSettings.read({}, {}, written(tmp_path / "any.yaml", text))
    assert settings == ServerSettings(
        host="0.0.0.0", port=8080, origins=("*",), device="gpu:0", keep_alive=1200.0, log_level="info"
    )
