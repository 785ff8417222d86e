"""s' of equation (6): which subjects a training set's patches come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from datamodules.draws import numbers_for


class SubjectSampling:
    """Deals out an epoch's patches to the subjects, f(seed, epoch, index).

    The sampling is systematic: of n patches, a subject of probability p gives n * p, rounded up or down by chance, so
    that its share of every epoch, and not only its expectation, is p.

    The probability of a subject is proportional to its weight times how often the bootstrap drew it; where sites are
    balanced, each site that has any weight gets the same total.

    Args:
        seed: Seed of all draws.
        subjects: Names, each once.
        sites: Where each was acquired; None where that is not known.
        weights: Weights of subjects by name, 0 or more; subjects that are not named weigh 1.
        balance_sites: Every site is as likely as the others, however many subjects it has.
        bootstrap: The training set is a bootstrap sample: as many subjects as there are, drawn once with replacement,
            f(seed). About 37% of them are then in no epoch.

    Attributes:
        probabilities: float64 (number of subjects,), with sum 1.

    Raises:
        ValueError: A weight is negative or of an unknown subject, all are 0, or a site is not known.
    """

    def __init__(
        self,
        seed: int,
        subjects: Sequence[str],
        sites: Sequence[str | None],
        weights: Mapping[str, float] | None = None,
        balance_sites: bool = False,
        bootstrap: bool = False,
    ) -> None:
        self.seed = seed
        multiples = _weights(subjects, weights or {})
        if bootstrap:
            drawn = (numbers_for(0, "bootstrap", seed).random(len(subjects)) * len(subjects)).astype(np.int64)
            multiples = multiples * np.bincount(drawn, minlength=len(subjects))
            if not multiples.any():
                raise ValueError("subject_weights is 0 for all subjects that the bootstrap drew: choose another seed.")
        self.probabilities = _balanced(multiples, subjects, sites) if balance_sites else multiples / multiples.sum()
        self._dealt: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    def draw(self, epoch: int, index: int, count: int) -> tuple[int, int]:
        """Where patch `index` of the `count` of an epoch comes from.

        Returns:
            The position of the subject, and which of its patches in this epoch it is, counted from 0.
        """
        order, ends = self._deal(epoch, count)
        place = int(np.searchsorted(ends, index, side="right"))
        return int(order[place]), index - int(ends[place - 1] if place else 0)

    def _deal(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The subjects in an order of the epoch, and for each the number of patches up to it."""
        if self._dealt is None or self._dealt[0] != (epoch, count):
            numbers = numbers_for(0, "subjects", self.seed, epoch).random(len(self.probabilities) + 1)
            # In a fixed order, neighbours could never be drawn together where there are fewer patches than subjects.
            order = np.argsort(numbers[1:])
            ends = np.ceil(self.probabilities[order].cumsum() * count - numbers[0]).astype(np.int64)
            last = np.flatnonzero(self.probabilities[order])[-1]
            ends[last:] = count  # whatever the rounding of the sum
            self._dealt = (epoch, count), order, ends
        return self._dealt[1], self._dealt[2]


def _weights(subjects: Sequence[str], weights: Mapping[str, float]) -> np.ndarray:
    """The weight of each subject, float64."""
    unknown = sorted(set(weights) - set(subjects))
    if unknown:
        raise ValueError(f"subject_weights names {unknown[0]!r}, which is no training subject: {', '.join(subjects)}.")
    values = np.array([weights.get(subject, 1.0) for subject in subjects], np.float64)
    bad = [subject for subject, value in zip(subjects, values, strict=True) if not 0 <= value < np.inf]
    if bad:
        raise ValueError(f"subject_weights must be 0 or more, and that of {bad[0]!r} is {weights[bad[0]]}.")
    if not values.any():
        raise ValueError("subject_weights is 0 for every training subject: there is nothing to train on.")
    return values


def _balanced(weights: np.ndarray, subjects: Sequence[str], sites: Sequence[str | None]) -> np.ndarray:
    """Probabilities in proportion to the weights within each site, and the same total for each."""
    for subject, site in zip(subjects, sites, strict=True):
        if site is None:
            raise ValueError(f"balance_sites needs the site of every subject, and that of {subject!r} is not known.")
    totals: Counter[str | None] = Counter()
    for site, weight in zip(sites, weights, strict=True):
        totals[site] += weight
    totals += Counter()  # without sites of weight 0
    shares = [
        weight / totals[site] / len(totals) if weight else 0.0 for site, weight in zip(sites, weights, strict=True)
    ]
    return np.array(shares)
