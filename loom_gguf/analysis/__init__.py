"""Measures of captured hidden states: pure functions from rows to numbers, and the analysis of whole models.

Each measure takes arrays of floats and gives floats, computed in float64; its docstring has the shapes, the definition
and its source. `analyze` applies all of them to every layer of a model or of captured states.
"""

from .geometry import alignment, beta_energy, beta_ratio, energy90, entropy, pca90
from .measuring import TextStates, analyze_states
from .report import MEASURES, Analysis, LayerReport, Measure, TextReport
from .rows import Floats, hidden_state_rows, row_norms, row_turns
from .similarity import anisotropy, cosine_below, cosine_next_token
from .sources import analyze
from .statistics import VectorStatistics, outlier_dimensions, recurring_outliers, sparsity, vector_statistics

__all__ = [
    "MEASURES",
    "Analysis",
    "Floats",
    "LayerReport",
    "Measure",
    "TextReport",
    "TextStates",
    "VectorStatistics",
    "alignment",
    "analyze",
    "analyze_states",
    "anisotropy",
    "beta_energy",
    "beta_ratio",
    "cosine_below",
    "cosine_next_token",
    "energy90",
    "entropy",
    "hidden_state_rows",
    "outlier_dimensions",
    "pca90",
    "recurring_outliers",
    "row_norms",
    "row_turns",
    "sparsity",
    "vector_statistics",
]
