"""What the manifolds for pymanopt are made of; `manifolds.pymanopt_dln` shows them."""

from __future__ import annotations
