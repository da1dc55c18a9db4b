"""What every accountant must do, whatever its method; and that the tight two agree."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from shared.audit.epsilon import TOLERANCE, EpsilonCheck, check_epsilon
from shared.audit.privacy_loss import composed_epsilon
from shared.errors import MechanismError
from shared.privacy.mechanisms import Event, Events, Geometric, SubsampledGaussian
from shared.privacy.orders import ORDERS
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import epsilon_of_vector, rdp_epsilon, rdp_vector

Accountant = Callable[[Events, float], float]
ACCOUNTANTS = {"rdp": rdp_epsilon, "pld": pld_epsilon, "independent": composed_epsilon}
TIGHT = {"pld": pld_epsilon, "independent": composed_epsilon}

DELTA = 1e-5
USUAL = SubsampledGaussian(sampling_rate=32 / 350, noise_multiplier=1.0, steps=220)
SMALL = SubsampledGaussian(sampling_rate=0.1, noise_multiplier=2.0, steps=40)


def gaussian_epsilon(mean: float, delta: float) -> float:
    """Balle and Wang 2018 (https://arxiv.org/abs/1805.06530), theorem 8: one Gaussian release with sensitivity / deviation `mean`."""

    def excess(epsilon: float) -> float:
        return float(
            math.exp(log_ndtr(mean / 2 - epsilon / mean))
            - math.exp(epsilon + log_ndtr(-mean / 2 - epsilon / mean))
            - delta
        )

    return float(brentq(excess, 0.0, mean * mean + 20 * mean, xtol=1e-10))


def one_step_epsilon(event: SubsampledGaussian, delta: float) -> float:
    """Both hockey-stick divergences of one step in closed form (the set of outputs is a half-line), and the larger epsilon."""
    q, sigma = event.sampling_rate, event.noise_multiplier

    def remove(epsilon: float) -> float:
        x = sigma**2 * math.log((math.exp(epsilon) - 1 + q) / q) + 0.5
        return (1 - q - math.exp(epsilon)) * ndtr(-x / sigma) + q * ndtr((1 - x) / sigma) - delta

    def add(epsilon: float) -> float:
        if math.exp(-epsilon) <= 1 - q:
            return -delta
        x = sigma**2 * math.log((math.exp(-epsilon) - 1 + q) / q) + 0.5
        return ndtr(x / sigma) - math.exp(epsilon) * ((1 - q) * ndtr(x / sigma) + q * ndtr((x - 1) / sigma)) - delta

    return max(brentq(one, 0.0, 50.0) if one(0.0) > 0 else 0.0 for one in (remove, add))


@pytest.fixture(params=ACCOUNTANTS)
def accountant(request: pytest.FixtureRequest) -> Accountant:
    return ACCOUNTANTS[request.param]


@pytest.fixture(params=TIGHT)
def tight(request: pytest.FixtureRequest) -> Accountant:
    return TIGHT[request.param]


class TestEveryAccountant:
    def test_nothing_and_zero_steps_cost_nothing(self, accountant: Accountant) -> None:
        nothing = SubsampledGaussian(0.1, 1.0, 0)
        assert accountant([], DELTA) == accountant([nothing], DELTA) == 0.0
        assert accountant([SMALL, nothing], DELTA) == pytest.approx(accountant([SMALL], DELTA), abs=1e-9)

    @pytest.mark.parametrize(
        "more",
        [
            SubsampledGaussian(0.1, 2.0, 44),
            SubsampledGaussian(0.1, 1.9, 40),
            SubsampledGaussian(0.11, 2.0, 40),
        ],
        ids=["steps", "less noise", "sampling rate"],
    )
    def test_more_of_it_costs_more(self, accountant: Accountant, more: SubsampledGaussian) -> None:
        assert accountant([more], DELTA) > accountant([SMALL], DELTA) * 1.01

    def test_a_smaller_delta_costs_more(self, accountant: Accountant) -> None:
        assert accountant([SMALL], 1e-7) > accountant([SMALL], DELTA) * 1.01

    def test_steps_in_pieces_cost_what_they_cost_at_once(self, accountant: Accountant) -> None:
        pieces = [SubsampledGaussian(0.1, 2.0, steps) for steps in (13, 0, 27)]
        assert accountant(pieces, DELTA) == pytest.approx(accountant([SMALL], DELTA), abs=2e-4)

    def test_the_order_of_events_does_not_matter(self, accountant: Accountant) -> None:
        events: list[Event] = [SMALL, Geometric(0.2), SubsampledGaussian(0.05, 1.5, 10)]
        assert accountant(events, DELTA) == pytest.approx(accountant(events[::-1], DELTA), abs=1e-6)

    def test_composition_costs_at_most_the_sum_and_at_least_the_dearest(self, accountant: Accountant) -> None:
        parts: list[Event] = [SMALL, Geometric(0.5)]
        together = accountant(parts, 2e-5)
        assert together <= sum(accountant([part], 1e-5) for part in parts) + 1e-3
        assert together > max(accountant([part], 2e-5) for part in parts)

    def test_a_pure_release_costs_at_most_its_epsilon(self, accountant: Accountant) -> None:
        assert 0.49 < accountant([Geometric(0.5)], DELTA) <= 0.51

    def test_the_plain_gaussian_is_never_undercharged(self, accountant: Accountant) -> None:
        for sigma, steps in ((1.0, 1), (4.0, 50), (20.0, 3)):
            exact = gaussian_epsilon(math.sqrt(steps) / sigma, DELTA)
            assert accountant([SubsampledGaussian(1.0, sigma, steps)], DELTA) >= exact - 1e-9

    @pytest.mark.parametrize("delta", [0.0, -1e-5, 1e-11, 1.0, math.nan])
    def test_a_delta_out_of_range_is_refused(self, accountant: Accountant, delta: float) -> None:
        with pytest.raises(MechanismError, match="delta"):
            accountant([SMALL], delta)


class TestTheTightOnes:
    @pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (4.0, 50), (100.0, 3)])
    @pytest.mark.parametrize("delta", [1e-3, 1e-10])
    def test_every_patient_in_every_step_is_the_plain_gaussian(
        self, tight: Accountant, sigma: float, steps: int, delta: float
    ) -> None:
        exact = gaussian_epsilon(math.sqrt(steps) / sigma, delta)
        assert tight([SubsampledGaussian(1.0, sigma, steps)], delta) == pytest.approx(exact, abs=1e-3)

    @pytest.mark.parametrize("rate", [0.01, 0.9])
    @pytest.mark.parametrize("sigma", [1.0, 3.0])
    def test_one_step_is_its_closed_form(self, tight: Accountant, rate: float, sigma: float) -> None:
        event = SubsampledGaussian(rate, sigma, 1)
        exact = one_step_epsilon(event, 1e-4)
        assert exact - 1e-9 <= tight([event], 1e-4) <= exact + 1e-3

    def test_pure_releases_add_up_as_kairouz_oh_and_viswanath_say(self, tight: Accountant) -> None:
        """https://arxiv.org/abs/1311.0776, theorem 3.3: k releases of e are ((k - 2i) e, delta_i)."""
        k, e, i = 12, 0.4, 3
        delta = (
            sum(math.comb(k, n) * (math.exp((k - n) * e) - math.exp((k - 2 * i + n) * e)) for n in range(i))
            / (1 + math.exp(e)) ** k
        )
        assert tight([Geometric(e)] * k, delta) == pytest.approx((k - 2 * i) * e, abs=1e-3)


