"""Hierarchies of diagnoses that a study can name instead of writing one: each label with the label above it.

`isic`: labels of dermoscopy under the codes of ISIC 2019 and HAM10000 (mel, nv, bcc, ak, bkl, df, vasc, scc, unk), and these under benign,
malignant and indeterminate. Where it comes from:

- Names and tree of the ISIC Archive's diagnosis taxonomy (github.com/ImageMarkup/isic-metadata, isic_metadata/diagnosis_hierarchical.py,
  commit 0201f6f), as far as it concerns those codes; names in lower case.
- The Archive's older single field `diagnosis`, as in the tables of ISIC 2018 to 2020 (seborrheic keratosis, lentigo nos, angioma, ...).
- What the codes stand for: HAM10000 (Tschandl, Rosendahl, Kittler, Scientific Data 5:180161, 2018: bkl is seborrheic keratosis, solar
  lentigo and lichen-planus like keratosis; vasc holds haemorrhage too) and ISIC 2019 (challenge.isic-archive.com: unk is none of the
  others).

What is a matter of opinion, and stands as in the Archive: squamous cell carcinoma in situ is under scc, though HAM10000 counts Bowen's
disease as akiec; keratoacanthoma is malignant, but not under scc; lentigo nos and lentigo simplex are benign, but neither bkl nor nv;
atypical melanocytic proliferations are indeterminate. A study that wants it otherwise lists the label in a class: the nearest one counts.
"""

from __future__ import annotations

from collections.abc import Mapping

