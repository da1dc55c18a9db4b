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

# One study, several layouts

A study runs in a second domain by another profile alone. What has to hold:

- `task.classes` lists the labels of every layout that the study is for ([layouts.md](layouts.md) has them). A label that a layout does not
  know does no harm; a record whose label stands in no class is left out and counted.

      classes:                                            # ham10000, isic2019, DermaMNIST
        benign: [nv, bkl, df, vasc]
        malignant: [mel, bcc, akiec, ak, scc]

- `task.unit` is one that every layout has: all but cbis_ddsm have `image`; cbis_ddsm, busi, dicom_folder and image_folder have `view`.
- `data.select` names attributes that every layout has, or nothing; `division: official` needs a published test part.
- `preprocessing.region: finding` needs masks everywhere; `intensity: region_percentiles` makes 8-bit photographs and 12-bit mammograms
  alike.

`configs/busi_resnet18.yaml` is such a study: with `sites/busi/baheya` it runs on breast ultrasound, with `sites/demo/anna` on mammograms.
"""


def markdown() -> str:
    """The page."""
    study, profile = tables(Study, defaults=True), tables(Profile, defaults=True)
    return f"{_INTRODUCTION}\n# A study, key by key\n\n{study}\n# A site profile, key by key\n\n{profile}"


if __name__ == "__main__":
    print(markdown(), end="")
