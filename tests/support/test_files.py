"""Files are written whole, whatever their names; locks keep second writers off."""

from __future__ import annotations

import os
import threading

import pytest

from dln_geometry.support import Lock, written_whole


@pytest.mark.parametrize("name", ["a", "[x]*?.npz", "ä" * 120, "x" * 200, " a\tb", ".hidden"])
def test_any_name(name, tmp_path):
    for content in (b"old", b"new"):
        with written_whole(tmp_path / name) as handle:
            handle.write(content)
    assert (tmp_path / name).read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    os.symlink(tmp_path / "there" / "file", tmp_path / "link")
    with written_whole(tmp_path / "link") as handle:
        handle.write(b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"content"


def test_writers_of_one_process_do_not_meet(tmp_path):
    path, start = tmp_path / "file", threading.Barrier(4)

    def write(k):
        start.wait()
        for _ in range(5):
            with written_whole(path) as handle:
                handle.write(str(k).encode() * 1000)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_bytes())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_locks(tmp_path):
    path = tmp_path / "new" / "state"
    with Lock(path) as lock:
        lock.renew()
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* remove .*state.lock"):
            Lock(path).__enter__()
        lock.path.unlink()
        lock.renew()
        assert lock.path.exists()
    assert not lock.path.exists()
    # The lock of an earlier process with the same number, and one that was cut short long ago.
    for content, age in ((lock.mark, 0), ("", 1000)):
        lock.path.write_text(content)
        os.utime(lock.path, (lock.path.stat().st_mtime - age,) * 2)
        with Lock(path):
            pass
    lock.path.write_text("")
    with pytest.raises(ValueError, match="on an unknown host"):
        Lock(path).__enter__()


def test_a_lock_is_signed_without_links_too(tmp_path, monkeypatch):
    def none(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", none)
    with Lock(tmp_path / "run") as lock:
        assert (tmp_path / "run.lock").read_text() == lock.mark
        with pytest.raises(ValueError, match="one run at a time"):
            Lock(tmp_path / "run").__enter__()
        assert [p.name for p in tmp_path.iterdir()] == ["run.lock"]
    assert not list(tmp_path.iterdir())
