"""Markup of the hospital's page of a segmentation study (Jinja2), in the dress of `client.page_template`."""
# ruff: noqa: E501

from __future__ import annotations

from client.page_template import HEAD

PAGE = (
    HEAD
    + """<body><main>
<p class="banner stay"><strong>This page stays in {{ site_title }}.</strong> It shows single images and patients' ids. The coordinator gets {% if study.evaluation.release %}counts of test patients by IoU with noise{% else %}counts and
metrics{% endif %} only, never this page.</p>
{% if study.evaluation.release %}<p class="banner stay"><strong>The figures on this page are exact, without noise.</strong> They differ from those of the common report, and no epsilon covers them:
whoever shows the page, or a figure of it, to somebody else releases something that no budget counts.</p>{% endif %}
{% if synthetic %}<p class="banner synthetic"><strong>Synthetic data.</strong> The images are phantoms made by a program. No figure on this page says anything about patients.</p>{% endif %}
<p class="soft">{{ site_title }} ({{ site }}), run {{ run }}</p>
<h1>{{ study.title }}</h1>
<p>{{ headline }}</p>
{% if external %}<p class="soft">External test: this hospital never trained, and all its patients are test patients.</p>{% endif %}
{% if artificial %}<p class="banner synthetic"><strong>Artificial division.</strong> This site is part {{ artificial.index + 1 }} of {{ artificial.of }} of one published data set: no such hospital exists, and differences between
the parts are chance.</p>{% endif %}
{% if stand_in %}<p class="soft">The data has no patient id: <code>{{ stand_in }}</code> stands in for the patient wherever this page says patient.</p>{% endif %}

<div class="figures">
{% for box in boxes %}<div class="figure-box"><span class="soft">{{ box.title }}</span><b>{{ box.value }}</b><span class="soft">{{ box.interval }}</span></div>
{% endfor %}</div>

<section><h2>How well it finds the lesion on this hospital's own test images</h2>
<p class="soft">Each figure is a mean over the test images, with its {{ percent }} % interval from {{ resamples }} draws of the test patients with replacement. A pixel is found where
the chance of a lesion is at least one half. IoU: of all pixels that are in the true mask or in the found one, the share in both. Dice: twice the pixels in both, over the pixels of
one and of the other. Thresholded IoU: an image below 0.65 counts 0. A dash: not defined on these images, or too few patients for an interval.</p>
<div class="scroll"><table><thead><tr><th>Figure</th><th>Network</th></tr></thead><tbody>
{% for row in rows %}<tr><th>{{ row.title }}</th><td>{{ row.value }} <small>{{ row.interval }}</small></td></tr>
{% endfor %}</tbody></table></div>
{% if has_gain %}<p class="soft">Gain: this model less the round-0 model, on the same test patients. An interval above 0 means that the federation taught it something.</p>{% endif %}
<h3>By class</h3>
<div class="scroll"><table><thead><tr><th>Class</th><th class="number">Images</th><th>IoU</th><th>Dice</th></tr></thead><tbody>
{% for row in class_rows %}<tr><th>{{ row.name }}{% if row.stays %} *{% endif %}</th><td class="number">{{ row.images }}</td>{% for cell in row.cells %}<td>{{ cell.value }} <small>{{ cell.interval }}</small></td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% if class_rows|selectattr("stays")|list %}<p class="soft">* {% if study.evaluation.release %}These figures have no interval, because{% else %}These figures stand on this page only, without an interval: they did not leave, because{% endif %} too few images are of the class, or
the figures of another such class would follow from them.</p>{% endif %}</section>

<section><h2>How even it is</h2>
<figure class="wide"><svg width="{{ width + 50 }}" height="{{ height + 45 }}" viewBox="-40 -16 {{ width + 50 }} {{ height + 56 }}" role="img" aria-label="Histogram of Dice">
{% for bar in bars %}<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}" style="fill: var(--network)"><title>{{ bar.between }}: {{ bar.count }} images</title></rect>
{% if bar.count %}<text x="{{ bar.x + bar.width / 2 }}" y="{{ bar.y - 3 }}" text-anchor="middle">{{ bar.count }}</text>{% endif %}
{% endfor %}<line class="grid" x1="0" x2="{{ width }}" y1="{{ height }}" y2="{{ height }}"/>
{% for t in (0, 0.25, 0.5, 0.75, 1) %}<text x="{{ t * width }}" y="{{ height + 15 }}" text-anchor="middle">{{ t }}</text>{% endfor %}
<text x="{{ width / 2 }}" y="{{ height + 33 }}" text-anchor="middle">Dice of an image</text></svg>
<figcaption>Test images by their Dice; the number above each bar counts them.</figcaption></figure></section>

<section><h2>Worst, middle and best</h2>
<p class="soft">Beside each image, as the network gets it: the outline of its true mask as a line <span style="color: #008fb3">━━</span> and, over it, that of the found mask dashed
<span style="color: #b88900">╍╍</span>. Where there is no dashed line, nothing was found. Worth looking at for wrong masks and artefacts too.</p>
{% for group in groups %}<h3>{{ group.title }}</h3>
<div class="cards">{% for card in group.cards %}<figure class="card pair"><div class="pictures"><img src="{{ card.image }}" alt="test image {{ card.key }}"><img src="{{ card.outlined }}" alt="the same with both outlines"></div>
Dice <strong>{{ card.dice }}</strong>, IoU {{ card.iou }}; {{ card.truth }}<br>patient <code>{{ card.patient }}</code><br><code>{{ card.key }}</code></figure>
{% endfor %}</div>{% endfor %}</section>

<section><h2>What it was trained and tested on</h2>
<div class="scroll"><table><thead><tr><th>Part</th><th class="number">Patients</th><th class="number">Images</th>{% for name in classes %}<th class="number">{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for name, part in parts.items() %}<tr><th>{{ name }}</th><td class="number">{{ part.patients }}</td><td class="number">{{ part.images }}</td>{% for count in part.by_class %}<td class="number">{{ count }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="soft">Divided by patient: no patient is in two parts.</p>
<p class="soft">Study {{ study.name }}, digest <code>{{ digest }}</code>. Pictures and histogram are of single images, whose counts lie beside this page and are not sent.</p>
</section>
</main></body></html>
"""
)
