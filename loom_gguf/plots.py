"""Pictures of captured hidden states: layers upwards, tokens to the right."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .analysis import Floats, hidden_state_rows, row_norms, row_turns
from .errors import StatesError, StatesFileError
from .states import States
from .states_file import replacing
from .token_labels import token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Literal["turn", "norm"]

_FONT = "DejaVu Sans"  # comes with matplotlib, so pictures look alike everywhere
_NO_VALUE = "#d62728"  # not a colour of the scale: NaN and Inf are seen at once
_DPI = 150
_MAX_LABELS = 100  # more tick labels than this along an axis cannot be read
