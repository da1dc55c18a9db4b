"""The lifetime budget as a page for a hospital's data protection officer: one file, no script, no link out, nothing sent."""
# ruff: noqa: E501

from __future__ import annotations

from client.budget_report import BudgetReport, GroupSpent, in_words
from client.rendering import rendered
from shared.exact import as_float
from shared.page_frame import page_head

#: Width and height of a bar, in the picture's units.
_WIDTH, _HEIGHT, _ROW = 520.0, 20.0, 46.0

_PAGE = (
    page_head(
        "{{ found.title }}: privacy budget",
        light="--spent: #0067b1; --left: #e3e8ed; --stay: #7a1f1f; --stay-fill: #fdf0ef; --warn: #6b5200; --warn-fill: #fff7db;",
        dark="--spent: #62b0ec; --left: #2b3238; --stay: #f5b5b0; --stay-fill: #3a1d1c; --warn: #f0d77a; --warn-fill: #352c0d;",
        printed="--spent: #0067b1; --left: #eee; --stay: #7a1f1f; --stay-fill: #fff; --warn: #000; --warn-fill: #fff;",
        style="""
.stay { color: var(--stay); background: var(--stay-fill); } .warn { color: var(--warn); background: var(--warn-fill); }
tbody th { font-weight: 400; overflow-wrap: anywhere; } svg text { fill: var(--ink); font-size: 13px; } svg .small { fill: var(--soft); font-size: 12px; }
.spent { fill: var(--spent); } .left { fill: var(--left); stroke: var(--line); }
""",
    )
    + """<body><main>
<p class="banner stay"><strong>This page stays in {{ found.title }}.</strong> It names no patient, but says of how many patients which run was.</p>
{% if found.synthetic %}<p class="banner warn"><strong>Synthetic data.</strong> The images are phantoms made by a program.</p>{% endif %}
{% for note in found.notes %}<p class="banner warn">{{ note }}</p>{% endfor %}
{% if unbounded %}<p class="banner warn"><strong>Runs without a bound:</strong> {{ unbounded|join(", ") }}. They had no differential privacy: what left in them can say anything of a patient, and no figure below counts it.</p>{% endif %}
<p class="soft">{{ found.title }} ({{ found.site }})</p>
<h1>What was spent of our patients' privacy budget</h1>
{% if found.lifetime %}<p>Each patient's budget for life: {{ budget }}.</p>
{% else %}<p>This hospital has set no lifetime budget. Private studies are therefore refused, and nothing limits what studies without differential privacy say of a patient. To set one, add <code>policy.lifetime</code> (epsilon and delta) to <code>site.json</code>; it can be lowered later, never raised.</p>{% endif %}
{% if found.groups %}
<div class="figures">
<div class="figure-box"><span class="soft">Patients in runs</span><b>{{ found.patients }}</b><span class="soft">{{ found.runs|length }} run(s)</span></div>
{% if found.lifetime %}<div class="figure-box"><span class="soft">Most that was spent of one patient</span><b>{{ most_spent }}</b><span class="soft">epsilon, of {{ found.lifetime.epsilon }}</span></div>
<div class="figure-box"><span class="soft">Least that is left to one patient</span><b>{{ least_left }}</b><span class="soft">epsilon, with all that is reserved taken off</span></div>{% endif %}
</div>
<section><h2>By patients</h2>
<p class="soft">Patients with the same history are one bar. A copy of a patient's images under another id is the same patient.{% if found.stand_in %} The data has no patient id: <code>{{ found.stand_in }}</code> stands in for the patient.{% endif %}</p>
{% if found.lifetime %}<svg width="560" height="{{ rows|length * row_height + 6 }}" viewBox="0 0 560 {{ rows|length * row_height + 6 }}" role="img" aria-label="Spent, reserved and left, by groups of patients">
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" class="left"/><rect width="2.5" height="6" class="spent"/></pattern></defs>
{% for row in rows %}<g transform="translate(0 {{ loop.index0 * row_height }})"><text x="0" y="14">{{ row.group.patients }} patient(s) in {{ row.group.runs|length }} run(s): {{ row.said }}</text>
<rect class="left" x="0" y="19" width="{{ width }}" height="{{ height }}"/><rect fill="url(#hatch)" x="{{ row.spent }}" y="19" width="{{ row.reserved }}" height="{{ height }}"/><rect class="spent" x="0" y="19" width="{{ row.spent }}" height="{{ height }}"/></g>
{% endfor %}</svg>
<ul class="legend"><li><svg width="14" height="14"><rect class="spent" width="14" height="14"/></svg>spent: it has begun, or was released</li><li><svg width="14" height="14"><rect fill="url(#hatch)" width="14" height="14"/></svg>reserved by a run, not begun</li><li><svg width="14" height="14"><rect class="left" width="14" height="14"/></svg>left</li></ul>{% endif %}
<div class="scroll"><table><thead><tr><th class="number">Patients</th><th>In runs</th>{% if found.lifetime %}<th class="number">ε spent</th><th class="number">ε reserved</th><th class="number">ε left</th>{% endif %}<th>Without a bound</th></tr></thead><tbody>
{% for row in rows %}<tr><td class="number">{{ row.group.patients }}</td><th>{{ row.group.runs|join(", ") }}</th>{% if found.lifetime %}<td class="number">{{ "%.4g"|format(row.group.spent) }}</td><td class="number">{{ "%.4g"|format(row.group.reserved) }}</td><td class="number">{{ "%.4g"|format(row.group.left) }}</td>{% endif %}<td>{{ row.group.unbounded|join(", ") or "none" }}</td></tr>
{% endfor %}</tbody></table></div></section>
<section><h2>By runs</h2>
<div class="scroll"><table><thead><tr><th>Run</th><th>Study</th><th>State</th><th class="number">Patients</th><th>Rounds begun</th><th>Released</th><th class="number">ε spent</th><th class="number">ε with what is reserved</th></tr></thead><tbody>
{% for run in found.runs %}<tr><th>{{ run.run }}</th><td>{{ run.study }} <span class="soft">{{ run.study_digest[:12] }}</span></td><td>{{ run.state }}</td><td class="number">{{ run.patients }}</td><td>{{ run.begun }} of {{ run.rounds }}{% if run.begun_again %}, {{ run.begun_again }} begun again{% endif %}</td><td>{{ run.released|join(", ") or "no figures" }}</td>{% if run.spent is none %}<td colspan="2">no bound</td>{% else %}<td class="number">{{ "%.4g"|format(run.spent) }}</td><td class="number">{{ "%.4g"|format(run.counted) }}</td>{% endif %}</tr>
{% endfor %}</tbody></table></div>
<p class="soft">An open run may still begin what it has reserved. One that will not go on is closed with <code>consilium-site close FOLDER RUN</code>, which gives back what never began. A round that had to be begun again, after a crash say, is charged each time.</p></section>
{% else %}<p>Nothing was spent: no run is on the ledger.</p>{% endif %}
<section><h2>What the figures mean</h2>
<p>Epsilon (ε) bounds how much everything that left the hospital together can depend on whether one patient was among the data at all: whatever somebody concludes from it, the odds change by a factor of at most e<sup>ε</sup>, but for a chance of delta. The smaller, the better protected: ε = 1 is a factor of 2.7, ε = 8 one of 3000.</p>
<p>The figures are upper bounds, by Rényi differential privacy (RDP), for one patient with all images of that patient. Runs of the same patient together cost less than the sum of what each costs alone. Budgets of several hospitals are not added up here: a patient of two hospitals is charged at each.</p>
<p>What was spent never comes back. The budget can be lowered, never raised; a study that would go beyond it for a single patient is refused before an image is opened, and where only the images show who a patient is, before anything leaves.</p></section>
</main></body></html>
"""
)


def render_budget(found: BudgetReport) -> str:
    """HTML with an inline SVG, readable without colour."""
    limit = as_float(found.lifetime.epsilon) if found.lifetime is not None else None
    return rendered(
        _PAGE,
        found=found,
        budget=in_words(found.lifetime) if found.lifetime is not None else "",
        unbounded=list(dict.fromkeys(name for group in found.groups for name in group.unbounded)),
        most_spent=f"{max((group.spent for group in found.groups), default=0.0):.4g}",
        least_left=f"{min((group.left or 0.0 for group in found.groups), default=0.0):.4g}",
        rows=[_row(group, limit) for group in found.groups],
        width=_WIDTH,
        height=_HEIGHT,
        row_height=_ROW,
    )


def _row(group: GroupSpent, limit: float | None) -> dict[str, object]:
    whole = max(limit or 0.0, group.counted) or 1.0
    reserved = f", {group.reserved:.4g} reserved" if group.reserved > 0 else ""
    left = f", {group.left:.4g} left" if group.left is not None else ""
    return {
        "group": group,
        "said": f"{group.spent:.4g} spent{reserved}{left}",
        "spent": round(_WIDTH * group.spent / whole, 1),
        "reserved": round(_WIDTH * group.reserved / whole, 1),
    }
