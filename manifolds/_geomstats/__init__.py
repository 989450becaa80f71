"""The classes behind `manifolds.geomstats_dln`: `matrices`, and `networks` that use them.

`arrays` converts between geomstats' backend and the library.
"""
