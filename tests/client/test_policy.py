"""A hospital's policy stands above every study: it refuses, it takes away, it ends what lasts too long."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from benchmarks.bare_run import bare_study, evaluated_answer, prepared_answer
from client.policy import clamped, clamped_preparation, require_within, smallest_cell, time_is_up
from shared.errors import PolicyError
from shared.metrics.pooling import pool
from shared.profile import Output, Policy
from shared.results import ClassRow, Difference, Estimate, Evaluated, ScoreHistogram, SvmChoice

ALL: tuple[Output, ...] = get_args(Output)
GROUPS: dict[Output, float] = {"svm": 0.51, "gain": 0.52, "classes": 0.53, "histogram": 0.54}


def full() -> Evaluated:
    """An evaluation whose groups can be told apart by their numbers."""
    plain = evaluated_answer(images=100)
    by_class = Estimate(value=GROUPS["classes"])
    rows = [
        ClassRow(images=50, precision=by_class, recall=by_class, specificity=by_class, f1=by_class, auc=by_class)
    ] * 2
    gain = Difference(value=GROUPS["gain"], low=0.1, high=0.6, standard_error=0.1)
    network = plain.network.model_copy(
        update={
            "classes": rows,
            "gain": {"auc": gain},
            "histogram": ScoreHistogram(
                edges=[0, GROUPS["histogram"], 1], positive=[9, 41], negative=[41, 9], minimum_cell=5
            ),
        }
    )
    svm = network.model_copy(update={"auc": Estimate(value=GROUPS["svm"])})
    choice = SvmChoice(C=1, gamma=1, cross_validation_score=GROUPS["svm"], support_vectors=3)
    return plain.model_copy(update={"network": network, "svm": svm, "svm_paper": svm, "svm_choice": choice})


def without(*names: Output) -> Policy:
    return Policy(allowed_outputs=[name for name in ALL if name not in names])


def values_in(result: Any) -> set[float]:
    """Every number of the text that would leave."""
    found: set[float] = set()
    json.loads(result.model_dump_json(), parse_float=lambda text: found.add(float(text)))
    return found


def test_all_leaves_where_all_may() -> None:
    assert clamped(full(), Policy()) == full()
    prepared = prepared_answer().model_copy(update={"baseline": full()})
    assert clamped_preparation(prepared, Policy()) == prepared


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_that_may_not_leave_is_taken_away_and_the_others_stay(name: Output) -> None:
    left = values_in(clamped(full(), without(name)))
    assert {group for group, value in GROUPS.items() if value in left} == set(GROUPS) - {name}
    prepared = prepared_answer().model_copy(update={"baseline": full()})
    assert GROUPS[name] not in values_in(clamped_preparation(prepared, without(name)))


def test_what_is_left_is_still_of_the_schema_and_can_be_pooled() -> None:
    left = clamped(full(), without("svm", "gain", "classes", "histogram"))
    assert Evaluated.model_validate_json(left.model_dump_json()) == left
    pooled = pool([left, full()], "network", positive=1, confidence=0.95)
    assert pooled is not None and pooled.images == 200


def test_without_the_network_no_evaluation_leaves() -> None:
    with pytest.raises(PolicyError):
        clamped(full(), without("network"))
    prepared = prepared_answer().model_copy(update={"baseline": full()})
    for name in ("network", "baseline"):
        assert clamped_preparation(prepared, without(name)) == prepared_answer()


def test_more_rounds_than_allowed_are_refused() -> None:
    require_within(bare_study(rounds=3), Policy(maximum_rounds=3))
    with pytest.raises(PolicyError, match="3 rounds"):
        require_within(bare_study(rounds=3), Policy(maximum_rounds=2))


@pytest.mark.parametrize(("study", "site", "cell"), [(5, 7, 7), (7, 5, 7), (6, 6, 6)])
def test_the_larger_minimum_cell_counts(study: int, site: int, cell: int) -> None:
    asked = bare_study()
    asked = asked.model_copy(update={"evaluation": asked.evaluation.model_copy(update={"minimum_cell": study})})
    assert smallest_cell(asked, Policy(minimum_cell=site)) == cell


def test_a_round_is_over_when_its_time_is_up() -> None:
    now = [100.0]
    over = time_is_up(Policy(maximum_round_s=60), begun=100.0, clock=lambda: now[0])
    assert not over()
    now[0] = 160.0
    assert not over()
    now[0] = 160.1
    assert over()
