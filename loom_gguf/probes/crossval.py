"""Fitting and testing a linear probe at every hidden state.

The probe is a multinomial logistic regression with an L2 penalty on standardised features. Means and deviations come
from the training texts of each fold alone, so that nothing of a test text reaches its probe.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import LabelsError
from ..optional import optional
from ..states import Array
from .collect import Features, Progress
from .result import ProbeResult

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Fold = tuple[Ints, Ints]  # indices of training and of test texts

_PURPOSE = "a linear probe"
_MAX_ITER = 1000


@dataclass(frozen=True)
class _Task:
    """What is to be predicted, and which texts belong together."""

    labels: Ints  # (N,)
    groups: Ints | None  # (N,)


def probe_layers(
    features: Features | Array,
    labels: Sequence[Any],
    *,
    groups: Sequence[Any] | None = None,
    folds: int = 5,
    repeats: int = 3,
    c: float = 1.0,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeResult:
    """Cross-validated accuracy of a linear probe at each of S hidden states.

    features: of `collect_rows`, or an array (N, S, E).
    labels: N classes; compared as strings.
    groups: N names; texts of one group are never both in training and in test. Give them where texts share what a probe
        could learn by heart: a template, a source, an author.
    folds, repeats: stratified k-fold cross-validation, repeated with other splits; with groups, of whole groups.
    c: inverse strength of the L2 penalty, scikit-learn's C: smaller is a simpler probe.
    confidence: of the intervals, between 0 and 1.
    seed: of the splits and shuffles.
    progress: called with (states done, states in all).

    The control repeats all of it with shuffled labels: whole groups exchange their labels where every group has one,
    else single texts do. What the probes reach above it is J. Hewitt and P. Liang's selectivity ("Designing and
    Interpreting Probes with Control Tasks", EMNLP 2019), for labels of texts. Intervals: see `interval`.
    """
    values, names, facts = _checked(features)
    classes, encoded = _encode(labels)
    task = _Task(encoded, None if groups is None else _encode(groups)[1])
    _check_task(task, classes, len(values), folds, repeats)
    if not c > 0:
        raise ValueError(f"c is a positive number, not {c!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, not {confidence!r}")
    rng = np.random.default_rng(seed)
    splits = _splits(task, folds, repeats, seed)
    shuffled = [_shuffle(task, rng) for _ in range(repeats)]
    control_splits = [_splits(other, folds, 1, seed + repeats + i) for i, other in enumerate(shuffled)]

    n_states = len(names)
    accuracy, low, high, control = (np.empty(n_states) for _ in range(4))
    unfinished = np.zeros(n_states, np.int64)
    # Many small fits: the threads of a BLAS would only wait for each other.
    with optional("threadpoolctl", _PURPOSE).threadpool_limits(limits=1, user_api="blas"):
        for s in range(n_states):
            x = values[:, s].astype(np.float64)
            scores, unfinished[s] = _scores(x, task.labels, splits, c)
            accuracy[s] = scores.mean()
            low[s], high[s] = interval(scores, len(x), folds, confidence)
            parts = [_scores(x, o.labels, own, c) for o, own in zip(shuffled, control_splits, strict=True)]
            control[s] = np.mean([scores.mean() for scores, _ in parts])
            unfinished[s] += sum(failures for _, failures in parts)
            if progress is not None:
                progress(s + 1, n_states)
    return ProbeResult(
        states=names,
        accuracy=accuracy,
        low=low,
        high=high,
        control=control,
        chance=max(Counter(task.labels.tolist()).values()) / len(task.labels),
        classes={name: int(n) for name, n in zip(classes, np.bincount(task.labels), strict=True)},
        n_groups=None if task.groups is None else len(set(task.groups.tolist())),
        folds=folds,
        repeats=repeats,
        c=c,
        confidence=confidence,
        seed=seed,
        unfinished=unfinished,
        facts=facts,
    )


def interval(scores: Floats, n_texts: int, folds: int, confidence: float) -> tuple[float, float]:
    """Confidence interval of an accuracy from the scores of all folds of all repeats, (J,), between 0 and 1.

    At each end the farther one of two intervals:

    - Student's t over the J scores with the variance s² (1/J + n_test/n_train), because the training sets of the folds
      overlap (C. Nadeau and Y. Bengio, "Inference for the Generalization Error", 2003; for repeated cross-validation
      R. Bouckaert and E. Frank, 2004). It knows how much training sets and test groups differ, but the correction is a
      rule of thumb, and where all folds score the same it has no width.
    - Wilson's for n_texts independent trials. It has a width everywhere, but takes texts of one group as independent
      and the training set as given.
    """
    stats = optional("scipy.stats", _PURPOSE)
    mean = float(scores.mean())
    n_scores = len(scores)
    spread = float(scores.std(ddof=1)) * np.sqrt(1 / n_scores + 1 / (folds - 1))
    reach = float(stats.t.ppf((1 + confidence) / 2, n_scores - 1)) * spread
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (mean + z**2 / (2 * n_texts)) / (1 + z**2 / n_texts)
    half = z / (1 + z**2 / n_texts) * np.sqrt(mean * (1 - mean) / n_texts + z**2 / (4 * n_texts**2))
    # Wilson's ends meet the mean at 0 and 1, up to rounding.
    low = min(mean - reach, centre - half, mean)
    high = max(mean + reach, centre + half, mean)
    return max(float(low), 0.0), min(float(high), 1.0)


# -- one state --------------------------------------------------------------------------------------------------


def _scores(x: Floats, y: Ints, splits: list[Fold], c: float) -> tuple[Floats, int]:
    """Accuracy on each fold's test texts, (J,), from features (N, E); and how many fits did not converge."""
    linear_model = optional("sklearn.linear_model", _PURPOSE)
    exceptions = optional("sklearn.exceptions", _PURPOSE)
    scores, unfinished = [], 0
    for train, test in splits:
        mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
        # What does not vary among the training texts tells nothing: rounding must not be blown up to features.
        floor = 1e-6 * np.abs(x[train]).max(axis=0, initial=0.0)
        scale = np.where(deviation > floor, deviation, np.inf)
        probe = linear_model.LogisticRegression(C=c, max_iter=_MAX_ITER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exceptions.ConvergenceWarning)  # counted instead
            probe.fit((x[train] - mean) / scale, y[train])
        unfinished += int(np.max(probe.n_iter_) >= _MAX_ITER)
        scores.append(float(np.mean(probe.predict((x[test] - mean) / scale) == y[test])))
    return np.array(scores), unfinished


