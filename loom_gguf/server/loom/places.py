"""The places that a model can come from: what The Loom calls loaders."""

from __future__ import annotations

from collections.abc import Mapping

from ...library import Place

# In the order in which a name is looked for.
PLACES: Mapping[Place, str] = {
    "file": "a .gguf file that the server was started with",
    "demo": "the model that comes with the package",
    "own": "what loom-gguf pulled",
    "folder": "a .gguf file in the folder of --models-dir",
    "ollama": "Ollama's own store",
    "huggingface": "Hugging Face's cache",
    "lmstudio": "LM Studio's folder",
}
