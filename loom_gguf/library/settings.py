"""Where models lie on this machine, as the environment tells it. The only place that reads the environment for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LibrarySettings:
    """Folders of models; those that are not there are empty places."""

    own: Path | None = None  # our own store, the only one that is written to
    folder: Path | None = None  # loose .gguf files
    ollama: tuple[Path, ...] = ()  # Ollama's stores
    hugging_face: Path | None = None  # the cache of huggingface_hub
    lm_studio: tuple[Path, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str], *, folder: Path | None = None) -> LibrarySettings:
        """The folders that `environ` names, else those that the programs use by default.

        LOOM_HOME, XDG_DATA_HOME; LOOM_MODELS_DIR (where `folder` is None); OLLAMA_MODELS; HF_HUB_CACHE,
        HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME; LM_STUDIO_MODELS. An empty variable is one that is not set.
        """

        def named(*names: str) -> Path | None:
            text = next((environ[name] for name in names if environ.get(name)), None)
            return None if text is None else _expanded(text, home)

        home = Path(environ["HOME"]) if environ.get("HOME") else _home()
        data = named("XDG_DATA_HOME") or home / ".local" / "share"
        cache = named("XDG_CACHE_HOME") or home / ".cache"
        ollama, lm_studio = named("OLLAMA_MODELS"), named("LM_STUDIO_MODELS")
        return cls(
            own=(named("LOOM_HOME") or data / "loom_gguf") / "models",
            folder=folder or named("LOOM_MODELS_DIR"),
            # Under Linux Ollama mostly runs as a service with a home of its own.
            ollama=(ollama,) if ollama else (home / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")),
            hugging_face=named("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
            or (named("HF_HOME") or cache / "huggingface") / "hub",
            # The second one is where versions before 0.3.6 put them.
            lm_studio=(lm_studio,) if lm_studio else (home / ".lmstudio" / "models", cache / "lm-studio" / "models"),
        )

    @property
    def all(self) -> tuple[Path, ...]:
        """Every folder."""
        maybe = (self.own, self.folder, *self.ollama, self.hugging_face, *self.lm_studio)
        return tuple(folder for folder in maybe if folder is not None)


def _expanded(text: str, home: Path) -> Path:
    return home / text[2:] if text.startswith("~/") else Path(text)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry in the password database
        return Path("/nonexistent")
