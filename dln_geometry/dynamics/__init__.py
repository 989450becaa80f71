"""Losses, flows and random motions of end-to-end matrices, and the trajectories they return.

In reading order: `losses`, `engines` (vector fields), `flows`, `noise` (Langevin dynamics), `dyson`
(eigenvalues and singular values), `sampling` (Gibbs measures); `laws` are exact distributions to
compare with. `trajectory` is what a run returns, `store` the file it resumes from.
"""
