"""Markup of the hospital's page (Jinja2). A Python file, because a Flower app bundle carries no other kind of file."""
# ruff: noqa: E501

from __future__ import annotations

from shared.page_frame import page_head

HEAD = page_head(
    "{{ site_title }}: {{ study.title }}",
    images=True,
    light="""--network: #0067b1; --svm: #c2410c; --stay: #7a1f1f; --stay-fill: #fdf0ef; --synthetic-fill: #fff7db; --synthetic: #6b5200;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5539c; --c4: #a88600; --c5: #3a9bd9; --c6: #8a5a2b; --c7: #6b7280;""",
    dark="""--network: #62b0ec; --svm: #f2935c; --stay: #f5b5b0; --stay-fill: #3a1d1c; --synthetic-fill: #352c0d; --synthetic: #f0d77a;
  --c0: #56a8e0; --c1: #f08a4b; --c2: #3cc49a; --c3: #d98ac5; --c4: #d9b93b; --c5: #9bd0f5; --c6: #c79468; --c7: #a3acb6;""",
    printed="""--network: #0067b1; --svm: #c2410c; --stay: #7a1f1f; --stay-fill: #fff; --synthetic-fill: #fff; --synthetic: #000;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5539c; --c4: #a88600; --c5: #3a9bd9; --c6: #8a5a2b; --c7: #6b7280;""",
    style="""
.stay { color: var(--stay); background: var(--stay-fill); } .synthetic { color: var(--synthetic); background: var(--synthetic-fill); }
th, td { white-space: nowrap; } tbody th { font-weight: 400; } td small { color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; align-items: flex-start; } figure { margin: 0.4rem 0; }
figcaption { font-size: 0.9rem; color: var(--soft); max-width: 24rem; } figure.wide figcaption { max-width: 40rem; }
svg { overflow: visible; } svg text { fill: var(--soft); font-size: 11px; }
.frame { fill: none; stroke: var(--line); } .grid { stroke: var(--line); stroke-width: 0.6; } .chance { stroke: var(--soft); stroke-dasharray: 3 4; }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; } .network { stroke: var(--network); } .svm { stroke: var(--svm); }
.dashed { stroke-dasharray: 7 4; } .mark.network { fill: var(--network); } .mark.svm { fill: var(--svm); } .bar { stroke-width: 1.6; opacity: 0.75; }
{% for c in range(8) %}.k{{ c }} { color: var(--c{{ c }}); } {% endfor %}
.train { fill: currentColor; fill-opacity: 0.3; stroke: none; } .test { fill: currentColor; stroke: var(--paper); stroke-width: 0.7; }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.3; }
.confusion td, .confusion th { border: 0; padding: 0.2rem; } .confusion td { border: 1px solid var(--line); text-align: center; width: 5.2rem; padding: 0.55rem 0.2rem; }
.confusion td.right { outline: 2px solid var(--line); outline-offset: -2px; } .confusion td b { display: block; font-size: 1.1rem; }
.confusion th { font-weight: 400; font-size: 0.9rem; text-align: right; padding-right: 0.6rem; } .confusion thead th { border: 0; text-align: center; padding-right: 0.2rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.9rem; } .card { width: 9.5rem; margin: 0; font-size: 0.82rem; line-height: 1.35; break-inside: avoid; }
.card img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; border-radius: 4px; display: block; margin-bottom: 0.3rem; image-rendering: auto; }
.card.pair { width: 19.4rem; } .pictures { display: flex; gap: 0.4rem; } .pictures img { flex: 1 1 0; min-width: 0; }
.card code { overflow-wrap: anywhere; font-size: 0.78rem; }
""",
)

