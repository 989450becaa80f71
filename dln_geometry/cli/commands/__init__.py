"""The commands of ``dln`` as they are typed: arguments, options, help and an example each.

`pictures` declares the photograph and the gallery, `completing` the completion of tables,
`matrices` what takes one or two matrices, `motions` flows and random motions, `models` what takes
checkpoints, `sweeping` runs of a command over its options. A function declares and has no body:
`program.command` names the worker that is imported and called with the same arguments. Nothing here
imports torch.
"""

from __future__ import annotations

from dln_geometry.cli.commands.completing import complete_command
from dln_geometry.cli.commands.matrices import balance_command, entropy_command, geodesic_command
from dln_geometry.cli.commands.models import charges_command, moments_command
from dln_geometry.cli.commands.motions import dyson_command, flow_command, langevin_command
from dln_geometry.cli.commands.pictures import experiments_command, photograph_command
from dln_geometry.cli.commands.sweeping import sweep_command

__all__ = [
    "balance_command",
    "charges_command",
    "complete_command",
    "dyson_command",
    "entropy_command",
    "experiments_command",
    "flow_command",
    "geodesic_command",
    "langevin_command",
    "moments_command",
    "photograph_command",
    "sweep_command",
]
