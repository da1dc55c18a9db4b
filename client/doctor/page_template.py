"""Markup of doctor.html (Jinja2). A Python file, because a Flower app bundle carries no other kind of file."""
# ruff: noqa: E501

from __future__ import annotations

from shared.page_frame import page_head

PAGE = (
    page_head(
        "{{ examination.title }}: machine and network",
        light="--ok: #1a6b3c; --ok-fill: #e7f4ec; --warning: #7a4b00; --warning-fill: #fff3d6; --fault: #9b1c1c; --fault-fill: #fdecea;",
        dark="--ok: #7fd3a0; --ok-fill: #17301f; --warning: #f0c97a; --warning-fill: #352c0d; --fault: #f5b5b0; --fault-fill: #3a1d1c;",
        printed="--ok: #000; --ok-fill: #fff; --warning: #000; --warning-fill: #fff; --fault: #000; --fault-fill: #fff;",
        style="""
.fault.verdict, .fault.mark { color: var(--fault); background: var(--fault-fill); } .warning.verdict, .warning.mark { color: var(--warning); background: var(--warning-fill); }
.ok.verdict, .ok.mark { color: var(--ok); background: var(--ok-fill); } .skipped.mark { color: var(--soft); background: var(--fill); }
ol { padding-left: 1.4rem; margin: 0.4rem 0; } ol li { margin: 0 0 0.9rem; padding-left: 0.3rem; overflow-wrap: anywhere; }
ol b { margin-left: 0.3rem; } .remedy { display: block; } .found { display: block; color: var(--soft); }
table { width: 100%; table-layout: fixed; } col.mark-column { width: 7.2rem; } col.title-column { width: 17rem; }
th, td { padding: 0.4rem 0.8rem 0.4rem 0; overflow-wrap: anywhere; } tbody th { font-weight: 600; }
@media (max-width: 40rem) { table, thead, tbody, tr, th, td { display: block; border: 0; padding: 0; } colgroup, thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: 0.6rem 0; } dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.4rem; } }
""",
    )
    + """<body><main>
<p class="soft">consilium-site doctor</p>
<h1>{{ examination.title }}: machine and network</h1>
<p class="verdict {{ 'fault' if examination.count('fault') else 'warning' if examination.count('warning') else 'ok' }}">{{ verdict }}</p>
<dl>
<dt>Site</dt><dd>{{ examination.site }}</dd>
<dt>Federation</dt><dd>{{ examination.federation or "not joined yet" }}</dd>
<dt>Coordinator</dt><dd>{{ examination.coordinator or "not joined yet" }}{{ ": one outbound HTTPS connection, nothing inbound" if examination.coordinator }}</dd>
<dt>Checked</dt><dd>{{ made }}</dd>
<dt>Installed</dt><dd>{% for name, version in examination.versions.items() | sort %}{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}</dd>
</dl>
{% if to_do %}
<section><h2>What to do</h2>
<ol>
{% for one in to_do %}
<li><span class="mark {{ one.outcome }}">{{ words[one.outcome] }}</span> <b>{{ one.title }}</b>
<span class="found">{{ one.found }}</span>
<span class="remedy">{{ one.remedy }}</span></li>
{% endfor %}
</ol></section>
{% endif %}
<section><h2>All checks</h2>
<table><colgroup><col class="mark-column"><col class="title-column"><col></colgroup>
<thead><tr><th>Outcome</th><th>Check</th><th>Found</th></tr></thead><tbody>
{% for one in examination.findings %}
<tr><td><span class="mark {{ one.outcome }}">{{ words[one.outcome] }}</span></td><th scope="row">{{ one.title }}</th><td>{{ one.found }}</td></tr>
{% endfor %}
</tbody></table></section>
<p class="soft">This page names no patient, no image and no private key. It can be handed to the people who keep the machine and the network.</p>
</main></body>
</html>
"""
)