PAGE = (
    HEAD
    + """<body><main>
<p class="banner stay"><strong>This page stays in {{ site_title }}.</strong> It shows single images and patients' ids. The coordinator gets {% if study.evaluation.release %}confusion counts with noise{% else %}counts and
metrics{% endif %} only, never this page.</p>
{% if study.evaluation.release %}<p class="banner stay"><strong>The figures on this page are exact, without noise.</strong> They differ from those of the common report, and no epsilon covers them:
whoever shows the page, or a figure of it, to somebody else releases something that no budget counts.{% if study.privacy and has_svm %} The SVM here is fitted without noise; it and its figures stay in the house.{% endif %}</p>{% endif %}
{% if synthetic %}<p class="banner synthetic"><strong>Synthetic data.</strong> The images are phantoms made by a program. No figure on this page says anything about patients.</p>{% endif %}
<p class="soft">{{ site_title }} ({{ site }}), run {{ run }}</p>
<h1>{{ study.title }}</h1>
<p>{{ headline }}</p>
{% if external %}<p class="soft">External test: this hospital never trained, and all its patients are test patients. The SVM is fitted where a hospital trains, so there is none here.</p>{% endif %}
{% if artificial %}<p class="banner synthetic"><strong>Artificial division.</strong> This site is part {{ artificial.index + 1 }} of {{ artificial.of }} of one published data set: no such hospital exists, and differences between
the parts are chance.</p>{% endif %}
{% if stand_in %}<p class="soft">The data has no patient id: <code>{{ stand_in }}</code> stands in for the patient wherever this page says patient.</p>{% endif %}

<div class="figures">
{% for box in boxes %}<div class="figure-box"><span class="soft">{{ box.title }}</span><b>{{ box.value }}</b><span class="soft">{{ box.detail }}</span></div>
{% endfor %}</div>

<section><h2>How good it is on this hospital's own test images</h2>
<p class="soft">Each figure with its {{ percent }} % interval, from {{ resamples }} draws of the test patients with replacement. Sensitivity, specificity, precision
and F1 are about <em>{{ positive }}</em>{{ " against all other classes" if many }}. A dash: not defined on these images, or too few patients for an interval.</p>
<div class="scroll"><table><thead><tr><th>Figure</th>{% for head in heads %}<th>{{ head.title }}</th>{% endfor %}</tr></thead><tbody>
{% for row in metric_rows %}<tr><th>{{ row.title }}</th>{% for cell in row.cells %}<td>{{ cell.value }} <small>{{ cell.interval }}</small></td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% if has_gain %}<p class="soft">Gain: this model less the round-0 model, on the same test patients. An interval above 0 means that the federation taught it something.</p>{% endif %}
</section>

<section><h2>How well it ranks, and whether its probabilities hold</h2>
<div class="row">
{% if rocs %}<figure><svg width="340" height="330" viewBox="-42 -8 340 330" role="img" aria-label="ROC curves">
{{ axes("False alarms: share of the others called " ~ positive, "Found: share of " ~ positive ~ " (sensitivity)") }}
<line class="chance" x1="0" y1="{{ side }}" x2="{{ side }}" y2="0"/>
{% for roc in rocs %}<polyline class="curve {{ roc.kind }} {{ 'dashed' if roc.kind == 'network' }}" points="{{ roc.points }}"/>
{% endfor %}</svg>
<ul class="legend">{% for roc in rocs %}<li>{{ key_line(roc.kind) }}{{ roc.title }}, AUC {{ roc.auc }}</li>{% endfor %}</ul>
<figcaption>Exact ROC curve{{ " of " ~ positive ~ " against all others" if many }}. The dotted diagonal is chance.</figcaption></figure>
{% else %}<p>No ROC curve: the test part holds no image of <em>{{ positive }}</em>, or nothing else.</p>{% endif %}
<figure><svg width="340" height="330" viewBox="-42 -8 340 330" role="img" aria-label="Calibration">
{{ axes("Probability of " ~ positive ~ " that was said", "Share that is " ~ positive) }}
<line class="chance" x1="0" y1="{{ side }}" x2="{{ side }}" y2="0"/>
{% for one in calibrations %}<polyline class="curve {{ one.kind }} {{ 'dashed' if one.kind == 'network' }}" stroke-opacity="0.5" points="{{ one.points }}"/>
{% for g in one.groups %}<line class="bar {{ one.kind }}" x1="{{ g.x }}" x2="{{ g.x }}" y1="{{ g.low }}" y2="{{ g.high }}"/>
{% if one.kind == 'network' %}<rect class="mark network" x="{{ g.x - 3.5 }}" y="{{ g.y - 3.5 }}" width="7" height="7"><title>{{ g.images }} images</title></rect>
{% else %}<circle class="mark svm" cx="{{ g.x }}" cy="{{ g.y }}" r="4"><title>{{ g.images }} images</title></circle>{% endif %}
{% endfor %}{% endfor %}</svg>
<ul class="legend">{% for one in calibrations %}<li>{{ key_line(one.kind) }}{{ one.title }}, Brier score {{ one.brier }}</li>{% endfor %}</ul>
<figcaption>Calibration in groups of about {{ group_images }} images, with {{ percent }} % Wilson intervals by image. On the diagonal, the probabilities can be taken
at their word. Brier score: 0 is perfect; saying {{ prevalence }} of every image would give {{ prevalence_brier }}.</figcaption></figure>
</div></section>

<section><h2>What is taken for what</h2>
<div class="row">{% for head in heads if head.confusion %}<div><h3>{{ head.title }}</h3><div class="scroll"><table class="confusion">
<thead><tr><th></th>{% for name in classes %}<th scope="col">said {{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in head.confusion %}{% set outer = loop.index0 %}<tr><th scope="row">is {{ classes[outer] }}</th>{% for cell in row %}<td
class="{{ 'right' if loop.index0 == outer }}" style="background: color-mix(in srgb, var(--{{ head.kind }}) {{ cell.shade }}%, transparent)"><b>{{ cell.count }}</b><small>{{ cell.share }}</small></td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></div>{% endfor %}</div>
<p class="soft">Images. The share is of the row: of all images that are of this class. The network says <em>{{ positive }}</em> {{ "where it is the likeliest class" if argmax else "from a probability of 0.5" }}; the SVM decides by
the side of its own boundary, so that its decision and its calibrated probability can differ near one half.</p>
<h3>Each class against the rest ({{ best_title }})</h3>
<div class="scroll"><table><thead><tr><th>Class</th><th class="number">Images</th><th>Precision</th><th>Sensitivity</th><th>Specificity</th><th>F1</th><th>AUC</th></tr></thead><tbody>
{% for row in class_rows %}<tr><th>{{ row.name }}</th><td class="number">{{ row.images }}</td>{% for cell in row.cells %}<td>{{ cell.value }} <small>{{ cell.interval }}</small></td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<h3>Over all classes ({{ best_title }})</h3>
<div class="scroll"><table><tbody>
{% for row in over_rows %}<tr><th>{{ row.title }}</th><td>{{ row.value }} <small>{{ row.interval }}</small></td></tr>
{% endfor %}</tbody></table></div>
<p class="soft">Weighted: the mean of the classes' figures, each class with as much weight as it has images (one that is never said counts with precision 0). FP + FN: images
missed in a class and images wrongly said to be of it, added over the classes. Intervals here come from drawing the table of counts anew, as many images as there are patients.</p></section>

<section><h2>The images as the network sees them</h2>
{% if points %}<figure class="wide"><svg width="640" height="480" viewBox="-8 -8 656 496" role="img" aria-label="Map of the features">
<rect class="frame" x="-8" y="-8" width="656" height="496" rx="6"/>
{% for p in points if not p.test %}<g class="k{{ p.colour }}">{{ glyph(p.shape, p.x, p.y, 3.2, "train") }}</g>
{% endfor %}{% for p in points if p.test %}<g class="k{{ p.colour }}">{{ glyph(p.shape, p.x, p.y, 4.6, "test") }}</g>{% if p.wrong %}<circle class="ring" cx="{{ p.x }}" cy="{{ p.y }}" r="8"/>{% endif %}
{% endfor %}</svg>
<ul class="legend">{% for name in classes %}<li><span class="k{{ loop.index0 % 8 }}"><svg width="12" height="12" viewBox="0 0 12 12">{{ glyph(loop.index0 % 4, 6, 6, 4.6, "test") }}</svg></span>{{ name }}</li>{% endfor %}
<li>pale and small: training image</li><li><svg width="18" height="18" viewBox="0 0 18 18"><circle class="ring" cx="9" cy="9" r="7.5"/></svg>test image that the {{ best_name }} gets wrong</li></ul>
<figcaption>t-SNE of the {{ points|length }} images' features. Near each other: the network sees them alike. Distances between groups, their size and the axes mean
nothing, and training images look better separated than they are, because the network has learned from them.</figcaption></figure>
{% else %}<p>Too few images for a map.</p>{% endif %}</section>

<section><h2>The errors it is surest of ({{ best_title }})</h2>
{% for group in errors %}<h3>{{ group.title }}</h3>
{% if group.cards %}<div class="cards">{% for card in group.cards %}<figure class="card{{ ' pair' if card.heat }}">{{ pictures(card) }}
is <strong>{{ card.truth }}</strong>, said <strong>{{ card.said }}</strong><br>{{ card.probability }}<br>{{ card.other }}<br>patient <code>{{ card.patient }}</code><br><code>{{ card.key }}</code></figure>
{% endfor %}</div>{% else %}<p>None.</p>{% endif %}
{% endfor %}<p class="soft">Images as the network gets them (region, size and intensities as the study's preprocessing says). Worth looking at for wrong labels, artefacts and findings that the cut region misses.
{% if mask %}The line is the edge of the lesion's mask, {{ mask }}. {% endif %}
{% if looks %}Beside each image: where the network finds {{ positive }} (see below){{ ", whatever the SVM says" if has_svm }}.{% endif %}</p>
</section>

<section><h2>Where the network looks</h2>
{% if looks %}<p class="soft">Grad-CAM of <em>{{ positive }}</em> at the layer <code>{{ looks.layer }}</code>: a map of {{ looks.cells }} positions, smoothed. Red to white: what raises the
network's score of {{ positive }}; each image is scaled to its own hottest place, so that colours do not compare between images. An image without colour has nothing
that raises it. A map shows what this network uses, not whether it is right to.</p>
{% if looks.on_lesions %}<div class="figures">
<div class="figure-box"><span class="soft">Heat on the lesion</span><b>{{ looks.on_lesions.inside }}</b><span class="soft">mean over {{ looks.on_lesions.images }} test images with masks</span></div>
<div class="figure-box"><span class="soft">Area of the lesion</span><b>{{ looks.on_lesions.area }}</b><span class="soft">of the image: what heat spread evenly would give</span></div>
<div class="figure-box"><span class="soft">Times its area</span><b>{{ looks.on_lesions.times }}</b><span class="soft">1: the network looks at the lesion no more than elsewhere</span></div>
</div>
<p class="soft">Share of an image's heat that lies inside its mask (energy-based pointing game), in images of all classes{% if looks.on_lesions.without %}; {{ looks.on_lesions.without }} more have no
heat at all{% endif %}{% if looks.masked > looks.on_lesions.images + looks.on_lesions.without %}; drawn at random from {{ looks.masked }} images with masks{% endif %}.</p>
{% elif looks.masked %}<p>None of the test images with masks has any heat, or their masks can't be read: how much of it falls on the lesions is not defined.</p>
{% else %}<p>No test image has a mask, so how much of the heat falls on lesions can't be told.</p>{% endif %}
{% if mask %}<p class="soft">The network is told where the lesion is: it gets the mask as one more plane beside the pixels. Heat on the lesion is then no finding of its own.</p>
{% endif %}{% for group in looks.groups %}<h3>{{ group.title }}</h3>
{% if group.cards %}<div class="cards">{% for card in group.cards %}<figure class="card{{ ' pair' if card.heat }}">{{ pictures(card) }}
is <strong>{{ card.truth }}</strong><br>{{ card.probability }}<br><code>{{ card.key }}</code></figure>
{% endfor %}</div>{% else %}<p>None.</p>{% endif %}
{% endfor %}
{% elif study.model.members %}<p>No heat maps: an ensemble has no one last map; look at those of its members' own runs.</p>
{% else %}<p>No heat maps: {{ study.model.name }} mixes all places of the image from its first layers on (a transformer), or its last map has one single position, so that
Grad-CAM has nothing to look at.</p>{% endif %}
</section>

{% for section in sections %}{{ section }}
{% endfor %}
<section><h2>What it was fitted and tested on</h2>
<div class="scroll"><table><thead><tr><th>Part</th><th class="number">Patients</th><th class="number">Images</th>{% for name in classes %}<th class="number">{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in part_rows %}<tr><th>{{ row.name }}</th><td class="number">{{ row.patients }}</td><td class="number">{{ row.images }}</td>{% for count in row.by_class %}<td class="number">{{ count }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="soft">Divided by patient: no patient is in two parts. {% if choice %}SVM: C = {{ choice.c }}, gamma = {{ choice.gamma }}{% if choice.score %}, chosen on the training part by
cross-validation grouped by patient ({{ choice.measure }} {{ choice.score }} there; the images it was measured on had trained the network, so it flatters){% endif %};
{{ choice.vectors }} support vectors, which stay here.{% endif %}</p>
<p class="soft">Study {{ study.name }}, digest <code>{{ digest }}</code>. ROC, calibration, map and errors are drawn from the exact scores of single images, which lie beside this page and are not sent.</p>
</section>
</main></body></html>
"""
)

