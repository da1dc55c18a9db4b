"""Markup of the audit's page (Jinja2). A Python file, because a Flower app bundle carries no other kind of file."""
# ruff: noqa: E501

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Audit of run {{ run.name }}</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --ok: #1a6b3c; --ok-fill: #e7f4ec; --open: #7a4b00; --open-fill: #fff3d6; --bad: #9b1c1c; --bad-fill: #fdecea; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --soft: #9aa4ae; --line: #353c44;
  --ok: #7fd3a0; --ok-fill: #17301f; --open: #f0c97a; --open-fill: #352c0d; --bad: #f5b5b0; --bad-fill: #3a1d1c; } }
@media print { tr, li { break-inside: avoid; } main { max-width: none; padding: 0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.2rem 0 0.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, li { margin: 0.3rem 0; max-width: 48rem; } .soft { color: var(--soft); font-size: 0.9rem; }
.verdict { border-radius: 6px; padding: 0.7rem 1rem; font-weight: 600; max-width: none; }
.ok { color: var(--ok); background: var(--ok-fill); } .open { color: var(--open); background: var(--open-fill); }
.bad { color: var(--bad); background: var(--bad-fill); }
.mark { display: inline-block; border-radius: 4px; padding: 0 0.5rem; font-size: 0.85rem; font-weight: 600; white-space: nowrap; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 0.4rem 0.8rem 0.4rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: baseline; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); } tbody th { font-weight: 600; width: 20rem; } td.first { width: 8.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0.6rem 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } .costs td { font-variant-numeric: tabular-nums; } .costs tbody th { width: auto; } .costs th, .costs td { overflow-wrap: normal; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
</style>
</head>
<body><main>
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
<div class="wide"><table class="costs"><thead><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr></thead><tbody>
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
