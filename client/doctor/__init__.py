"""`consilium-site doctor`: what stands between this machine and a round, each with its remedy. It changes nothing, here or there."""

from client.doctor.examination import EXAMINATIONS, Examination, examine
from client.doctor.findings import Finding, Outcome

__all__ = ["EXAMINATIONS", "Examination", "Finding", "Outcome", "examine"]
