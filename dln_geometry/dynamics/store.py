"""The store of a run: one file from which a killed run continues, and no other run does."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from dln_geometry.dynamics.identity import digests
from dln_geometry.support import RUN_MARK, Lock, check_form, written_whole
from dln_geometry.version import __version__

FORMAT = 2
"""Version 0.1.0 wrote format 1, without a checksum."""

UNSEEN = frozenset({"store", "progress"})
"""Options that no run depends on."""

P = ParamSpec("P")
T = TypeVar("T")


class Store(os.PathLike[str]):
    """One file that holds the state of a run and what decides its result.

    Each checkpoint replaces the file atomically. The file begins with a line of its format and of
    the SHA-256 of all that follows. `facts` are compared when the run is continued.
    """

    def __init__(
        self, path: str | os.PathLike[str], facts: dict[str, Any], lock: Lock | None = None
    ) -> None:
        # By its real name, for two names of one file to have one lock.
        self.path, self.facts, self.lock = Path(os.path.realpath(path)), dict(facts), lock
        self._identity: dict[str, str] | None = None

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    @contextmanager
    def held(cls, path: str | os.PathLike[str], facts: dict[str, Any]) -> Iterator[Store]:
        """Keep other writers off a store; a run inside another run keeps the lock of that one."""
        if isinstance(path, Store):
            yield cls(path, facts, path.lock)
            return
        store = cls(path, facts)
        if store.path.is_dir():
            raise ValueError(f"store must be a file, got the folder {store.path}")
        if store.path.exists() and not store.path.is_file():
            # Reading a pipe would wait for ever.
            raise ValueError(f"store must be a file, got the device or pipe {store.path}")
        with Lock(store.path) as store.lock:
            yield store

    def know(self, **facts: Any) -> None:
        """Add facts that the run has worked out from its arguments."""
        self.facts |= facts

    @property
    def identity(self) -> dict[str, str]:
        """Short texts of the facts, made once: after the run has checked its arguments."""
        if self._identity is None:
            self._identity = digests(self.facts)
        return self._identity

    def save(self, state: dict[str, Any]) -> None:
        """Write a state: a dict of tensors, numbers, strings and nested dicts or lists."""
        content = io.BytesIO()
        held = {"version": __version__, "identity": self.identity, "state": state}
        torch.save(held, content)
        summed = hashlib.sha256(content.getbuffer()).hexdigest()
        if self.lock is not None:
            self.lock.renew()
        with written_whole(self.path, is_run=True) as handle:
            handle.write(RUN_MARK + f"{FORMAT} {summed}\n".encode())
            handle.write(content.getbuffer())

    def load(self, form: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the state last saved, on the CPU, or None if there is no file.

        ValueError if the file is damaged, belongs to another run, or holds a state that has not
        this `form` (see `check_form`).
        """
        if not self.path.exists():
            return None
        if self.path.is_dir():
            raise ValueError(f"store must be a file, got the folder {self.path}")
        held = self.read()
        identity, version, state = held["identity"], held["version"], held["state"]
        names = sorted(self.identity.keys() | identity.keys())
        changed = [name for name in names if self.identity.get(name) != identity.get(name)]
        if changed:
            hint = "give another file, or remove it"
            if changed == ["loss"]:
                hint += (
                    "; functions that round otherwise on another machine have a name by "
                    "losses.from_callable(f, name=...)"
                )
            raise ValueError(
                f"store must belong to the same run, got {self.path} of one with other "
                f"{', '.join(changed)} (version {version}): {hint}"
            )
        if form is not None:
            self.check(lambda: check_form(state, form, "state"))
        return state

    def check(self, use: Callable[[], T]) -> T:
        """Return ``use()`` of the state; name the file in the ValueError of one that is wrong."""
        try:
            return use()
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"store must hold the state of this run, got {self.path}: {error}"
            ) from None

    def read(self) -> dict[str, Any]:
        """Return what the file holds, once its checksum has been compared."""
        required = f"store must be a file written by a run, got {self.path}"
        content = self.path.read_bytes()
        line, _, rest = content.partition(b"\n")
        if content.startswith(b"PK"):
            raise ValueError(
                f"{required}, which is an archive; runs that version 0.1.0 has stored must be "
                "finished with that version"
            )
        found, _, summed = line.removeprefix(RUN_MARK).partition(b" ")
        if not line.startswith(RUN_MARK) or not found.isdigit():
            raise ValueError(f"{required}: it is none, or a damaged one")
        if int(found) != FORMAT:
            raise ValueError(f"store must have the format {FORMAT}, got {int(found)}: {self.path}")
        if summed != hashlib.sha256(rest).hexdigest().encode():
            raise ValueError(f"{required}: it is damaged (its checksum does not fit)")
        try:
            held = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
            check_form({**held, "state": None}, _HELD, "file")
        except Exception:
            raise ValueError(f"{required}: it is none, or a damaged one") from None
        return held


_HELD = {"version": str, "identity": {str: str}, "state": None}


def resumable(*free: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a run that takes a path as its option `store`.

    The run is given a `Store` in its place, locked while the run lasts. The store knows the run's
    name and all of its arguments, defaults included, but those that are `free` to change when the
    run is continued: a new option is known without being listed anywhere.
    """

    def decorate(run: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(run)

        @wraps(run)
        def resumed(*args: P.args, **options: P.kwargs) -> T:
            path: Any = options.get("store")
            if path is None:
                return run(*args, **options)
            if not isinstance(path, str | os.PathLike):
                raise TypeError(f"store must be a path, got {type(path).__name__}")
            try:
                given = signature.bind(*args, **options)
            except TypeError:
                # Python's own message of such a call names the run.
                return run(*args, **options)
            given.apply_defaults()
            facts = {k: v for k, v in given.arguments.items() if k not in {*free, *UNSEEN}}
            for name, value in facts.items():
                if isinstance(value, torch.Generator):
                    # Before the run draws from it.
                    facts[name] = [value.device.type, value.get_state()]
            with Store.held(path, {"run": run.__name__, **facts}) as store:
                options["store"] = store
                return run(*args, **options)

        return resumed

    return decorate


def opened(store: str | os.PathLike[str] | None) -> Store | None:
    """Return the store of a run that is `resumable`."""
    assert store is None or isinstance(store, Store), "a run with a store must be resumable"
    return store
