"""The public names by topic: the pages of the reference are written from these tables.

A public name is what stands in the `__all__` of one of the `FACES`. A name belongs to the first
topic of its face of whose rooms one holds its module, so that new names get their page by
themselves. A name that no topic takes fails a test.
"""

from __future__ import annotations

import importlib
import inspect
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce

FACES = (
    "dln_geometry",
    "dln_geometry.losses",
    "dln_geometry.laws",
    "dln_geometry.exact",
    "dln_geometry.sharded",
    "dln_geometry.landscape",
    "dln_geometry.diagnostics",
    "dln_geometry.thermodynamics",
    "dln_geometry.plot",
    "dln_geometry.testing",
    "dln_geometry.learning",
    "dln_geometry.learning.closed_forms",
    "dln_geometry.completion",
    "dln_geometry.tables",
    "dln_geometry.ode",
    "manifolds.pymanopt_dln",
    "manifolds.geomstats_dln",
)


@dataclass(frozen=True)
class Topic:
    """One page of the reference: names of a face whose modules begin with one of the rooms."""

    file: str
    title: str
    about: str
    face: str
    rooms: tuple[str, ...] = ("",)


def _inside(file, title, about, *rooms):
    rooms = tuple(f"dln_geometry.{room}" for room in rooms)
    return Topic(file, title, about, "dln_geometry", rooms)


def _learning(file, title, about, *rooms):
    rooms = tuple(f"dln_geometry.learning.{room}" for room in rooms)
    return Topic(file, title, about, "dln_geometry.learning", rooms)


TOPICS = (
    _inside(
        "points",
        "Points and networks",
        "Balanced networks, end-to-end matrices with their depth, and the two matrices that stand "
        "for a network of any depth.",
        "geometry.points",
    ),
    _inside(
        "metric",
        "Metric, volume and entropy",
        "The depth-N metric, its inverse, the connection, and the entropy of hidden layers.",
        "geometry.metric",
        "geometry.kernel",
    ),
    _inside(
        "submersion",
        "Layers above matrices",
        "Tangent vectors of balanced networks and of their end-to-end matrices: horizontal lifts, "
        "vertical directions, frames, and how the fibres bend.",
        "geometry.submersion",
    ),
    _inside(
        "geodesics",
        "Geodesics and distances",
        "Of end-to-end matrices at every depth and rank, and of the balanced layers.",
        "geometry.geodesics",
        "geometry.network_geodesics",
    ),
    _inside("curvature", "Curvature", "Of the depth-N metric.", "geometry.curvature"),
    _inside(
        "flows",
        "Flows",
        "Gradient flow of any loss, depth and rank, flows of the free energy, and flows that "
        "balance layers.",
        "dynamics.flows",
        "dynamics.trajectory",
    ),
    Topic(
        "losses",
        "Losses",
        "What flows and random motions minimise: functions of the end-to-end matrix.",
        "dln_geometry.losses",
    ),
    Topic("exact", "Exact solutions", "Of the gradient flow.", "dln_geometry.exact"),
    _inside(
        "noise",
        "Noise and sampling",
        "Brownian motion, Langevin dynamics, and samples of the Gibbs measure.",
        "dynamics.noise",
        "dynamics.sampling",
    ),
    Topic(
        "diagnostics",
        "Diagnostics of chains",
        "Whether a sampler has run for long enough.",
        "dln_geometry.diagnostics",
    ),
    Topic(
        "thermodynamics",
        "Thermodynamics",
        "Partition functions of the equilibrium, exactly where formulas are known, and by chains.",
        "dln_geometry.thermodynamics",
    ),
    _inside(
        "dyson",
        "Dyson Brownian motion",
        "Eigenvalues and singular values that move at random and repel each other.",
        "dynamics.dyson",
    ),
    Topic(
        "laws",
        "Laws of random matrices",
        "Exact samples, densities and limits to compare with.",
        "dln_geometry.laws",
    ),
    Topic(
        "sharded",
        "Matrices larger than a device",
        "Points and losses cut by rows over processes.",
        "dln_geometry.sharded",
    ),
    Topic(
        "landscape",
        "The landscape of quadratic losses",
        "Critical points and their kinds, strata of the layers with one product, and how the "
        "volume of nearly optimal layers scales.",
        "dln_geometry.landscape",
    ),
    # What later rooms add to the face of the package.
    Topic("more", "Across topics", "Names that serve several topics.", "dln_geometry"),
    Topic("plot", "Figures", "Axes in, axes out.", "dln_geometry.plot"),
    _learning(
        "layers",
        "Deep linear layers in torch models",
        "A layer, its initialisation, and an optimiser for a single matrix as if it were deep.",
        "layers",
    ),
    _learning(
        "functional",
        "Modules as functions",
        "A module becomes a pure loss of a dict of tensors; a rule is one step of SGD.",
        "functional",
        "rules",
    ),
    _learning(
        "symmetries",
        "Symmetries of a loss",
        "How to state them, check them, and find them in a module.",
        "symmetry",
        "architecture",
    ),
    _learning(
        "charges",
        "Noether charges of training",
        "How charges move, by exact laws, and a monitor for any training loop.",
        "noether",
        "monitor",
        "closed_forms",
    ),
    _learning(
        "motion",
        "The equation of motion of gradient descent",
        "The flow that passes through the iterates.",
        "motion",
    ),
    _learning(
        "mirrors",
        "Mirror symmetries and collapse",
        "Hidden units that become equal or die, and constraints by weight decay alone.",
        "mirror",
        "collapse",
        "constraints",
    ),
    Topic(
        "closed_forms",
        "Learning dynamics in closed form",
        "On deep linear networks the charges are the moments of the layers.",
        "dln_geometry.learning.closed_forms",
    ),
    Topic(
        "completion",
        "Tables with holes",
        "The estimator, and the parts that it is made of.",
        "dln_geometry.completion",
    ),
    Topic("tables", "Tables from files", "Reading and naming.", "dln_geometry.tables"),
    Topic(
        "ode",
        "Differential equations",
        "The integrator of all flows: batches with their own steps, stopping rules, stores.",
        "dln_geometry.ode",
    ),
    Topic("pymanopt", "Manifolds for pymanopt", "", "manifolds.pymanopt_dln"),
    Topic("geomstats", "Manifolds for geomstats", "", "manifolds.geomstats_dln"),
    Topic(
        "testing",
        "Assertions for tests",
        "With tolerances that have a reason.",
        "dln_geometry.testing",
    ),
)

