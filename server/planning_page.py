"""The plan as a page: one file that needs nothing else, in the manner of a run's report."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from server.planning import Plan
from server.report.charts import ALL, Series, line_chart, swatch
from shared.privacy.mechanisms import Event, Geometric

#: Epsilons above this are in the table only: they would flatten the part of the picture that matters.
MOST_DRAWN = 20.0
_HERE = Path(__file__).parent


def render_plan(plan: Plan) -> str:
    """HTML with an inline SVG of both curves; no script, no link out."""
    environment = Environment(
        loader=FileSystemLoader([_HERE, _HERE / "report"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    series = _series(plan)
    return environment.get_template("planning.html.j2").render(
        plan=plan,
        question=plan.question,
        chart=_chart(plan, series),
        legend=[(swatch(one.style), one.name) for one in series],
        hidden=[row for row in plan.rows if max(row.rdp_epsilon, row.pld_epsilon) > MOST_DRAWN],
        most_drawn=MOST_DRAWN,
        releases=", ".join(_release(event) for event in plan.question.besides),
    )


def _release(event: Event) -> str:
    if isinstance(event, Geometric):
        return f"counts with geometric noise of epsilon {event.epsilon:g}"
    return f"a private SVM of {event.steps} steps with noise multiplier {event.noise_multiplier:g}"


def _series(plan: Plan) -> list[Series]:
    def drawn(epsilon: float) -> float | None:
        return epsilon if epsilon <= MOST_DRAWN else None

    series = [
        Series("PLD: what one run costs", 0, [(row.noise_multiplier, drawn(row.pld_epsilon)) for row in plan.rows]),
        Series(
            "RDP: what a hospital charges", 1, [(row.noise_multiplier, drawn(row.rdp_epsilon)) for row in plan.rows]
        ),
    ]
    stated = plan.question.stated
    if stated is not None:
        series.append(Series(f"the study's own: {stated:g}", ALL, [(stated, 0.0), (stated, MOST_DRAWN)]))
    target = plan.question.epsilon
    if target is not None and target <= MOST_DRAWN:
        ends = (plan.rows[0].noise_multiplier, plan.rows[-1].noise_multiplier)
        series.append(Series(f"epsilon asked for: {target:g}", ALL, [(end, target) for end in ends]))
    return series


def _chart(plan: Plan, series: list[Series]) -> Markup:
    return line_chart(
        series,
        label=f"Epsilon of the run at delta {plan.question.delta:g} by noise multiplier, by PLD and by RDP",
        x_label="noise multiplier σ (multiples of the clipping norm)",
        y_label=f"ε of the run at δ = {plan.question.delta:g} (natural log)",
    )
