"""Damaged files and odd command lines: refused in words by every reader, or read, never a crash.

``--hypothesis-profile=night`` tries a hundred times as many.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

import dln_geometry as dln
from dln_geometry.cli import main
from dln_geometry.completion import MatrixCompleter
from dln_geometry.tables import load_ids, read_entries, read_matrix, read_pairs

HOLES = np.array([[0.5, np.nan, 2.5], [np.nan, 1.5, -1.0]])
TRIPLES = "user,film,stars\nann,7,5\nbob,9,3\nann,9,2.5\n"
SWEEP = (
    'command = "entropy"\narguments = ["x.csv"]\n[options]\njson = true\n[axes]\ndepth = [2, 3]\n'
)
# What a reader may raise; files that claim more than the memory are refused by a ValueError.
WORDS = (ValueError, TypeError, OSError)


def written(save) -> bytes:
    """Return the bytes that a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(save(Path(folder) / "x")).read_bytes()


def saved(write, suffix):
    def save(path):
        file = path.with_suffix(suffix)
        write(file)
        return file

    return written(save)


@functools.cache
def files() -> dict[str, bytes]:
    """Return a sound file of every format, by a name that ends in its suffix."""
    sparse = scipy.sparse.coo_array(np.nan_to_num(HOLES))
    frame = pd.DataFrame({"user": ["a", "b"], "film": [1, 2], "stars": [3.0, 4.5]})
    path = dln.brownian_motion(
        dln.EndToEnd.of(np.eye(2), 2), t_end=0.2, dt=0.1, generator=0, keep_points=True
    )
    fitted = MatrixCompleter(depth=2, rank=1, decay=0.1, refit=False, validation=0.0)
    fitted.fit(np.where(np.arange(24).reshape(6, 4) % 5 == 0, np.nan, 1.0 + np.eye(6, 4)))
    return {
        "table.csv": b"a;b;c\n1,5;;2\n;3;4\n",
        "triples.csv": TRIPLES.encode(),
        "triples.tsv": TRIPLES.replace(",", "\t").encode("utf-16"),
        "triples.csv.gz": gzip.compress(TRIPLES.encode()),
        "matrix.txt": b"1.5 2 3\n3 4.5 5\n",
        "matrix.npy": saved(lambda f: np.save(f, HOLES), ".npy"),
        "matrix.npz": saved(lambda f: np.savez(f, HOLES), ".npz"),
        "triples.npz": saved(
            lambda f: np.savez_compressed(f, rows=[0, 1], cols=[1, 0], values=[2.0, 3.0]), ".npz"
        ),
        "sparse.npz": saved(lambda f: scipy.sparse.save_npz(f, sparse), ".npz"),
        "sparse.mtx": saved(lambda f: scipy.io.mmwrite(f, sparse), ".mtx"),
        "frame.parquet": saved(frame.to_parquet, ".parquet"),
        "weights.pt": saved(lambda f: torch.save({"a.weight": torch.eye(2)}, f), ".pt"),
        "trajectory.npz": written(path.save),
        "completer.npz": written(fitted.save),
        "sweep.toml": SWEEP.encode(),
        "x-completed.json": b'{"rows": ["a", "b"], "columns": [1, 2, 3]}',
    }


def in_silence(*words: str) -> int:
    """Run the command line; a code of 1 or 2 must come with an error in words."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(words))
    assert code in (0, 1, 2), words
    assert "Traceback" not in said.getvalue(), said.getvalue()
    if code:
        assert said.getvalue().splitlines()[-1].startswith("error: "), said.getvalue()
    return code


READERS = {
    "read_entries": read_entries,
    "read_entries as triples": lambda f: read_entries(f, layout="triples", duplicates="mean"),
    "read_matrix": read_matrix,
    "read_pairs": read_pairs,
    "load_ids": load_ids,
    "Trajectory.load": dln.Trajectory.load,
    "MatrixCompleter.load": MatrixCompleter.load,
    "dln entropy": lambda f: in_silence("entropy", str(f)),
    "dln moments": lambda f: in_silence("moments", str(f)),
    "dln sweep": lambda f: in_silence("sweep", str(f)),
}


@some.composite
def damaged(draw):
    """Draw a file with a few cuts, flips, repeats and insertions, or bytes of no format."""
    name = draw(some.sampled_from(sorted(files())))
    content = bytearray(files()[name])
    for _ in range(draw(some.integers(0, 4))):
        at = draw(some.integers(0, len(content)))
        size = draw(some.integers(1, 40))
        kind = draw(some.sampled_from(["cut", "flip", "repeat", "insert", "drop", "zeros"]))
        if kind == "cut":
            del content[at:]
        elif kind == "flip" and at < len(content):
            content[at] ^= draw(some.integers(1, 255))
        elif kind == "repeat":
            content[at:at] = content[at : at + size]
        elif kind == "insert":
            content[at:at] = draw(some.binary(max_size=20))
        elif kind == "drop":
            del content[at : at + size]
        else:
            content[at : at + size] = bytes(min(size, len(content) - at))
    return name, bytes(content)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=max(6, settings().max_examples // 2))
@given(file=damaged())
def test_damaged_files_are_read_or_refused_in_words(reader, file):
    name, content = file
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / name
        path.write_bytes(content)
        with contextlib.suppress(*WORDS):
            READERS[reader](path)


def test_sound_files_are_read():
    """The samples are sound: what is damaged above would else be refused for another reason."""
    good = {
        "read_entries": ("triples.csv", "triples.tsv", "triples.csv.gz", "triples.npz",
                         "sparse.npz", "sparse.mtx", "frame.parquet", "matrix.npy"),
        "read_matrix": ("matrix.txt",),
        "Trajectory.load": ("trajectory.npz",),
        "MatrixCompleter.load": ("completer.npz",),
        "dln moments": ("weights.pt",),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for reader, names in good.items():
            for name in names:
                path = Path(folder) / name
                path.write_bytes(files()[name])
                assert READERS[reader](path) != 2, (reader, name)


COMMANDS = ("entropy", "flow", "langevin", "dyson", "geodesic", "moments", "charges", "complete",
            "photograph", "sweep", "experiments")  # fmt: skip
OPTIONS = some.sampled_from(
    ["--depth", "--rank", "--json", "--out", "--seed", "--t-end", "--dt", "--beta", "--store",
     "--dtype", "--device", "--chains", "--figure", "--force", "--header", "--index", "--loss",
     "--decay", "--validation", "--delimiter", "--decimal", "--every", "--save-at", "--workers",
     "--predict", "--duplicates", "--max-memory", "--shape", "--layout", "--no-such-option"]
)  # fmt: skip
VALUES = some.one_of(
    some.sampled_from(["", "-1", "0", "1", "2.5", "inf", "nan", "1e400", "0x10", "none", "x.csv",
                       "float32", "cpu", "cuda", "a/b/c", "--", "-", "\u00e4", "1,2", "[1]"]),
    some.text(max_size=4).filter(lambda text: "\0" not in text),
)  # fmt: skip


@settings(max_examples=max(4, settings().max_examples // 3))
@given(
    some.sampled_from([c for c in COMMANDS if c not in ("complete", "photograph", "experiments")]),
    some.booleans(),
    some.lists(some.tuples(OPTIONS, VALUES), min_size=1, max_size=4),
)
def test_odd_options_end_with_a_code_and_words(command, file, options):
    words = [command, *(["x.csv"] if file else []), *(w for pair in options for w in pair)]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        Path("x.csv").write_text("1,2\n3,5\n")
        in_silence(*words)
