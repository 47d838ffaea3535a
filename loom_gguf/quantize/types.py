"""The types that llama.cpp's quantizer makes, by the names that its own program has for them."""

from __future__ import annotations

# llama_ftype of llama.h.
TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "Q4_1": 3,
    "Q4_0": 2,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "MXFP4_MOE": 38,
    "Q3_K_L": 13,
    "Q3_K_M": 12,
    "Q3_K_S": 11,
    "IQ3_M": 27,
    "IQ3_S": 26,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "Q2_K": 10,
    "Q2_K_S": 21,
    "IQ2_M": 29,
    "IQ2_S": 28,
    "IQ2_XS": 20,
    "IQ2_XXS": 19,
    "TQ2_0": 37,
    "TQ1_0": 36,
    "IQ1_M": 31,
    "IQ1_S": 24,
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32"}


def type_named(text: str) -> str:
    """The type of this name, in whatever case. ValueError for none."""
    name = _ALIASES.get(text.upper(), text.upper())
    if name not in TYPES:
        raise ValueError(f"there is no type {text!r:.60}: take one of {', '.join(TYPES)}")
    return name
