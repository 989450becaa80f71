"""Points, metric, submersion, geodesics and curvature of end-to-end matrices and balanced networks.

The rooms in reading order: `kernel` (the depth kernel, scalar functions of singular values),
`points` (matrices and networks as values), `metric` (cometric, connection, entropy), `submersion`
(from networks to matrices), `geodesics` (of matrices), `network_geodesics` and `curvature`. Each
room imports from the ones before it.
"""
