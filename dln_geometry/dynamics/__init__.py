"""Losses, flows and random motions of end-to-end matrices, and the trajectories they return.

In reading order: `losses`, `engines` (vector fields), `flows`, `noise` (Langevin dynamics), `dyson`
(eigenvalues and singular values), `sampling` (Gibbs measures); `laws` are exact distributions to
compare with; `sharded` cuts flows by rows over processes. `trajectory` is what a run returns,
`store` the file it resumes from.

Runs are not differentiable: flows, random motions, samplers and `exact` detach their starts and the
tensors of their losses, and no result of theirs requires gradients.
"""
