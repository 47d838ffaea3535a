"""Hidden states over HTTP, to programs that speak Ollama's API.

schemas     what requests look like
options     requests to plain data that a model's process understands
hidden      `expose_hidden`: which rows, and how they stand in JSON
generation  /api/generate and /api/chat; embedding: /api/embed; listing: what is there
models      names to files; tokens: token ids to texts
app         all of it together, with its guards
"""

from .app import create_app

__all__ = ["create_app"]
