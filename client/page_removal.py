"""Section of the hospital's page: what the study removed from its images, with a few before and after."""
# ruff: noqa: E501

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from client.data.removal import Removal
from client.page_figures import png_data_uri
from client.rendering import rendered
from shared.study_pixels import Preprocessing

_SECTION = """<section><h2>What was removed from the images</h2>
<p>{{ names }}, on {{ removal.images }} of {{ removal.all_images }} images, drawn at random{% if removal.unreadable %}; {{ removal.unreadable }} more could not be read{% endif %}.</p>
<ul>{% if crops %}<li>{% if removal.cut %}{{ removal.cut }} images were cut to what they show; {{ "%.0f"|format(100 * removal.kept) }} % of their area was left, on average{% else %}No image was cut{% endif %}.</li>
{% endif %}{% if fills %}<li>{{ "%.1f"|format(100 * removal.filled_share) }} % of all pixels were filled, on average; of {{ removal.filled }} images more than 1 %.</li>
{% endif %}</ul>
<p>The images that changed most, before and after, as the network's size has them:</p>
<div class="row">{% for one in pairs %}<div class="card pair"><div class="pictures"><img src="{{ one[1] }}" alt="before"><img src="{{ one[2] }}" alt="after"></div>{{ one[0] }}</div>
{% endfor %}</div>
<p class="soft">Light hair stays, and what lies under a filled line is a guess from the skin beside it. Look whether a lesion's own pattern was taken for hair.</p></section>
"""


def removal_section(removal: Removal, recipe: Preprocessing) -> Markup:
    """The section's HTML, for `client.page.write_page`."""
    pairs = [(one.key, png_data_uri(_planes(one.before)), png_data_uri(_planes(one.after))) for one in removal.pairs]
    text = rendered(
        _SECTION, removal=removal, pairs=pairs, names=", ".join(recipe.remove).capitalize(), crops=bool(recipe.cuts),
        fills=bool(recipe.fills),
    )  # fmt: skip
    return Markup(text)


def _planes(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    return levels if levels.ndim == 2 else levels.transpose(2, 0, 1)
