"""The command line: ``dln`` or ``python -m dln_geometry``.

Open `app` first: it holds `main`. `commands` declares the commands and their options (those that
several share stand in `options`) and starts without torch; `program` imports what does the work
when it is asked for: `photograph`, `completing`, `matrices`, `runs` (flows, random motions,
geodesics), `models` (checkpoints), `experiments` (the gallery). `exchange` reads files and
writes results, `files` reads options about them, `report` prints, `machine` reads device, type and
seed, `signals` turns signals into interrupts.
"""

from __future__ import annotations

from dln_geometry import _lazy

# The names, and where each comes from, stand in `__init__.pyi`.
__getattr__, __dir__, __all__ = _lazy.on_demand(__name__, __file__)
