"""Mistakes that have a name. Each class is one kind of mistake with a stable code, listed in docs/errors.md.

Commands print an error as one sentence (what, where, what was expected, what to do) and exit with `exit_code`; no traceback.
Across the wire only the *code* travels, never the text: a text could carry a patient's name (law 2 of the design).
"""

from __future__ import annotations

from typing import ClassVar


class ConsiliumError(Exception):
    """Base of every mistake that ends in a sentence."""

    code: ClassVar[str] = "CONS-000"
    exit_code: ClassVar[int] = 1


class InputError(ConsiliumError):
    """A file, folder, key or argument given by the user can't be used as it is."""

    code = "CONS-100"
    exit_code = 2


class StudyError(InputError):
    """A study YAML is not valid, or asks for something that can't be built."""

    code = "CONS-101"


class ProfileError(InputError):
    """A site profile YAML is not valid."""

    code = "CONS-102"


class DocumentError(InputError):
    """A join request, an admission or a published study can't be used: damaged, changed, or meant for somebody else."""

    code = "CONS-130"


class FingerprintError(InputError):
    """The fingerprint that was read out is not the one of the key."""

    code = "CONS-131"


class MechanismError(InputError):
    """A number of a privacy mechanism, or a delta, is out of the range that can be accounted for."""

    code = "CONS-140"


class CalibrationError(MechanismError):
    """No noise multiplier gives the epsilon that was asked for."""

    code = "CONS-141"


class DataError(InputError):
    """The hospital's data can't serve the study (empty, one class only, unreadable, too few patients)."""

    code = "CONS-110"


class UnreadableImageError(DataError):
    """One image file can't be read; names the file."""

    code = "CONS-111"


class SplitLeakError(DataError):
    """A patient stands in more than one of train, validation and test."""

    code = "CONS-112"


class ChainLeakError(SplitLeakError):
    """A model that the study uses has learned from patients of its test part, or nobody can tell any more."""

    code = "CONS-113"


class WeightsError(InputError):
    """Starting weights are missing, have another digest, or don't fit the model."""

    code = "CONS-120"


class WeightsUnavailableError(WeightsError):
    """Starting weights can't be had on this machine: no such file, or no network to fetch torchvision's."""

    code = "CONS-121"


class WireError(ConsiliumError):
    """A flat update does not match its manifest."""

    code = "CONS-200"


class NotApprovedError(ConsiliumError):
    """The study's digest has no valid approval at this hospital."""

    code = "CONS-210"


class DeclinedError(NotApprovedError):
    """The hospital has declined this study."""

    code = "CONS-211"


class ApprovalEndedError(NotApprovedError):
    """An approval has expired, or its number of runs is used up."""

    code = "CONS-212"


class ApprovalChangedError(NotApprovedError):
    """Code, dependencies, starting model or coordinator are no longer those that were approved."""

    code = "CONS-213"


class EgressError(ConsiliumError):
    """A reply held something that the egress contract does not name."""

    code = "CONS-220"


class PolicyError(ConsiliumError):
    """The study asks for more than the hospital's policy allows."""

    code = "CONS-230"


class InstructionError(ConsiliumError):
    """A message from the coordinator is not a valid instruction of this run."""

    code = "CONS-240"


class SignatureError(InstructionError):
    """Something that must be signed is not, or not by the key that was expected."""

    code = "CONS-241"


class ReplayError(InstructionError):
    """An instruction came before, is older than one that was carried out, or has expired."""

    code = "CONS-242"


class ReleaseError(InstructionError):
    """The coordinator's code is not the release that this hospital installed."""

    code = "CONS-245"


class RevokedError(ConsiliumError):
    """The coordinator does not, or no longer, admit this hospital's node."""

    code = "CONS-246"


class NonFiniteUpdateError(ConsiliumError):
    """Training ended in NaN or infinite weights."""

    code = "CONS-250"


class PrivacyError(ConsiliumError):
    """The study or model can't be trained with the guarantee asked for."""

    code = "CONS-260"


class LedgerError(ConsiliumError):
    """The hospital's ledger is not what it was, or an act does not follow from what stands in it."""

    code = "CONS-261"


class BudgetError(ConsiliumError):
    """A private run would cost some patient more than the lifetime budget of this hospital allows, or there is no budget."""

    code = "CONS-262"


class QuorumError(ConsiliumError):
    """Fewer sites than the quorum answered before the deadline."""

    code = "CONS-300"
    exit_code = 3


class RunFolderError(InputError):
    """The run folder is in use, already holds a run, or can't be written."""

    code = "CONS-310"


class ProcessError(ConsiliumError):
    """A process of the federation (SuperLink, SuperNode, ServerApp) ended or did not start."""

    code = "CONS-320"
    exit_code = 3


class NotUpError(ProcessError):
    """A command needs a coordinator or a site that is up, and it is not."""

    code = "CONS-321"


class NotInstalledError(ProcessError):
    """A program beside Consilium that a command needs is not installed on this machine."""

    code = "CONS-322"


class StorageError(ConsiliumError):
    """A file could not be written (disk full, no permission)."""

    code = "CONS-330"
    exit_code = 3


#: What a site answers when anything unforeseen happens: no text leaves with it.
UNEXPECTED_CODE = "CONS-999"
