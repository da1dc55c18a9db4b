"""Markup of the audit's page (Jinja2). A Python file, because a Flower app bundle carries no other kind of file."""
# ruff: noqa: E501

from __future__ import annotations

from shared.page_frame import page_head

PAGE = (
    page_head(
        "Audit of run {{ run.name }}",
        light="--ok: #1a6b3c; --ok-fill: #e7f4ec; --open: #7a4b00; --open-fill: #fff3d6; --bad: #9b1c1c; --bad-fill: #fdecea;",
        dark="--ok: #7fd3a0; --ok-fill: #17301f; --open: #f0c97a; --open-fill: #352c0d; --bad: #f5b5b0; --bad-fill: #3a1d1c;",
        printed="--ok: #000; --ok-fill: #fff; --open: #000; --open-fill: #fff; --bad: #000; --bad-fill: #fff;",
        style="""
.ok { color: var(--ok); background: var(--ok-fill); } .open { color: var(--open); background: var(--open-fill); }
.bad { color: var(--bad); background: var(--bad-fill); }
table { width: 100%; } th, td { overflow-wrap: anywhere; } tbody th { font-weight: 600; width: 20rem; } td.first { width: 8.5rem; }
.costs tbody th { width: auto; } .costs th, .costs td { overflow-wrap: normal; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
""",
    )
    + """<body><main>
<p class="soft">consilium-audit verify</p>
<h1>Audit of run {{ run.name }}</h1>
<p class="verdict {{ classes[worst] }}">
{% if worst == "violated" %}At least one record contradicts another, or was signed by somebody who is not trusted. Don't rely on this run before that is explained.
{% elif worst == "not checkable" %}Nothing contradicts anything. Some questions could not be answered from these files: what is absent is named below.
{% else %}Every question below could be answered from these files, and nothing contradicts anything.
{% endif %}</p>
<dl>
<dt>Study</dt><dd>{{ study.title }} ({{ study.name }})</dd>
<dt>Purpose</dt><dd>{{ study.governance.purpose }}</dd>
<dt>Ethics</dt><dd>{{ study.governance.ethics }}</dd>
<dt>Retention</dt><dd>{{ study.governance.retention }}</dd>
<dt>Hospitals</dt><dd>{{ sites | join(", ") or "none answered" }}</dd>
<dt>Rounds</dt><dd>{{ rounds }} of {{ study.federation.rounds }}; the run is {{ run.state }}{{ ": " ~ run.reason if run.reason }}</dd>
<dt>Begun, ended</dt><dd>{{ run.started }}, {{ run.ended or "not ended" }}</dd>
<dt>Privacy</dt><dd>{{ privacy }}</dd>
<dt>Digests</dt><dd>study <code>{{ run.study_digest }}</code><br>code <code>{{ run.code_digest }}</code></dd>
<dt>Checked</dt><dd>{{ made }}</dd>
</dl>
{% if costs %}
<h2>What the run cost a patient at each hospital</h2>
<p>Epsilon says how much more likely any conclusion about the run becomes because one patient took part: at most by the factor e<sup>epsilon</sup>, but for a chance of delta. Smaller is safer; 0 would tell nothing. What the hospitals claim is held against two accountants that share no code. RDP is an upper bound that adds up over studies: it is what a hospital charges to the budget that it has set each patient for life.</p>
<div class="scroll"><table class="costs"><thead><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr></thead><tbody>
{% for cost in costs %}
<tr>{% for cell in cost.row() %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="soft">The figures by PLD are of the run as it was reserved, before its first round. RDP is of what was begun and released, rounds that were begun again each time. Charges are of whichever patient of the hospital has most, over all its runs, at the delta of its lifetime budget.</p>
{% for cost in costs if cost.again %}
<p>{{ cost.site }} began {{ cost.again }} round(s) again. A run that was prolonged on the way has no figure by PLD; for this hospital RDP counts.</p>
{% endfor %}
{% endif %}
<h2>What was asked, and how each answer was reached</h2>
<table><thead><tr><th>Outcome</th><th>Question</th><th>Why</th></tr></thead><tbody>
{% for check in checks %}
<tr><td class="first"><span class="mark {{ classes[check.outcome] }}">{{ words[check.outcome] }}</span></td><th scope="row">{{ check.name }}</th><td>{{ check.why }}</td></tr>
{% endfor %}
</tbody></table>
{% if keys %}
<h2>Whose keys signed</h2>
<table><thead><tr><th>Party</th><th>Fingerprint</th><th>Trusted</th></tr></thead><tbody>
{% for key in keys %}
<tr><th scope="row">{{ key.name }}</th><td><code>{{ key.spoken }}</code></td><td>{{ "yes: it was given to this audit" if key.trusted else "nobody vouched for it here" }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
<h2>What this rests on</h2>
<ul>{% for one in assumes %}<li>{{ one }};</li>{% endfor %}</ul>
<h2>What no file can show</h2>
<ul>{% for one in not_shown %}<li>{{ one }};</li>{% endfor %}</ul>
<p class="soft">Made from files alone, without a network. The same files and fingerprints give the same outcomes on any machine.</p>
</main></body></html>
"""
)
