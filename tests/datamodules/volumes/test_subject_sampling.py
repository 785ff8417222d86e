"""s': the share of each subject in every epoch, weights, sites, bootstrap."""

import itertools

import numpy as np
import pytest

from datamodules.volumes.subject_sampling import SubjectSampling

NAMES = ["ann", "bob", "cid", "dan", "eve"]
SITES = ["x", "x", "x", "y", "y"]


def counts(sampling: SubjectSampling, epoch: int, patches: int) -> np.ndarray:
    drawn = [sampling.draw(epoch, index, patches)[0] for index in range(patches)]
    return np.bincount(drawn, minlength=len(NAMES))


@pytest.mark.parametrize("patches", [3, 5, 20, 23])
@pytest.mark.parametrize("weights", [None, {"ann": 2.5, "eve": 0}])
def test_every_epoch_holds_the_shares_that_were_asked_for(patches, weights):
    sampling = SubjectSampling(0, NAMES, SITES, weights)
    for epoch in range(20):
        found, expected = counts(sampling, epoch, patches), sampling.probabilities * patches
        assert (np.abs(found - expected) < 1).all()
        assert found.sum() == patches


def test_shares_are_right_on_average():
    sampling = SubjectSampling(0, NAMES, SITES, {"ann": 2.5, "eve": 0})
    np.testing.assert_allclose(sampling.probabilities, np.array([2.5, 1, 1, 1, 0]) / 5.5)
    found = np.mean([counts(sampling, epoch, 2) for epoch in range(2000)], 0) / 2
    np.testing.assert_allclose(found, sampling.probabilities, atol=0.03)


def test_the_patches_of_a_subject_are_numbered():
    sampling = SubjectSampling(1, NAMES, SITES, {"cid": 3})
    draws = [sampling.draw(4, index, 31) for index in range(31)]
    for subject in range(len(NAMES)):
        numbers = [number for drawn, number in draws if drawn == subject]
        assert numbers == list(range(len(numbers)))


def test_any_two_subjects_meet_in_an_epoch_of_two_patches():
    sampling = SubjectSampling(0, NAMES, SITES)
    pairs = {frozenset(sampling.draw(epoch, index, 2)[0] for index in range(2)) for epoch in range(200)}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(range(len(NAMES)), 2)}


def test_draws_depend_on_seed_epoch_and_index_alone():
    def draws(seed: int, order: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
        sampling = SubjectSampling(seed, NAMES, SITES)
        return {key: sampling.draw(*key, 7) for key in order}

    keys = list(itertools.product(range(4), range(7)))
    assert draws(0, keys) == draws(0, keys[::-1])
    assert draws(0, keys) != draws(1, keys)


def test_sites_get_the_same_share():
    sampling = SubjectSampling(0, NAMES, SITES, {"ann": 2}, balance_sites=True)
    np.testing.assert_allclose(sampling.probabilities, [1 / 4, 1 / 8, 1 / 8, 1 / 4, 1 / 4])
    without = SubjectSampling(0, NAMES, SITES, {"dan": 0, "eve": 0}, balance_sites=True)
    np.testing.assert_allclose(without.probabilities, [1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_a_bootstrap_draws_as_many_subjects_as_there_are_once():
    names = [str(number) for number in range(1000)]
    sampling = SubjectSampling(5, names, [None] * 1000, bootstrap=True)
    times = sampling.probabilities * 1000
    np.testing.assert_allclose(times, times.round(), atol=1e-9)
    assert (times == 0).mean() == pytest.approx(np.exp(-1), abs=0.04)
    again, other = (SubjectSampling(seed, names, [None] * 1000, bootstrap=True) for seed in (5, 6))
    assert (again.probabilities == sampling.probabilities).all()
    assert (other.probabilities != sampling.probabilities).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"fay": 1}}, "subject_weights names 'fay', which is no training subject: ann, bob, cid, dan, eve"),
        ({"weights": {"bob": -1}}, "must be 0 or more, and that of 'bob' is -1"),
        ({"weights": {"bob": float("nan")}}, "that of 'bob' is nan"),
        ({"weights": dict.fromkeys(NAMES, 0)}, "is 0 for every training subject"),
    ],
)
def test_weights_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        SubjectSampling(0, NAMES, SITES, **options)


def test_sites_must_be_known_to_be_balanced():
    with pytest.raises(ValueError, match="that of 'eve' is not known"):
        SubjectSampling(0, NAMES, [*SITES[:4], None], balance_sites=True)
