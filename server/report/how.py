"""How each pooled figure was obtained, in words."""

from __future__ import annotations

_INTERVAL = (
    "interval from the hospitals' own intervals (bootstrapped by patient), their standard errors combined as those of independent "
    "samples, normal, cut to [0, 1]"
)
HOW = {
    "rate": f"the rate of the hospitals' confusion counts added up; {_INTERVAL}",
    "balanced_accuracy": f"mean of the classes' recalls from the confusion counts added up; {_INTERVAL}",
    "auc": f"mean of the hospitals' own AUCs weighted by test images: how well images are ranked within a hospital; {_INTERVAL}",
    "descriptor": f"mean of the hospitals' own figures weighted by the test images that have the descriptor; {_INTERVAL}",
    "roc": "from the hospitals' score histograms added up, the images of a cell taken as spread evenly; it also compares images "
    "across hospitals; interval from drawing the histograms anew, each hospital with as many images as it has patients",
    "masks": f"mean of the hospitals' own means over their images, weighted by test images; {_INTERVAL}",
    "noised": "from the hospitals' noised counts added up, one vote a patient; the interval covers both which patients came and what noise "
    "can have done to the counts",
    "noised masks": "from the hospitals' noised counts of test patients by IoU added up, one vote a patient; the interval covers which "
    "patients came, what noise can have done to the counts, and where within its bin each patient's IoU is",
    "noised auc": "not known: no score leaves a hospital where the counts carry noise",
    "gain": "mean of the hospitals' paired differences weighted by test images; normal interval from their bootstrap standard "
    "errors, combined as those of independent samples",
}


def how(name: str, *, noised: bool) -> str:
    """Of the pooled figure `name`."""
    if noised:
        return HOW["noised auc"] if name == "auc" else HOW["noised"]
    return HOW.get(name, HOW["rate"])