def _splits(task: _Task, folds: int, repeats: int, seed: int) -> list[Fold]:
    """Stratified folds, of whole groups where there are any."""
    selection = optional("sklearn.model_selection", _PURPOSE)
    kind = selection.StratifiedKFold if task.groups is None else selection.StratifiedGroupKFold
    splits: list[Fold] = []
    for repeat in range(repeats):
        with warnings.catch_warnings():
            # Shuffled labels of groups may leave a class without a text in some fold: that is no fault.
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            splitter = kind(n_splits=folds, shuffle=True, random_state=seed + repeat)
            splits.extend(splitter.split(np.zeros(len(task.labels)), task.labels, task.groups))
    for train, test in splits:
        if len(test) == 0 or len(np.unique(task.labels[train])) < 2:
            raise LabelsError(
                f"the groups cannot be split into {folds} folds that all have texts to test and two classes to train "
                f"on: use fewer folds, or more and smaller groups"
            )
    return splits


def _shuffle(task: _Task, rng: np.random.Generator) -> _Task:
    """The same groups with labels that mean nothing."""
    if task.groups is not None:
        n_groups = int(task.groups.max()) + 1
        of_group = np.full(n_groups, -1, np.int64)
        of_group[task.groups] = task.labels
        if np.array_equal(of_group[task.groups], task.labels):
            return _Task(rng.permutation(of_group)[task.groups], task.groups)
    return _Task(rng.permutation(task.labels), task.groups)


# -- what comes in ----------------------------------------------------------------------------------------------


def _checked(features: Features | Array) -> tuple[Array, tuple[str, ...], dict[str, Any]]:
    if isinstance(features, Features):
        values, names, facts = features.values, features.states, dict(features.facts)
    else:
        values, names, facts = np.asarray(features), (), {}
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "fiu":
        raise LabelsError(
            f"features are numbers of shape (texts, states, n_embd), not {values.dtype} {values.shape}; for one state "
            f"use features[:, None, :]"
        )
    names = names or tuple(map(str, range(values.shape[1])))
    bad = np.argwhere(~np.isfinite(values).all(axis=2))
    if len(bad):
        text, state = bad[0]
        raise LabelsError(
            f"{len(bad)} vectors hold NaN or Inf, the first one of text {text + 1} at state {names[state]}: leave such "
            f"texts or states out"
        )
    return values, names, facts


def _encode(names: Sequence[Any]) -> tuple[list[str], Ints]:
    """The different names in order, and each one's number, (N,)."""
    texts = [str(name) for name in names]
    distinct = sorted(set(texts))
    number = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([number[text] for text in texts], np.int64)


def _check_task(task: _Task, classes: list[str], n_texts: int, folds: int, repeats: int) -> None:
    for what, number, least in (("folds", folds, 2), ("repeats", repeats, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{what} is an integer of at least {least}, not {number!r}")
    for what, numbers in (("labels", task.labels), ("groups", task.groups)):
        if numbers is not None and len(numbers) != n_texts:
            raise LabelsError(f"{len(numbers)} {what} for {n_texts} texts: give one for each")
    if len(classes) < 2:
        raise LabelsError(f"all texts have the label {classes[0]!r}: a probe needs at least two classes")
    counts = np.bincount(task.labels)
    rarest = int(counts.argmin())
    if counts[rarest] < folds:
        raise LabelsError(
            f"only {counts[rarest]} texts have the label {classes[rarest]!r}: for {folds} folds give at least as many "
            f"of each, or use fewer folds"
        )
    if task.groups is not None:
        if int(task.groups.max()) + 1 < folds:
            raise LabelsError(
                f"{int(task.groups.max()) + 1} groups cannot be split into {folds} folds: use fewer folds"
            )
        for number, name in enumerate(classes):
            if len(np.unique(task.groups[task.labels == number])) < 2:
                raise LabelsError(
                    f"all texts of the label {name!r} are in one group, so no probe can be both trained and tested on "
                    f"it: give each label at least two groups"
                )