MACROS = """
{%- macro axes(x, y) -%}
{% for t in (0, 0.25, 0.5, 0.75, 1) %}<line class="grid" x1="{{ t * side }}" x2="{{ t * side }}" y1="0" y2="{{ side }}"/><line class="grid" y1="{{ t * side }}" y2="{{ t * side }}" x1="0" x2="{{ side }}"/>
<text x="{{ t * side }}" y="{{ side + 15 }}" text-anchor="middle">{{ t }}</text><text x="-6" y="{{ (1 - t) * side + 4 }}" text-anchor="end">{{ t }}</text>{% endfor %}
<rect class="frame" x="0" y="0" width="{{ side }}" height="{{ side }}"/>
<text x="{{ side / 2 }}" y="{{ side + 33 }}" text-anchor="middle">{{ x }}</text>
<text transform="translate(-32 {{ side / 2 }}) rotate(-90)" text-anchor="middle">{{ y }}</text>
{%- endmacro -%}
{%- macro key_line(kind) -%}
<svg width="26" height="10" viewBox="0 0 26 10"><line class="curve {{ kind }} {{ 'dashed' if kind == 'network' }}" x1="0" x2="26" y1="5" y2="5"/></svg>
{%- endmacro -%}
{%- macro pictures(card) -%}
{% if card.image %}<div class="pictures"><img src="{{ card.image }}" alt="test image {{ card.key }}">{% if card.heat %}<img src="{{ card.heat }}" alt="the same with its heat map">{% endif %}</div>{% endif %}
{%- endmacro -%}
{%- macro glyph(shape, x, y, r, kind) -%}
{%- if shape == 0 -%}<circle class="{{ kind }}" cx="{{ x }}" cy="{{ y }}" r="{{ r }}"/>
{%- elif shape == 1 -%}<path class="{{ kind }}" d="M{{ x }} {{ (y - r * 1.25)|round(1) }}l{{ r * 1.2 }} {{ r * 2.1 }}h-{{ r * 2.4 }}z"/>
{%- elif shape == 2 -%}<rect class="{{ kind }}" x="{{ (x - r * 0.9)|round(1) }}" y="{{ (y - r * 0.9)|round(1) }}" width="{{ r * 1.8 }}" height="{{ r * 1.8 }}"/>
{%- else -%}<path class="{{ kind }}" d="M{{ x }} {{ (y - r * 1.3)|round(1) }}l{{ r * 1.3 }} {{ r * 1.3 }}l-{{ r * 1.3 }} {{ r * 1.3 }}l-{{ r * 1.3 }} -{{ r * 1.3 }}z"/>{%- endif -%}
{%- endmacro -%}
"""