GROUPS = {
    "Geometry": ("points", "metric", "submersion", "geodesics", "curvature"),
    "Dynamics": (
        "flows",
        "losses",
        "exact",
        "noise",
        "diagnostics",
        "thermodynamics",
        "dyson",
        "laws",
        "landscape",
        "sharded",
    ),
    "Models in torch": (
        "layers",
        "functional",
        "symmetries",
        "charges",
        "motion",
        "mirrors",
        "closed_forms",
    ),
    "Tables": ("completion", "tables"),
    "Around": ("more", "plot", "pymanopt", "geomstats", "ode", "testing"),
}


def face_of(name):
    """Return the module of a face, which may be reached by attributes alone."""
    with suppress(ModuleNotFoundError):
        return importlib.import_module(name)
    first, *rest = name.split(".")
    return reduce(getattr, rest, importlib.import_module(first))


def public_names():
    """Return every public object by its name, ``"dln_geometry.entropy"``, modules left out.

    A name that several faces show counts once, at the first of them.
    """
    found, seen = {}, set()
    for face in FACES:
        module = face_of(face)
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value) and id(value) not in seen:
                seen.add(id(value))
                found[f"{face}.{name}"] = value
    return found


def names_by_topic():
    """Return the names of every topic, and those that no topic takes under ``None``."""
    places = {topic: [] for topic in (*TOPICS, None)}
    for name, value in public_names().items():
        room = getattr(value, "__module__", "")
        of_face = [topic for topic in TOPICS if topic.face == name.rpartition(".")[0]]
        takers = (topic for topic in of_face if room.startswith(topic.rooms))
        places[next(takers, None)].append(name)
    return places
