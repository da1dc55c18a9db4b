"""Section of the hospital's page: what denoising and CLAHE did to its images."""
# ruff: noqa: E501

from __future__ import annotations

from markupsafe import Markup

from client.data.contrast import FIGURES, MEANING, Effect
from client.rendering import rendered
from shared.study_pixels import Preprocessing

_SECTION = """<section><h2>What denoising and CLAHE did to the images</h2>
<p>{{ steps }}, on {{ effect.images }} of {{ effect.all_images }} images, drawn at random{% if effect.unreadable %}; {{ effect.unreadable }} more could not be read{% endif %}.</p>
<div class="scroll"><table><thead><tr><th>Mean over the images</th><th class="number">Before</th><th class="number">After</th><th class="number">Images</th></tr></thead><tbody>
{% for one in effect.changes %}<tr><th>{{ names[one.name] }}</th><td class="number">{{ "%.3f"|format(one.before) }}</td><td class="number">{{ "%.3f"|format(one.after) }}</td><td class="number">{{ one.images }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="soft">{{ meaning }} More contrast is not yet a better diagnosis: what the step is worth shows in the figures above, with it and without.</p></section>
"""

_DENOISED = {"median": "Median filter", "bilateral": "Bilateral filter", "nlm": "Non-local means"}


def contrast_section(effect: Effect, recipe: Preprocessing) -> Markup:
    """The section's HTML, for `client.page.write_page`."""
    return Markup(rendered(_SECTION, effect=effect, names=FIGURES, meaning=MEANING, steps=_steps(recipe)))


def _steps(recipe: Preprocessing) -> str:
    steps = [_DENOISED[recipe.denoise]] if recipe.denoise != "none" else []
    if (clahe := recipe.clahe) is not None:
        steps.append(f"CLAHE in {clahe.tiles} x {clahe.tiles} tiles with clip limit {clahe.clip_limit:g}")
    return ", then ".join(steps)
