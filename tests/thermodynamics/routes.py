"""Losses of singular values."""

from __future__ import annotations


def square(s):
    return 0.8 * s.square().sum(-1)


def double_well(s):
    return (s - 0.4).square().sum(-1) + 0.1 * s.pow(4).sum(-1)
