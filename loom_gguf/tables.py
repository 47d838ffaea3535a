"""Captured rows as tables and labelled arrays: pandas and xarray, both of the extra [study]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .analysis import hidden_state_rows
from .errors import NotCapturedError, StatesError
from .optional import optional
from .states import Array, States

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


class Tokenizer(Protocol):
    """What knows the text of a token: a Model."""

    def token_text(self, token_id: int, /) -> str:
        """One token for a person to read."""


Texts = Sequence[str] | Tokenizer


def texts_of(states: States, texts: Texts | None) -> list[str] | None:
    """One text per row; `texts` is a model or has them already, and None stays None."""
    if texts is None:
        return None
    if isinstance(texts, Sequence):
        if isinstance(texts, str) or len(texts) != len(states.tokens):
            raise StatesError(
                f"{len(texts)} texts for {len(states.tokens)} rows: give one text per token, or the model"
            )
        return list(texts)
    found = [texts.token_text(token) for token in states.tokens]
    return found if any(found) else None  # a model without a tokenizer


def to_dataframe(states: States, texts: Texts | None = None, nodes: Iterable[str] | None = None) -> pd.DataFrame:
    """One line per hidden state and token, one column per feature (0 to n_embd - 1); see `States.to_dataframe`."""
    pandas = optional("pandas", "to_dataframe")
    labels, keys, values = _stacked(states, nodes)
    n_states, n_tokens, n_embd = values.shape
    words = texts_of(states, texts)
    levels = {
        "state": np.repeat(np.array(labels, object), n_tokens),
        "node": np.repeat(np.array(keys, object), n_tokens),
        "position": np.tile(np.array(states.positions, np.int64), n_states),
        "token_id": np.tile(np.array(states.tokens, np.int64), n_states),
    }
    if words is not None:
        levels["token"] = np.tile(np.array(words, object), n_states)
    return pandas.DataFrame(
        values.reshape(-1, n_embd),
        index=pandas.MultiIndex.from_arrays(list(levels.values()), names=list(levels)),
        columns=pandas.RangeIndex(n_embd, name="feature"),
    )


def to_xarray(states: States, texts: Texts | None = None, nodes: Iterable[str] | None = None) -> xr.DataArray:
    """An array with the axes state, position and feature; see `States.to_xarray`."""
    xarray = optional("xarray", "to_xarray")
    labels, keys, values = _stacked(states, nodes)
    words = texts_of(states, texts)
    coords = {
        "state": labels,
        "node": ("state", keys),
        "position": states.positions,
        "token_id": ("position", states.tokens),
        **({} if words is None else {"token": ("position", words)}),
        "feature": np.arange(values.shape[2]),
    }
    return xarray.DataArray(
        values,
        dims=("state", "position", "feature"),
        coords=coords,
        name="hidden_state" if nodes is None else "rows",
        attrs={"n_layer": states.n_layer, "sequence": states.sequence},
    )


def _stacked(states: States, nodes: Iterable[str] | None) -> tuple[list[str], list[str], Array]:
    """Labels, node keys and rows (S, T, E), a copy."""
    if isinstance(nodes, str):
        raise TypeError("nodes is a list of names; for one name write [name]")
    if nodes is None:
        rows = hidden_state_rows(states)
        roles = states.roles
        named = {"embedding": roles.embedding, "final": roles.final}
        keys = [named.get(label) or roles.layers[int(label)] for label in rows]
    else:
        keys = list(nodes)
        # A generation step gives its one row without the first axis.
        rows = {key: states[key][None] if states._single else states[key] for key in keys}
        if not rows:
            raise NotCapturedError("no nodes are named")
    widths = {label: array.shape[1:] for label, array in rows.items()}
    odd = next((label for label, width in widths.items() if len(width) != 1), None)
    if odd is not None:
        raise StatesError(f"a row of {odd} has the shape {widths[odd]}, but a table needs vectors: use states[{odd!r}]")
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{label} {width[0]}" for label, width in widths.items())
        raise StatesError(f"the rows differ in width ({told}): make one table for each, with nodes=[...]")
    return list(rows), keys, np.stack(list(rows.values()))
