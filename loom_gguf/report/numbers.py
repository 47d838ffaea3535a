"""Numbers for a person to read, and for JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "-"  # where there is no number, in terminals, pages and pictures


def number(value: Any, digits: int = 3) -> str:
    """A number in `digits` significant digits, whole ones in full; "-" for NaN, "inf" for infinity."""
    value = float(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value) or (value == int(value) and abs(value) < 1e6):
        return f"{value:.0f}"
    text = f"{value:#.{digits}g}"
    if "e+" in text and abs(value) < 1e6:
        text = f"{value:.0f}"
    return text.removesuffix(".")


def fixed(value: Any, form: str) -> str:
    """A number in a fixed format such as ".1%"; "-" where it is none."""
    value = float(value)
    return format(value, form) if math.isfinite(value) else MISSING if math.isnan(value) else f"{value:.0f}"


def plain(value: Any) -> Any:
    """A document as JSON has it: tuples as lists, and None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cell(value: Any) -> Any:
    """A value as CSV has it: floats in full, nothing for NaN and None, `inf` for infinity."""
    if isinstance(value, float):  # numpy's float64 too, which prints with its type's name
        return "" if math.isnan(value) else repr(float(value))
    return "" if value is None else value
