"""The rounds of a run: prepare, train round by round, evaluate. Every wait has a deadline; a round needs a quorum, not everyone.

Everything that must survive lies in the run folder: the coordinator holds one global model, one update at a time, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from server.checkpoint import Checkpoint, latest_checkpoint, read_starting_model, write_checkpoint, write_signed
from server.exchange import Arrival, Exchange
from server.receipts import Receipts
from server.registry import Registry
from server.run_folder import RunFolder
from shared.aggregation import apply_to_free, normalised_weights, weighted_mean
from shared.canonical import file_digest
from shared.errors import NonFiniteUpdateError, QuorumError, ReleaseError, StorageError, WireError
from shared.logs import log_context
from shared.messages import Instruction, Kind, Receipt
from shared.noised_answers import exact_in_evaluation
from shared.release import Release, Versions
from shared.results import Evaluated, Prepared, SiteHello, Trained
from shared.run_records import Event, FinalRecord, Miss, RoundRecord, RoundTiming, SiteTiming
from shared.signing import PublicKey, SigningKey
from shared.wire import Flat, Manifest, decode, encode, flat_digest

log = logging.getLogger("consilium.server")


class Coordinator:
    """Leads one run over `grid`, from the last checkpoint in `folder` to the final evaluation."""

    def __init__(
        self, grid: Grid, folder: RunFolder, *, registry: Registry, receipts: Receipts, key: SigningKey
    ) -> None:
        self.folder = folder
        self.study = folder.study()
        self.plan = self.study.federation
        self.expected = folder.expected_sites()
        self.start = read_starting_model(folder)
        self.exchange = Exchange(grid, self.expected, registry=registry, key=key)
        self.release = Release.installed()
        self.registry, self.receipts = registry, receipts
        self.signed: dict[str, str] = {}
        self.shown: dict[PublicKey, Receipt] = {}
        self.prepared: dict[str, Prepared] = {}
        self.refused_to_prepare: dict[str, Miss] = {}
        self.hellos: dict[str, SiteHello] = {}
        self.strangers: dict[str, SiteHello] = {}
        self.late: list[str] = []
        self.latecomers: dict[str, Prepared] = {}

    def conduct(self) -> None:
        """Run to the end. Raises QuorumError, StorageError; the rounds that were finished stay."""
        self.folder.update_run(state="running", reason=None, code=None, ended=None)
        self._wait_for_sites()
        checkpoint = latest_checkpoint(self.folder, self.start.manifest, self.plan.optimiser)
        self._prepare(checkpoint.round)
        for number in range(checkpoint.round + 1, self.plan.rounds + 1):
            with self._incoming(number) as incoming:
                checkpoint = self._round(number, checkpoint, incoming)
        self._evaluate(checkpoint)
        self._note("run", phase="done", text="finished")
        self.folder.update_run(state="finished", ended=_now())
        self._signed_are_kept()

    def _external(self) -> set[str]:
        """Sites that said in their preparation that they never train."""
        return {site for site, one in self.prepared.items() if one.external}

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _wait_for_sites(self) -> None:
        """Until all expected sites that are still admitted are online, or the join deadline has passed with a quorum."""
        deadline = time.monotonic() + self.plan.join_deadline_s
        online: dict[str, int] = {}
        while time.monotonic() < deadline:
            seen = self.exchange.online()
            for site in sorted(set(seen) - set(online)):
                self._note("site", site=site, phase="waiting", text="online")
            online = seen
            if online and self.exchange.admitted() <= online.keys():
                return
            time.sleep(0.2)
        if len(online) < self.plan.quorum:
            raise QuorumError(
                f"{len(online)} of {len(self.expected)} sites came online within {self.plan.join_deadline_s:g} s, "
                f"but the quorum is {self.plan.quorum}; missing: {', '.join(sorted(set(self.expected) - set(online)))}"
            )

    def _prepare(self, number: int) -> None:
        """Round 0, or the sites' preparation again when a run goes on."""
        started, clock = _now(), time.monotonic()
        self._note("round", number=0, phase="prepare")
        online = self.exchange.online()
        sent = self._send("prepare", 0, online, self.start.flat, self.plan.prepare_deadline_s)
        pushed = time.monotonic() - clock
        timing: dict[str, SiteTiming] = {}
        missing: list[Miss] = []
        limit_s = self.plan.prepare_deadline_s
        for arrival in self._arrivals("prepare", 0, self.start.flat, limit_s, self.prepared, missing, known=online):
            self._take_prepared(arrival, missing, timing, sent)
        waited = time.monotonic() - clock - pushed
        missing += self._never_asked(missing)
        self._require_quorum(len(self.prepared.keys() - self._external()), missing, "prepared")
        if number == 0:
            record = RoundRecord(
                round=0, started=started, model_in=flat_digest(self.start.flat), model_out=flat_digest(self.start.flat),
                prepared=self.prepared, missing=missing, sites=timing,
                timing=RoundTiming(push=pushed, wait=waited, aggregate=0, checkpoint=0, total=time.monotonic() - clock),
            )  # fmt: skip
            write_checkpoint(self.folder, record, None, self.start.manifest, signed=self.signed)
            self._signed_are_kept()
        resolved = {
            f"{site}.{key}": value
            for site, one in sorted(self.prepared.items())
            for key, value in _resolved(one).items()
        }
        self.folder.update_run(sites=self.hellos, resolved=resolved, **self.exchange.keys())

    @contextlib.contextmanager
    def _incoming(self, number: int) -> Iterator[Path]:
        """Where a round's updates lie until they are put together: gone when the round is over, however it ended."""
        folder = self.folder.path / "rounds" / f".incoming-{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as problem:
            raise StorageError(f"{folder}: can't be made: {problem.strerror or problem}") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _round(self, number: int, checkpoint: Checkpoint, incoming: Path) -> Checkpoint:
        started, clock = _now(), time.monotonic()
        self._note("round", number=number, phase="train")
        online = self.exchange.online()
        training = self.prepared.keys() - self._external()
        ready = {site: node for site, node in online.items() if site in training}
        self._invite_latecomers(number, online)
        sent = self._send("train", number, ready, checkpoint.flat, self.plan.round_deadline_s)
        pushed = time.monotonic() - clock

        trained: dict[str, Trained] = {}
        digests: dict[str, str] = {}
        timing: dict[str, SiteTiming] = {}
        missing: list[Miss] = []
        busy = 0.0
        for arrival in self._arrivals(
            "train", number, checkpoint.flat, self.plan.round_deadline_s, trained, missing, known=training
        ):
            begun = time.monotonic()
            if (arrival.asked.kind, arrival.asked.round) != ("train", number):
                self._take_late(arrival)
            else:
                miss = self._take_update(arrival, incoming, trained, digests)
                up = arrival.array.nbytes if arrival.array is not None else 0
                self._time(timing, arrival, sent, up)
                if miss is not None:
                    missing.append(miss)
                    self._note_miss(number, miss)
            busy += time.monotonic() - begun
        waited = time.monotonic() - clock - pushed - busy
        missing += self._never_asked(missing, [*trained, *self._external()])
        self._require_quorum(len(trained), missing, f"finished round {number}")

        self._note("round", number=number, phase="aggregate")
        begun = time.monotonic()
        weights = self._weights(trained)
        mean = weighted_mean({site: incoming / f"{site}.npy" for site in trained}, weights)
        flat, state = apply_to_free(
            checkpoint.flat, mean, self.plan.optimiser, checkpoint.state,
            manifest=self.start.manifest, free=self._free_in(number),
        )  # fmt: skip
        aggregated = busy + time.monotonic() - begun
        following = Checkpoint(number, flat, state)
        record = RoundRecord(
            round=number, started=started, model_in=flat_digest(checkpoint.flat), model_out=flat_digest(flat),
            weights=weights, update_digests=digests, trained=trained, prepared=self.latecomers,
            missing=missing, late=self.late, sites=timing,
            timing=RoundTiming(
                push=pushed, wait=waited, aggregate=aggregated, checkpoint=0, total=time.monotonic() - clock
            ),
        )  # fmt: skip
        write_checkpoint(
            self.folder, record, following, self.start.manifest,
            incoming if self.study.keeps_updates else None, signed=self.signed,
            keep_every=self.plan.keep_models.every if self.plan.keep_models is not None else None,
        )  # fmt: skip
        self._signed_are_kept()
        self.late, self.latecomers = [], {}
        self._note(
            "round",
            number=number,
            phase="done",
            loss=_mean_loss(trained, weights),
            accuracy=_mean_accuracy(trained, weights),
        )
        return following

    def _evaluate(self, checkpoint: Checkpoint) -> None:
        clock = time.monotonic()
        self._note("round", number=checkpoint.round, phase="evaluate")
        nodes = {site: node for site, node in self.exchange.online().items() if site in self.prepared}
        self._send("evaluate", checkpoint.round, nodes, checkpoint.flat, self.plan.evaluation_deadline_s)
        pushed = time.monotonic() - clock
        results: dict[str, Evaluated] = {}
        missing: list[Miss] = []
        number, deadline_s = checkpoint.round, self.plan.evaluation_deadline_s
        for arrival in self._arrivals(
            "evaluate", number, checkpoint.flat, deadline_s, results, missing, known=self.prepared
        ):
            if arrival.asked.kind != "evaluate":
                self._take_late(arrival)
            elif arrival.miss is None and (found := self._figures(arrival)) is not None:
                self._keep(arrival)
                results[arrival.asked.site] = found
                self._note("site", number=checkpoint.round, site=arrival.asked.site, phase="done", text="evaluated")
            else:
                miss = arrival.miss or Miss(site=arrival.asked.site, reason="invalid")
                missing.append(miss)
                self._note_miss(checkpoint.round, miss)
        total = time.monotonic() - clock
        missing += self._never_asked(missing, results)
        timing = RoundTiming(push=pushed, wait=total - pushed, aggregate=0, checkpoint=0, total=total)
        write_signed(self.folder.path / "evaluation-signed", self.signed)
        self.folder.write(
            "evaluation.json",
            FinalRecord(model=flat_digest(checkpoint.flat), sites=results, missing=missing, timing=timing),
        )
        if not results:
            raise QuorumError("no site evaluated the final model; the model itself is kept in the last round's folder")

    def _figures(self, arrival: Arrival) -> Evaluated | None:
        """What the site evaluated, where it is of the kind that the study asks for: with noise and nothing else where it asks for noise."""
        found = arrival.answer.evaluated if arrival.answer is not None else None
        if found is None or found.of_masks != (self.study.task.kind == "segmentation"):
            return None
        if self.study.evaluation.release is None:
            return found if found.noised_masks is None else None
        return None if exact_in_evaluation(found, self.study) else found

    def _arrivals(
        self,
        kind: Kind,
        number: int,
        model: Flat,
        deadline_s: float,
        present: Mapping[str, object],
        missing: list[Miss],
        *,
        known: Iterable[str],
    ) -> Iterator[Arrival]:
        """What comes back for this message. A site of `known` that started anew, or was away, is asked again before the deadline.

        One that is away is waited for only while there are too few without it, and while there still can be enough. Who never trains
        does not count for the quorum.
        """
        limit = time.monotonic() + deadline_s
        quorum = 1 if kind == "evaluate" else self.plan.quorum

        def possible() -> set[str]:
            said_no = {miss.site for miss in missing if miss.reason != "offline"}
            return set(known) - said_no - set(self.refused_to_prepare)

        def settled() -> bool:
            aside = set() if kind == "evaluate" else self._external()
            return len(present.keys() - aside) >= quorum or len((possible() | set(present)) - aside) < quorum

        def again(online: Mapping[str, int], away: set[str]) -> None:
            wanted = possible() - set(present) - self.exchange.outstanding(kind, number)
            asked = {site: node for site, node in online.items() if site in wanted and (site in away or not settled())}
            left = limit - time.monotonic()
            if asked and left > 0:
                self._send(kind, number, asked, model, left)

        return self.exchange.wait(kind, number, limit=limit, settled=settled, again=again)

    # -- arrivals ------------------------------------------------------------------------------------------------------

    def _take_prepared(self, arrival: Arrival, missing: list[Miss], timing: dict[str, SiteTiming], sent: int) -> None:
        site = arrival.asked.site
        self._time(timing, arrival, sent, 0)
        miss = arrival.miss
        answer = arrival.answer
        if answer is not None:
            (self.hellos if miss is None else self.strangers)[site] = answer.hello
        if miss is None and (answer is None or answer.prepared is None):
            miss = Miss(site=site, reason="invalid")
        if miss is None and answer is not None and answer.prepared is not None:
            if answer.prepared.frozen_digest != self.start.frozen_digest:
                miss = Miss(site=site, reason="refused", code="CONS-120")
            else:
                self._keep(arrival)
                self.prepared[site] = answer.prepared
                self.refused_to_prepare.pop(site, None)
                text = "prepared; it never trains and tests the final model" if answer.prepared.external else "prepared"
                self._note("site", number=0, site=site, phase="waiting", text=text)
        if miss is not None:
            missing.append(miss)
            if miss.reason in ("refused", "invalid"):  # one that did not answer is asked again at the next round
                self.refused_to_prepare[site] = miss
            self._note_miss(0, miss)

    def _take_late(self, arrival: Arrival) -> None:
        """A latecomer's preparation, or an answer to an earlier round, which is counted and ignored."""
        if arrival.asked.kind == "prepare":
            self._take_prepared(arrival, [], {}, 0)
            site = arrival.asked.site
            if site in self.prepared:
                self.latecomers[site] = self.prepared[site]
            self.folder.update_run(sites=self.hellos, **self.exchange.keys())
        elif arrival.miss is None:
            self.late.append(arrival.asked.site)
            self._note("site", number=arrival.asked.round, site=arrival.asked.site, text="answered too late, ignored")

    def _take_update(
        self, arrival: Arrival, incoming: Path, trained: dict[str, Trained], digests: dict[str, str]
    ) -> Miss | None:
        """Check an update and put it into a file; the array is let go."""
        site = arrival.asked.site
        if arrival.miss is not None:
            if arrival.answer is not None:
                self.strangers[site] = arrival.answer.hello
            return arrival.miss
        answer = arrival.answer
        if answer is None or answer.trained is None or arrival.array is None:
            return Miss(site=site, reason="invalid")
        try:
            digest = flat_digest(arrival.array)
            update = decode(arrival.array, self.plan.wire)
            if update.size != self._free_in(arrival.asked.round).size or digest != answer.update_digest:
                raise WireError(f"{site}: the update has another length or digest than announced")
            if not np.isfinite(update).all():
                raise NonFiniteUpdateError(f"{site}: the update holds NaN or infinity")
            if self.plan.weighting == "counts" and not answer.trained.images:
                raise WireError(f"{site}: the update comes from no image, so it has no weight")
        except (WireError, NonFiniteUpdateError) as problem:
            return Miss(site=site, reason="invalid", code=problem.code)
        try:
            np.save(incoming / f"{site}.npy", update)
        except OSError as problem:
            raise StorageError(
                f"{incoming / site}.npy: an update can't be written ({problem.strerror or problem}); "
                "free some space: the rounds before this one are kept"
            ) from None
        self._keep(arrival)
        trained[site] = answer.trained
        digests[site] = digest
        last = answer.trained.epochs[-1] if answer.trained.epochs else None
        self._note(
            "site", number=arrival.asked.round, site=site, phase="done",
            loss=last.loss if last else None, accuracy=last.accuracy if last else None,
        )  # fmt: skip
        return None

    # -- small parts ---------------------------------------------------------------------------------------------------

    def _send(self, kind: Kind, number: int, nodes: Mapping[str, int], model: Flat, deadline_s: float) -> int:
        if not nodes:
            return 0
        array = encode(model, self.plan.wire)
        digest = flat_digest(array)
        compares = kind == "evaluate" and self.study.evaluation.baseline
        study, earlier = self.study.to_data(), self.folder.round_path(number if kind == "evaluate" else number - 1)
        record = earlier / "round.json"
        previous = file_digest(record) if record.is_file() else None
        compare_with = flat_digest(encode(self.start.flat, self.plan.wire)) if compares else None

        records = self.registry.all()
        seen = {site: self.receipts.get(PublicKey.read(records[site].signing_key)) for site in nodes if site in records}

        asks = kind == "prepare" and self.study.counts_shared_images
        keys = {site: records[site].signing_key for site in sorted(self.exchange.admitted())} if asks else {}

        def instruct(site: str, issued: int, expires: int) -> Instruction:
            return Instruction(
                kind=kind, run=self.folder.run_id(), site=site, round=number, issued=issued, expires=expires,
                study=study, study_digest=self.study.digest(), model_digest=digest,
                manifest_digest=self.start.manifest.digest(), previous=previous, compare_with=compare_with,
                receipt=seen.get(site), release=self.release,
                peers={one: key for one, key in keys.items() if one != site},
            )  # fmt: skip

        for site in sorted(nodes):
            self._note("site", number=number, site=site, phase=kind)
        return self.exchange.send(kind, number, nodes, instruct, array, deadline_s)

    def _invite_latecomers(self, number: int, online: Mapping[str, int]) -> None:
        """A site that came after round 0 prepares during this round and takes part from the next.

        One that refused is asked again at rounds 2, 4, 8, ...: it may have approved the study since, and a message costs a model.
        """
        waiting = self.exchange.outstanding("prepare", 0)
        ask_again = number > 1 and number & (number - 1) == 0
        fresh = {
            site: node
            for site, node in online.items()
            if site not in self.prepared and site not in waiting and (ask_again or site not in self.refused_to_prepare)
        }
        self._send("prepare", 0, fresh, self.start.flat, self.plan.prepare_deadline_s)

    def _never_asked(self, missing: list[Miss], present: Iterable[str] | None = None) -> list[Miss]:
        """The sites that got no message: they were away, or had refused to prepare, which then is the reason."""
        known = {miss.site for miss in missing} | set(present if present is not None else self.prepared)
        away = sorted(set(self.expected) - known)
        return [self.refused_to_prepare.get(site) or Miss(site=site, reason="offline") for site in away]

    def _free_in(self, number: int) -> Manifest:
        """The tensors that an update of this round holds."""
        return self.start.manifest.without(self.study.training.held_in(number))

    def _weights(self, trained: Mapping[str, Trained]) -> dict[str, float]:
        rule = self.plan.weighting
        if rule == "counts":
            return normalised_weights({site: float(one.images or 0) for site, one in trained.items()})
        if rule == "uniform":
            return normalised_weights(dict.fromkeys(trained, 1.0))
        return normalised_weights({site: rule[site] for site in trained})

    def _time(self, timing: dict[str, SiteTiming], arrival: Arrival, sent: int, up: int) -> None:
        """How long a hospital took; not in a private run, where it says how many patients were drawn."""
        if self.study.privacy is None:
            timing[arrival.asked.site] = SiteTiming(answered_after=arrival.after, bytes_down=sent, bytes_up=up)

    def _keep(self, arrival: Arrival) -> None:
        """The signed instruction and the signed answer go into the round's folder: an auditor reads there who said what.

        A preparation that is asked for again when a run goes on is kept with the round that follows it.
        """
        if arrival.text is not None:
            kind, site = arrival.asked.kind, arrival.asked.site
            self.signed[f"{site}.{kind}.instruction.json"] = arrival.asked.text
            self.signed[f"{site}.{kind}.answer.json"] = arrival.text
        record = self.registry.get(arrival.asked.site)
        if arrival.answer is not None and arrival.answer.receipt is not None and record is not None:
            self.shown[PublicKey.read(record.signing_key)] = arrival.answer.receipt

    def _signed_are_kept(self) -> None:
        """From here on hospitals need not show these entries of their ledgers again; what was lost with a round is shown again."""
        for key, receipt in self.shown.items():
            self.receipts.keep(key, receipt)
        self.signed, self.shown = {}, {}

    def _require_quorum(self, present: int, missing: list[Miss], what: str) -> None:
        if present < self.plan.quorum:
            reasons = "; ".join(
                f"{miss.site}: {miss.reason}{f' ({miss.code})' if miss.code else ''}{self._other_release(miss)}"
                for miss in missing
            )
            aside = sorted(self._external())
            never = f" ({', '.join(aside)} never train and don't count)" if aside else ""
            raise QuorumError(
                f"{present} of {len(self.expected)} sites {what}{never}, but the quorum is {self.plan.quorum}. {reasons}"
            )

    def _note_miss(self, number: int, miss: Miss) -> None:
        text = f"missing: {miss.reason}" + (f", {miss.code}" if miss.code else "") + self._other_release(miss)
        self._note("site", number=number, site=miss.site, text=text)

    def _other_release(self, miss: Miss) -> str:
        """Both releases by name, where a site refused because of them."""
        hello = self.strangers.get(miss.site)
        if miss.code != ReleaseError.code or hello is None:
            return ""
        own = _named(self.release.versions, self.release.code_digest)
        return f": it runs {_named(hello.versions, hello.code_digest)}, but the coordinator {own}"

    def _note(self, kind: str, *, number: int | None = None, **values: object) -> None:
        event = Event.model_validate({"at": time.time(), "kind": kind, "round": number, **values})
        self.folder.note(event)
        with log_context(round=number, site=event.site):
            told = [event.kind, event.phase, event.text, f"loss {event.loss:.4f}" if event.loss is not None else None]
            log.info("%s", ", ".join(part for part in told if part))


def _named(versions: Versions, code: str) -> str:
    return f"release {versions.get('consilium')} (code {code[:12]}, flwr {versions.get('flwr')})"


def _resolved(prepared: Prepared) -> dict[str, str]:
    return {"device": prepared.device, "precision": prepared.precision, "memory_format": prepared.memory_format}


def _mean_loss(trained: Mapping[str, Trained], weights: Mapping[str, float]) -> float | None:
    values = [weights[site] * one.epochs[-1].loss for site, one in trained.items() if one.epochs]
    return sum(values) if len(values) == len(trained) else None


def _mean_accuracy(trained: Mapping[str, Trained], weights: Mapping[str, float]) -> float | None:
    values = [weights[site] * one.epochs[-1].accuracy for site, one in trained.items() if one.epochs]
    return sum(values) if len(values) == len(trained) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
