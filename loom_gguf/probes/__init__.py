"""Linear probes: at which layer can a label be read off the hidden states?

>>> features = collect_rows(model, texts, pooling="last_token")
>>> result = probe_layers(features, labels)
>>> result.best, result.chance, result.plot()

N is the number of texts, S that of hidden states (embedding, layers, final), E is n_embd. Needs scikit-learn, which the
extra [study] brings.
"""

from .collect import Features, collect_rows
from .crossval import probe_layers
from .curves import draw_curves
from .labelled import LabelledTexts, read_labelled
from .result import ProbeResult

__all__ = [
    "Features",
    "LabelledTexts",
    "ProbeResult",
    "collect_rows",
    "draw_curves",
    "probe_layers",
    "read_labelled",
]
