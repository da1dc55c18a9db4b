"""docs/studies.md out of the schemas' own descriptions: `python -m shared.study_page > docs/studies.md`."""

from __future__ import annotations

from shared.profile import Profile
from shared.schema_page import tables
from shared.study import Study

_INTRODUCTION = """# Studies and site profiles

A study says what is trained: one YAML in `configs/`. It travels, and a hospital approves it by its digest, which is SHA-256 over the
RFC 8785 form of the study with every default filled in. A site profile says who trains: `profile.yaml` in the hospital's folder. It is
never sent.

    consilium-server check configs/*.yaml                    # is a study valid, and what does it cost a round?
    consilium-site check sites/demo/anna --study configs/demo.yaml   # what does this hospital have for it?

No key does nothing, and an unknown key is an error with its line and the nearest right one. What a paper says beside what its study does is
in `docs/studies/`.

This page is made from the schemas by `python -m shared.study_page > docs/studies.md`; a test holds them together.
"""


def markdown() -> str:
    """The page."""
    study, profile = tables(Study, defaults=True), tables(Profile, defaults=True)
    return f"{_INTRODUCTION}\n# A study, key by key\n\n{study}\n# A site profile, key by key\n\n{profile}"


if __name__ == "__main__":
    print(markdown(), end="")