_ISIC: dict[str, tuple[str, ...]] = {
    "malignant": (
        "mel", "bcc", "scc", "malignant epidermal proliferations", "malignant adnexal epithelial proliferations - follicular",
        "keratoacanthoma", "bowenoid papulosis", "verrucous carcinoma", "baso-squamous carcinoma", "merkel cell carcinoma",
        "sebaceous carcinoma", "kaposi sarcoma", "angiosarcoma cutaneous", "dermatofibrosarcoma protuberans", "atypical fibroxanthoma",
        "mycosis fungoides",
    ),
    "benign": (
        "nv", "bkl", "df", "vasc", "benign melanocytic proliferations", "benign epidermal proliferations", "benign - other",
        "benign soft tissue proliferations - fibro-histiocytic", "flat melanotic pigmentations - not melanocytic nevus", "acrochordon",
        "fibroepithelial polyp", "adnexal tumor", "angiofibroma", "angiofibroma or fibrous papule", "cyst", "cysts", "lipoma",
        "mucosal melanosis", "neurofibroma", "scar", "sebaceous adenoma", "sebaceous hyperplasia", "verruca",
    ),
    "indeterminate": ("ak", "indeterminate epidermal proliferations", "indeterminate melanocytic proliferations"),
    "unk": ("unknown", "other"),
    # melanoma
    "mel": ("melanoma", "malignant melanocytic proliferations (melanoma)"),
    "melanoma": (
        "melanoma invasive", "melanoma in situ", "melanoma metastasis", "melanoma, nos", "malignant melanoma", "nodular melanoma",
        "superficial spreading melanoma", "acral lentiginous melanoma", "lentigo maligna melanoma",
    ),
    "melanoma invasive": (
        "melanoma invasive, acral or acral-lentiginous", "melanoma invasive, arising in a congenital nevus",
        "melanoma invasive, associated with a nevus", "melanoma invasive, blue nevus-like", "melanoma invasive, desmoplastic",
        "melanoma invasive, heavily pigmented", "melanoma invasive, mucosal", "melanoma invasive, neurotropic",
        "melanoma invasive, nevoid", "melanoma invasive, nodular",
        "melanoma invasive, on chronically sun-exposed skin or lentigo maligna melanoma",
        "melanoma invasive, pigmented spindle cell nevus like", "melanoma invasive, recurrent or persistent",
        "melanoma invasive, spitzoid", "melanoma invasive, superficial spreading",
    ),
    "melanoma in situ": (
        "lentigo maligna", "melanoma in situ, acral or acral-lentiginous", "melanoma in situ, lentigo maligna type",
        "melanoma in situ, mucosal", "melanoma in situ, recurrent or persistent", "melanoma in situ, superficial spreading",
        "melanoma in situ, associated with a nevus",
    ),
    # melanocytic nevus
    "nv": ("nevus", "melanocytic nevus"),
    "nevus": (
        "blue nevus", "clark nevus", "combined nevus", "congenital nevus", "dysplastic nevus", "halo nevus", "nevus spilus", "reed nevus",
        "spitz nevus", "nevus, acral", "nevus, agminated", "nevus, atypical, dysplastic, or clark", "nevus, bap-1 deficient",
        "nevus, balloon cell", "nevus, combined", "nevus, congenital", "nevus, deep penetrating", "nevus, halo", "nevus, lentiginous",
        "nevus, meyerson", "nevus, nos, compound", "nevus, nos, dermal", "nevus, nos, junctional", "nevus, of special anatomic site",
        "nevus, recurrent or persistent", "nevus, reed", "nevus, spilus", "nevus, spitz",
    ),
    "blue nevus": (
        "blue nevus, cellular", "blue nevus, common", "blue nevus, epithelioid", "blue nevus, plaque type", "blue nevus, sclerosing",
    ),
    "nevus, atypical, dysplastic, or clark": ("nevus, atypical", "nevus, dysplastic", "nevus, clark"),
    "nevus, congenital": (
        "nevus, congenital, by history", "nevus, congenital, by histopathological pattern",
        "nevus, congenital, by history and histopathological pattern",
    ),
    "benign melanocytic proliferations": (
        "dermal melanocytosis", "lentiginous melanocytic proliferation", "lentigo simplex", "pigmented epithelioid melanocytoma",
    ),
    "dermal melanocytosis": ("mongolian spot", "nevus of ito", "nevus of ota"),
    # basal cell carcinoma
    "bcc": ("basal cell carcinoma",),
    "basal cell carcinoma": (
        "basal cell carcinoma with adnexal differentiation", "basal cell carcinoma with sarcomatoid differentiation",
        "basal cell carcinoma, combined subtypes", "basal cell carcinoma, fibroeipthelial", "basal cell carcinoma, infiltrating",
        "basal cell carcinoma, micronodular", "basal cell carcinoma, nodular", "basal cell carcinoma, sclerosing or morpheaform",
        "basal cell carcinoma, superficial",
    ),
    # squamous cell carcinoma
    "scc": ("squamous cell carcinoma",),
    "squamous cell carcinoma": (
        "squamous cell carcinoma in situ", "squamous cell carcinoma, invasive", "squamous cell carcinoma, nos",
    ),
    "squamous cell carcinoma in situ": ("squamous cell carcinoma in situ, bowens disease", "bowen's disease", "bowen disease"),
    "squamous cell carcinoma, invasive": (
        "squamous cell carcinoma, invasive, acantholytic", "squamous cell carcinoma, invasive, adeno-squamous",
        "squamous cell carcinoma, invasive, clear cell", "squamous cell carcinoma, invasive, keratoacanthoma-type",
        "squamous cell carcinoma, invasive, sarcomatoid", "squamous cell carcinoma, invasive, spindle cell",
        "squamous cell carcinoma, invasive, verrucous",
    ),
    # actinic keratosis
    "ak": ("akiec", "actinic keratosis", "solar or actinic keratosis", "solar keratosis"),
    "solar or actinic keratosis": (
        "actinic keratosis, acantholytic", "actinic keratosis, atrophic", "actinic keratosis, bowenoid", "actinic keratosis, hypertrophic",
        "actinic keratosis, lichenoid",
    ),
    "indeterminate epidermal proliferations": ("solar or actinic cheilitis",),
    # benign keratosis
    "bkl": (
        "benign keratosis", "seborrheic keratosis", "solar lentigo", "lichenoid keratosis", "lichen planus like keratosis",
        "lichen planus-like keratosis", "pigmented benign keratosis",
    ),
    "seborrheic keratosis": ("seborrheic keratosis, clonal", "seborrhoeic keratosis"),
    "benign epidermal proliferations": (
        "acantholytic acanthoma", "clear cell acanthoma", "epidermal nevus", "large cell acanthoma", "melanoacanthoma", "porokeratosis",
    ),
    # dermatofibroma
    "df": ("dermatofibroma",),
    "dermatofibroma": (
        "dermatofibroma, aneurysmal", "dermatofibroma, atypical", "dermatofibroma, cellular", "dermatofibroma, epithelioid",
        "dermatofibroma, hemosiderotic",
    ),
    # vascular lesions
    "vasc": (
        "vascular lesion", "angioma", "angiokeratoma", "hemangioma", "pyogenic granuloma", "hemorrhagic lesions",
        "benign soft tissue proliferations - vascular",
    ),
    "hemangioma": (
        "cherry angioma", "haemangioma", "hemangioma, cherry", "hemangioma, hobnail", "hemangioma, infantile", "hemangioma, tufted",
    ),
    "hemorrhagic lesions": ("hemorrhage", "haemorrhage"),
    "hemorrhage": (
        "dermal and subcutaneous hemorhage", "mucosal hemorrhage", "subcorneal and intracorneal hemorrhage", "subungual hemorrhage",
    ),
    "benign soft tissue proliferations - vascular": (
        "acquired elastotic hemangioma", "arterio-venous malformation", "capillary vascular malformation", "glomus tumor", "lymphangioma",
        "nevus anemicus", "telangiectasia", "vascular spider", "venous lake", "venous malformation", "verrucous hemangioma",
    ),
    # of no code
    "flat melanotic pigmentations - not melanocytic nevus": (
        "cafe au lait macule or patch", "cafe-au-lait macule", "ephelis", "ink-spot lentigo", "lentigo nos", "mucosal melanotic macule",
    ),
    "indeterminate melanocytic proliferations": (
        "aimp", "atypical intraepithelial melanocytic proliferation", "atypical melanocytic proliferation",
        "atypical melanocytic neoplasm", "atypical spitz tumor", "atypical pigmented spindle cell tumor",
        "melanocytic tumor of uncertain malignant potential",
    ),
}  # fmt: skip


def _inverted(tree: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {child: parent for parent, children in tree.items() for child in children}


#: Label above each label, by the name that `task.hierarchy` gives.
VOCABULARIES: Mapping[str, Mapping[str, str]] = {"isic": _inverted(_ISIC)}