@pytest.fixture(scope="module")
def usual() -> EpsilonCheck:
    return check_epsilon([USUAL], DELTA)


def test_the_figure_of_the_design(usual: EpsilonCheck) -> None:
    """350 patients, 32 expected a step, 220 steps: 9.51 by PLD, and RDP (10.51 in Opacus, whose orders are closer) above it."""
    check = usual
    assert check.pld == pytest.approx(9.51, abs=0.02)
    assert check.independent == pytest.approx(9.51, abs=0.02)
    assert check.rdp == pytest.approx(10.51, abs=0.04) and check.charged_enough and check.agree


def test_a_figure_that_is_asked_for_again_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = pld_epsilon([SMALL, SMALL], DELTA)

    def computed(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("dp_accounting.pld.PLDAccountant", computed)
    assert pld_epsilon([SMALL, SMALL], DELTA) == first
    with pytest.raises(AssertionError, match="computed again"):
        pld_epsilon([SMALL, SMALL], DELTA / 2)


def test_noise_that_differs_by_5_percent_is_noticed(usual: EpsilonCheck) -> None:
    less_noise = SubsampledGaussian(USUAL.sampling_rate, USUAL.noise_multiplier / 1.05, USUAL.steps)
    wrong = replace(usual, independent=composed_epsilon([less_noise], DELTA))
    assert not wrong.agree and wrong.difference > 10 * TOLERANCE and "trust neither" in wrong.sentence()


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(
    rate=st.floats(-3, 0).map(lambda power: 10**power),
    sigma=st.floats(-0.1, 1.3).map(lambda power: 10**power),
    steps=st.floats(0, 4).map(lambda power: round(10**power)),
    delta=st.floats(-9, -2).map(lambda power: 10**power),
)
@example(rate=0.001, sigma=4.0, steps=10_000, delta=1e-6)
@example(rate=1.0, sigma=8.0, steps=300, delta=1e-9)
def test_the_two_tight_ones_agree(rate: float, sigma: float, steps: int, delta: float) -> None:
    event = SubsampledGaussian(rate, sigma, steps)
    assume(rdp_epsilon([event], delta) < 50)
    check = check_epsilon([event], delta)
    assert check.agree and check.charged_enough, check


@settings(max_examples=200)
@given(
    st.floats(-6, 0).map(lambda power: 10**power),
    st.floats(-1.2, 3).map(lambda power: 10**power),
    st.integers(1, 5000),
    st.floats(-10, -0.4).map(lambda power: 10**power),
)
def test_no_setting_breaks_the_orders(rate: float, sigma: float, steps: int, delta: float) -> None:
    epsilon = epsilon_of_vector(_vector_of_gaussian(sigma, steps), delta)
    assert math.isfinite(epsilon) and epsilon >= 0
    assert epsilon >= epsilon_of_vector(rate * _vector_of_gaussian(sigma, steps), delta)


def _vector_of_gaussian(sigma: float, steps: int) -> np.ndarray:
    """steps * order / (2 sigma²), Mironov 2017."""
    return np.asarray(ORDERS) * steps / (2 * sigma**2)


def test_the_vector_of_a_plain_gaussian_is_mironovs() -> None:
    assert rdp_vector(SubsampledGaussian(1.0, 2.0, 7)) == pytest.approx(_vector_of_gaussian(2.0, 7))


def test_the_vector_of_one_sampled_step_is_the_integral() -> None:
    """E[(with / without)^order] by quadrature; fractional orders of dp-accounting are an upper bound."""
    q, sigma = 0.2, 1.5
    x = np.linspace(-40, 60, 400_001)
    density = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    ratio = 1 - q + q * np.exp((2 * x - 1) / (2 * sigma**2))
    vector = dict(zip(ORDERS, rdp_vector(SubsampledGaussian(q, sigma, 1)), strict=True))
    for order in (2.0, 5.0, 16.0):
        exact = math.log((density * ratio**order).sum() * (x[1] - x[0])) / (order - 1)
        assert vector[order] == pytest.approx(exact, rel=1e-6)
    exact = math.log((density * ratio**2.5).sum() * (x[1] - x[0])) / 1.5
    assert exact * (1 - 1e-9) <= vector[2.5] <= exact * 1.05


def test_the_vector_of_a_pure_release_is_randomised_responses() -> None:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    epsilon = 0.7
    reference = RdpAccountant(orders=ORDERS, neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    reference.compose(dp_accounting.RandomizedResponseDpEvent(2 / (1 + math.exp(epsilon)), 2))
    assert rdp_vector(Geometric(epsilon)) == pytest.approx(reference.rdp)


def test_lifetimes_add_up_order_by_order() -> None:
    first, second = [USUAL], [SMALL, Geometric(0.3)]
    total = np.sum([rdp_vector(event) for event in (*first, *second)], axis=0)
    assert epsilon_of_vector(total, DELTA) == pytest.approx(rdp_epsilon([*first, *second], DELTA))
    assert epsilon_of_vector(total, DELTA) < rdp_epsilon(first, DELTA) + rdp_epsilon(second, DELTA)


def test_the_orders_are_those_of_every_ledger() -> None:
    """Orders are part of what a ledger's GENESIS fixes: changing them needs a new ledger, so this line must be changed with thought."""
    assert len(ORDERS) == 160 and ORDERS[0] == 1.1 and ORDERS[-1] == 1024.0 and list(ORDERS) == sorted(set(ORDERS))


def test_neither_accountant_imports_pytorch_and_the_second_not_the_first() -> None:
    code = (
        "import sys; import shared.audit.privacy_loss; assert 'dp_accounting' not in sys.modules; "
        "import shared.privacy.calibration, shared.audit.epsilon; from shared.privacy.mechanisms import Geometric; "
        "shared.privacy.calibration.pld_epsilon([Geometric(1.0)], 1e-5); "
        "assert 'dp_accounting' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
