"""The entropy of a matrix against its singular values, and balancing against the SVD.

Run: python benchmarks/bench_entropy.py
"""

from __future__ import annotations

import torch
from timing import machine, side_by_side, table

import dln_geometry as dln


def main():
    torch.set_num_threads(1)
    print(machine())
    g = torch.Generator().manual_seed(0)
    rows = []
    for d in (50, 200, 500):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(d, d, generator=g, dtype=dtype)
            times = side_by_side(
                {
                    "ours": lambda x=x: dln.entropy(x, depth=4),
                    "svdvals": lambda x=x: torch.linalg.svdvals(x),
                    "point": lambda x=x: dln.entropy(dln.EndToEnd.of(x, 4)),
                    "svd": lambda x=x: torch.linalg.svd(x, full_matrices=False),
                }
            )
            rows.append(
                [
                    f"{d}, {str(dtype)[6:]}",
                    f"{times['ours'] * 1e3:.2f}",
                    f"{times['svdvals'] * 1e3:.2f}",
                    f"{times['ours'] / times['svdvals']:.2f}",
                    f"{times['point'] / times['svd']:.2f}",
                ]
            )
    table(
        "Entropy of a d x d matrix, depth 4",
        ["d", "entropy(x) ms", "svdvals ms", "ratio", "entropy(EndToEnd.of(x)) / svd"],
        rows,
    )


if __name__ == "__main__":
    main()
