"""Names of the command line that programs use. `__init__` imports them when they are asked for."""

from dln_geometry.cli.app import main as main
from dln_geometry.cli.photograph import (
    Puzzle as Puzzle,
)
from dln_geometry.cli.photograph import (
    complete_at_depth as complete_at_depth,
)
from dln_geometry.cli.photograph import (
    hide as hide,
)
from dln_geometry.cli.photograph import (
    load_photograph as load_photograph,
)
from dln_geometry.tables import read_entries as read_entries
