"""What a private study may not ask for is refused with a sentence each; epsilon is solved for and part of the digest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.bare_run import study_values
from shared.errors import CalibrationError, StudyError
from shared.exact import as_float
from shared.privacy.pld import pld_epsilon
from shared.study import Study, load_study, study_from_data
from shared.study_cost import round_mechanism, run_epsilon, study_events

CHANGES: dict[str, Any] = {
    "model": {"name": "resnet18", "norm": "group"},
    "training": {"optimiser": "sgd", "learning_rate": 0.1, "loss": "binary_cross_entropy"},
    "federation": {"rounds": 4, "quorum": 2, "weighting": "uniform"},
    "evaluation": {"baseline": False, "release": {"epsilon": 0.5}},
    "privacy": {
        "sampling_rate": "32/350", "steps_per_round": 10, "clipping_norm": 1, "normaliser": 32, "noise_multiplier": 1, "delta": 1e-5,
    },
}  # fmt: skip


def values(*key: str, to: Any = None) -> dict[str, Any]:
    """Of a valid private study, with one value changed, or taken out where it is None."""
    made = copy.deepcopy({**study_values(), **CHANGES})
    if key:
        place = made
        for part in key[:-1]:
            place = place.setdefault(part, {})
        if to is None:
            place.pop(key[-1], None)
        else:
            place[key[-1]] = to
    return made


@pytest.mark.parametrize(
    ("key", "to"),
    [
        (("model", "norm"), "batch"),
        (("data", "balanced"), {"per_class": 5, "if_fewer": "refuse"}),
        (("data", "scarce_classes"), "leave_out"),
        (("data", "duplicates"), {"distance": 4}),
        (("data", "split"), {"division": "official"}),
        (("augmentation",), {"horizontal_flip": 0.5, "validation": True}),
        (("training", "class_weights"), "balanced"),
        (("training", "precision"), "bf16"),
        (("training", "local_epochs"), 1),
        (("training", "batch_size"), 16),
        (("federation", "rounds"), 0),
        (("federation", "weighting"), "counts"),
        (("federation", "keep_updates"), False),
        (("evaluation", "release"), None),
        (
            ("model", "weights"),
            {"file": "w.safetensors", "sha256": "0" * 64, "source": "a run", "origin": "federation"},
        ),
    ],
)
def test_what_no_noise_covers_is_refused_by_its_key(key: tuple[str, ...], to: Any) -> None:
    Study.model_validate(values())
    with pytest.raises(ValueError, match=rf"this study can't be private: {'.'.join(key)}"):
        Study.model_validate(values(*key, to=to))


def test_the_starting_models_figures_would_be_another_release() -> None:
    with pytest.raises(ValueError, match="baseline"):
        Study.model_validate(values("evaluation", "baseline", to=True))


def test_noise_or_epsilon_must_be_given() -> None:
    with pytest.raises(ValueError, match="noise_multiplier or epsilon"):
        Study.model_validate(values("privacy", "noise_multiplier"))


@pytest.mark.parametrize(
    ("key", "to"),
    [("sampling_rate", "5/4"), ("sampling_rate", 0), ("delta", 1.5), ("normaliser", 0), ("clipping_norm", "1/0")],
)
def test_a_constant_out_of_its_range_is_refused(key: str, to: Any) -> None:
    with pytest.raises(ValueError, match=f"privacy.{key}"):
        Study.model_validate(values("privacy", key, to=to))


def test_constants_are_kept_as_they_were_written() -> None:
    privacy = Study.model_validate(values()).privacy
    assert privacy is not None
    assert (privacy.sampling_rate, privacy.noise_multiplier, privacy.delta) == ("32/350", "1", "1e-05")


def test_a_private_study_keeps_its_updates_and_a_plain_one_does_not() -> None:
    assert Study.model_validate(values()).keeps_updates
    assert not Study.model_validate(study_values()).keeps_updates


def test_epsilon_is_solved_for_all_releases_and_is_in_the_digest(tmp_path: Path) -> None:
    asked = values("privacy", "noise_multiplier")
    asked["privacy"]["epsilon"] = 4
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(asked))
    study = load_study(path)
    privacy = study.privacy
    assert privacy is not None and privacy.noise_multiplier is not None
    found = run_epsilon(study)[0]
    assert 3.99 < found <= 4
    with pytest.raises(StudyError, match="no noise multiplier that gives it"):
        study_from_data(asked)
    assert study_from_data(study.to_data()).digest() == study.digest()
    less = privacy.model_copy(update={"noise_multiplier": str(as_float(privacy.noise_multiplier) - 2e-4)})
    assert pld_epsilon(study_events(study.model_copy(update={"privacy": less})), 1e-5) > 4
    assert round_mechanism(study).model_dump()["steps"] == 10


def test_where_the_counts_alone_take_the_epsilon_nothing_is_solved(tmp_path: Path) -> None:
    asked = values("privacy", "noise_multiplier")
    asked["privacy"]["epsilon"] = 0.4
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(asked))
    with pytest.raises(CalibrationError, match="beside training"):
        load_study(path)
