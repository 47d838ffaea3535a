"""Packages that loom_gguf can use and does not install by itself: the extra [study]."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingPackageError

# Module -> the package that brings it (scipy and threadpoolctl come with scikit-learn).
_PACKAGES = {
    "pandas": "pandas",
    "scipy": "scikit-learn",
    "sklearn": "scikit-learn",
    "threadpoolctl": "scikit-learn",
    "xarray": "xarray",
}


def optional(module: str, purpose: str) -> Any:
    """Import a module of an optional package; `purpose` begins the error where it is not installed."""
    top = module.partition(".")[0]
    try:
        importlib.import_module(top)
    except ModuleNotFoundError as error:
        if error.name != top:  # the package is there and lacks something of its own
            raise
        package = _PACKAGES[top]
        raise MissingPackageError(
            f"{purpose} needs {package}: pip install {package}, or install loom_gguf with its extra [study]", name=top
        ) from None
    return importlib.import_module(module)
