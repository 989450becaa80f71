"""Short fits by options, and tables as they were written."""

from __future__ import annotations

import csv

PLAIN = ("--depth", "2.5", "--decay", "0.2", "--rank", "4", "--rtol", "1e-2")
# Without a comparison of side means, and with one split.
QUICK = (*PLAIN, "--no-biases", "--validation", "0.2")


def read_table(name):
    with open(name, newline="") as handle:
        header, *lines = csv.reader(handle)
    return header, lines
