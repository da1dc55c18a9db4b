"""Rényi orders: at them a hospital's spending is kept and added up, for life."""

from __future__ import annotations

#: Public and fixed: a ledger that was begun with them goes on with them.
ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 65)),
    *(80.0, 96.0, 128.0, 192.0, 256.0, 512.0, 1024.0),
)
