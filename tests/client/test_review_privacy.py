"""What a hospital is told of privacy before it says yes or no: epsilons as the accountants say, against the budget for life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from publications import joined, profile_of, published

from benchmarks.bare_run import study_values
from client.cohort_list import keep_list, root_of
from client.ledger import open_ledger
from client.publications import receive
from client.review import Review, review
from client.review_privacy import privacy_rows
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.ledger.entries import Cohort, Reserve
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import rdp_epsilon
from shared.signing import SigningKey
from shared.study import Study
from shared.study_cost import other_mechanisms, round_mechanism, study_events

LIFETIME = {"epsilon": "20", "delta": "1e-6"}
COSTS = "What privacy it costs"


def private_study(*, svm: bool = True, **privacy: Any) -> Study:
    values = study_values(weighting="uniform")
    values["training"] = {"optimiser": "sgd", "learning_rate": 0.1, "loss": "binary_cross_entropy"}
    values["model"] = {"name": "resnet18", "norm": "group"}
    values["evaluation"] = {"baseline": False, "release": {"epsilon": "1/2"}}
    values["privacy"] = {
        "sampling_rate": "1/20", "steps_per_round": 10, "clipping_norm": "1.0", "normaliser": "16", "noise_multiplier": "1.0",
        "delta": "1e-5",
        "svm": {"steps": 5, "noise_multiplier": "4.0"} if svm else None, **privacy,
    }  # fmt: skip
    return Study.model_validate(values)


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "coordinator.key")


def site(path: Path, key: SigningKey, **policy: Any) -> SiteFolder:
    return joined(SiteFolder.create(path, profile_of("anna", **policy)), key)


def reviewed(folder: SiteFolder, key: SigningKey, study: Study) -> Review:
    return review(folder, receive(folder, published(folder.path.parent / "study.json", key, study)))


def rows_of(found: Review, title: str = COSTS) -> dict[str, str]:
    (one,) = [section for section in found.sections if section.title == title]
    return dict(one.rows)


def charged_before(folder: SiteFolder, study: Study, patients: int, run: str) -> None:
    """As if a run of `study` had been reserved on `patients` patients."""
    with open_ledger(folder, run) as ledger:
        tags = Tags.of(folder)
        known = {tags.tag(f"patient {number}"): frozenset[str]() for number in range(patients)}
        root = root_of(known, tags)
        keep_list(folder, root, known)
        ledger.add(Cohort(**ledger.place(), cohort=root))
        ledger.add(
            Reserve(
                **ledger.place(), run=run, coordinator="0" * 64, study_name="before", study_digest=study.digest(), cohort=root,
                rounds=study.federation.rounds, mechanism=round_mechanism(study), releases=other_mechanisms(study),
            )
        )  # fmt: skip
        ledger.write()


def test_epsilons_are_those_of_the_accountants_at_both_deltas(key: SigningKey, tmp_path: Path) -> None:
    study = private_study()
    found = rows_of(reviewed(site(tmp_path / "anna", key, lifetime=LIFETIME), key, study))
    events = study_events(study)
    for row, delta in (("Whole run", 1e-5), ("At our own delta", 1e-6)):
        assert f"epsilon {pld_epsilon(events, delta):.3f} by PLD" in found[row]
        assert f"{rdp_epsilon(events, delta):.3f} by RDP" in found[row]
    assert f"{rdp_epsilon(events, 1e-6):.3f} of 20" in found["A patient new to it"]


def test_every_release_is_named_with_its_constants(key: SigningKey, tmp_path: Path) -> None:
    folder = site(tmp_path / "anna", key, lifetime=LIFETIME)
    found = rows_of(reviewed(folder, key, private_study()))
    updates = found["Release: 3 updates"]
    assert all(
        part in updates for part in ("10 steps", "30 in all", "q 1/20", "sigma 1.0", "norm C 1.0", "divided by 16")
    )
    assert "sigma 4.0" in found["Release: SVM"] and "epsilon 1/2" in found["Release: test counts"]
    assert "private SVM's" in found["Release: test counts"]
    assert "Release: SVM" not in rows_of(reviewed(folder, key, private_study(svm=False)))


def test_no_section_of_a_private_study_speaks_of_what_it_has_not(key: SigningKey, tmp_path: Path) -> None:
    found = reviewed(site(tmp_path / "anna", key, lifetime=LIFETIME), key, private_study())
    text = " ".join(so for section in found.sections for _, so in section.rows)
    assert "None" not in text and "pass(es)" not in text
    assert "probability 1/20" in rows_of(found, "How often")["Rounds"]
    assert "counts with noise leave, once" in rows_of(found, "How often")["Evaluations"]
    assert rows_of(found, "What our own limits make of it")["Histogram cells"] == "no histogram leaves"
    assert "keeps every hospital's noised updates" in rows_of(found)["Who keeps them"]
    assert all(word in rows_of(found)["Not covered"] for word in ("takes part", "answers come", "refuses"))
    assert "stay in this hospital" in rows_of(found)["Exact figures"]
    assert not any("lifetime" in one for one in found.obstacles)


def test_a_private_study_without_a_budget_for_life_stands_in_the_way(key: SigningKey, tmp_path: Path) -> None:
    found = reviewed(site(tmp_path / "anna", key), key, private_study())
    assert any("set no lifetime budget" in one for one in found.obstacles)
    assert "none is set" in rows_of(found)["Budget for life"]


def test_a_plain_study_at_a_hospital_with_a_budget_that_refuses_it(key: SigningKey, tmp_path: Path) -> None:
    plain = Study.model_validate(study_values())
    refused = reviewed(site(tmp_path / "anna", key, lifetime=LIFETIME), key, plain)
    assert any("no differential privacy" in one for one in refused.obstacles)
    allowed = reviewed(site(tmp_path / "bertha", key, lifetime={**LIFETIME, "unbounded": "allow"}), key, plain)
    assert not any("differential privacy" in one for one in allowed.obstacles)
    assert "no formal privacy guarantee" in rows_of(allowed)["Guarantee"]


def test_more_than_a_lifetime_stands_in_the_way(key: SigningKey, tmp_path: Path) -> None:
    found = reviewed(site(tmp_path / "anna", key, lifetime={"epsilon": "1", "delta": "1e-6"}), key, private_study())
    assert any("the run alone costs epsilon" in one for one in found.obstacles)
    assert "too much" in rows_of(found)["A patient new to it"]


def test_what_patients_were_charged_before_is_added_by_rdp(key: SigningKey, tmp_path: Path) -> None:
    folder = site(tmp_path / "anna", key, lifetime=LIFETIME)
    study, other = private_study(), private_study(svm=False)
    charged_before(folder, other, 7, "earlier-run")
    before, both = study_events(other), study_events(other) + study_events(study)
    found = rows_of(reviewed(folder, key, study))
    assert "7 patients on our ledger" in found["Whoever had most"] and "earlier-run" in found["Whoever had most"]
    assert f"{rdp_epsilon(before, 1e-6):.3f} so far" in found["Whoever had most"]
    assert f"{rdp_epsilon(both, 1e-6):.3f} of 20" in found["Whoever had most"]
    tags = Tags.of(folder)
    rows, _ = privacy_rows(study, folder.profile(), folder, {tags.tag("patient 99"): frozenset()})
    assert dict(rows)["Charged before"] == "no patient of this study was charged before, as far as ids tell"


def test_patients_who_had_too_much_stand_in_the_way(key: SigningKey, tmp_path: Path) -> None:
    study = private_study()
    alone = rdp_epsilon(study_events(study), 1e-6)
    folder = site(tmp_path / "anna", key, lifetime={"epsilon": f"{1.1 * alone:.4f}", "delta": "1e-6"})
    charged_before(folder, study, 3, "earlier-run")
    found = reviewed(folder, key, study)
    assert any("3 patients would be exceeded" in one and "--data" in one for one in found.obstacles)
    tags = Tags.of(folder)
    _, stops = privacy_rows(study, folder.profile(), folder, {tags.tag("patient 1"): frozenset()})
    assert any("1 patient would be exceeded" in one and "of this study" in one for one in stops)


def test_a_review_enters_nothing(key: SigningKey, tmp_path: Path) -> None:
    folder = site(tmp_path / "anna", key, lifetime=LIFETIME)
    reviewed(folder, key, private_study())
    assert not (folder.path / "ledger.jsonl").exists()


def test_a_stand_in_is_what_is_protected(key: SigningKey, tmp_path: Path) -> None:
    folder = site(tmp_path / "anna", key, lifetime=LIFETIME)
    profile = folder.profile()
    data = profile.data.model_copy(update={"patient_stand_in": "lesion_id"})
    rows, _ = privacy_rows(private_study(), profile.model_copy(update={"data": data}), folder, None)
    assert "one lesion_id that is protected" in dict(rows)["Unit"]
