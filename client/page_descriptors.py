"""Section of the hospital's page: the descriptors of lesions, their exact counts, and what is said of single images."""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from client.descriptors import confusions, said_of
from client.features import PartFeatures
from client.page_words import sentence_part
from client.rendering import rendered
from shared.results import DESCRIPTOR_METRICS, DescriptorResult
from shared.study import Study

#: Test images of which every descriptor is shown.
SHOWN = 12

_SECTION = """<section><h2>Descriptors of the lesions</h2>
<p>Further heads of the network, on the same features. Each is tested on the test images whose descriptor is known here; intervals ({{ percent }} %) are resampled by patient.</p>
{% for one in descriptors %}
<h3>{{ one.name }}</h3>
{% if one.figures %}<p>{{ one.images }} images: accuracy {{ one.figures.accuracy }}, balanced accuracy {{ one.figures.balanced_accuracy }}, macro F1 {{ one.figures.macro_f1 }}.</p>
{% elif one.images %}<p>{{ one.images }} images have it: too few for figures.</p>
{% else %}<p>No test image has it.</p>{% endif %}
{% if one.images %}<div class="scroll"><table><thead><tr><th>Is \\ said</th>{% for value in one.words %}<th class="number">{{ value }}</th>{% endfor %}</tr></thead><tbody>
{% for row in one.confusion %}<tr><th>{{ one.words[loop.index0] }}</th>{% for count in row %}<td class="number">{{ count }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% endfor %}
<h3>Single images</h3>
<p>{{ shown|length }} of {{ images }} test images, drawn at random: the likeliest value of each descriptor with its probability, and in brackets what the data says.</p>
<div class="scroll"><table><thead><tr><th>Image</th>{% for one in descriptors %}<th>{{ one.name }}</th>{% endfor %}</tr></thead><tbody>
{% for key, cells in shown %}<tr><th>{{ key }}</th>{% for cell in cells %}<td>{{ cell.value|replace("_", " ") }}, {{ "%.0f"|format(100 * cell.probability) }} %{% if cell.truth is not none %} ({{ cell.truth|replace("_", " ") }}){% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="soft">A probability is the network's own, not measured against how often it is right; what the data says is one reader's word.</p></section>
"""


def descriptors_section(test: PartFeatures, study: Study, results: dict[str, DescriptorResult], *, seed: int) -> Markup:
    """The section's HTML, for `client.page.write_page`. `test` must be described. The same input and seed give the same text."""
    if test.described is None:
        raise ValueError("Expected argument `test` to have descriptors, but it has none")
    rows = np.random.default_rng(seed).permutation(test.images)[:SHOWN]
    said = said_of(test.described, study)
    shown = [(test.keys[row], said[row]) for row in sorted(rows.tolist())]
    descriptors = [
        _descriptor(name, counts, study, results.get(name))
        for name, counts in confusions(test.described, study).items()
    ]
    percent = f"{100 * study.evaluation.confidence:g}"
    return Markup(rendered(_SECTION, descriptors=descriptors, shown=shown, images=test.images, percent=percent))


def _descriptor(name: str, counts: list[list[int]], study: Study, result: DescriptorResult | None) -> dict[str, Any]:
    figures = None
    if result is not None:
        figures = {key: sentence_part(getattr(result, key)) for key in DESCRIPTOR_METRICS}
    return {
        "name": name.replace("_", " "),
        "words": [value.replace("_", " ") for value in study.task.descriptors[name].values],
        "images": sum(map(sum, counts)),
        "confusion": counts,
        "figures": figures,
    }
