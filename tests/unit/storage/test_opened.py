"""On which mount a folder is opened, in mount namespaces of their own, and what happens where nobody answers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.storage import opened as opening
from pytest_kvcache.storage.mounts import mount_of
from pytest_kvcache.storage.opened import is_folder, opened
from pytest_kvcache.tiers.fs import FsTier
from tests.unit.test_tiers import TINY, context

#: What the scripts in a namespace begin with: mount(2), and saying what was found.
HEAD = """
import ctypes, json, os, sys
from pathlib import Path
from pytest_kvcache.storage import opened
from pytest_kvcache.storage.mounts import mount_of
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, point, kind, options=""):
    os.makedirs(point, exist_ok=True)
    if libc.mount(os.fsencode(source), os.fsencode(point), kind.encode(), 0, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), kind)
def tell(**found):
    sys.stdout.write(json.dumps(found))
root = Path(sys.argv[1])
"""


def in_namespace(script: str, root: Path) -> Any:
    """Return what a script tells that runs in a mount namespace of its own; skip where there can be none."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1) on this machine")
    flags = ["--mount", "--propagation", "private"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    if refused := subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True, check=False).stderr:
        pytest.skip(f"this user may have no mount namespace: {refused.strip()}")
    argv = ["unshare", *flags, sys.executable, "-c", HEAD + script, str(root)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    if "OSError: [Errno" in done.stderr:
        pytest.skip(f"this kernel or user cannot mount that here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_mount_over_a_parent_hides_what_lies_below(tmp_path: Path) -> None:
    """The deepest mount of the table is not the one that holds the folder: files would lie on the later one."""
    script = """
mount("export", root / "mnt/kv", "tmpfs", "mode=700")
first = mount_of(root / "mnt/kv/sub").source
mount("later", root / "mnt", "tmpfs")
os.makedirs(root / "mnt/kv/sub")
tell(first=first, then=mount_of(root / "mnt/kv/sub").source, point=str(mount_of(root / "mnt/kv/sub").point))
"""
    found = in_namespace(script, tmp_path)
    assert found == {"first": "export", "then": "later", "point": str(tmp_path / "mnt")}


def test_of_mounts_upon_each_other_the_last_one_holds_a_folder(tmp_path: Path) -> None:
    """What is mounted later at the same place hides what was there; an unmount brings it back."""
    script = """
mount("one", root / "kv", "tmpfs")
mount("two", root / "kv", "tmpfs")
upper = mount_of(root / "kv").source
libc.umount2(os.fsencode(root / "kv"), 0)
tell(upper=upper, lower=mount_of(root / "kv").source)
"""
    assert in_namespace(script, tmp_path) == {"upper": "two", "lower": "one"}


def test_names_of_any_bytes_are_found(tmp_path: Path) -> None:
    """Mount points and sources hold whatever bytes a file name may; the kernel's own table gives them back."""
    script = r"""
names = [b"a b", b"t\tab", b"new\nline", b"back\\slash", b"\xff\xfe", b"c\rr", b"#040"]
names.append("nb\u00a0sp \u2028 \u0085".encode())
wrong = []
for name in names:
    point = os.path.join(os.fsencode(root), name)
    mount(b"src-" + name, point, "tmpfs")
    found = mount_of(Path(os.fsdecode(point)) / "below")
    if (os.fsencode(found.point), os.fsencode(found.source), found.fstype) != (point, b"src-" + name, "tmpfs"):
        wrong.append(repr(name))
tell(wrong=wrong, number=len(names))
"""
    assert in_namespace(script, tmp_path) == {"wrong": [], "number": 8}


def test_opening_triggers_an_automount(tmp_path: Path) -> None:
    """What the kernel mounts on access is mounted when the folder is asked for, by looking at it it is not."""
    script = """
mount("debug", root / "debug", "debugfs")
folder = root / "debug/tracing"
if not folder.is_dir():
    raise OSError(0, "no tracefs")
before = [line.split(" ")[4] for line in open("/proc/self/mountinfo")]
tell(before=str(folder) in before, fstype=mount_of(folder).fstype, point=str(mount_of(folder).point))
"""
    found = in_namespace(script, tmp_path)
    assert found == {"before": False, "fstype": "tracefs", "point": str(tmp_path / "debug/tracing")}


def test_an_automounter_that_never_answers(tmp_path: Path) -> None:
    """A folder whose mount never comes is an error after the limit, and at once when asked for again."""
    script = """
import time
ours, theirs = os.pipe()
child = os.fork()
if not child:
    os.setpgid(0, 0)
    group = os.getpgid(0)
    mount("auto", root / "kv", "autofs", f"fd={theirs},pgrp={group},minproto=5,maxproto=5,direct")
    for number in (0, 1, 2):
        os.close(number)
    time.sleep(60)
    os._exit(0)
for _ in range(200):
    if " - autofs auto " in open("/proc/self/mountinfo").read():
        break
    time.sleep(0.05)
else:
    raise OSError(0, "no autofs")
told = []
for limit_s in (0.5, 600.0):
    try:
        opened.is_folder(root / "kv", limit_s=limit_s)
    except TimeoutError as error:
        told.append(error.strerror)
tell(told=told)
sys.stdout.flush()
os.kill(child, 9)
os._exit(0)
"""
    found = in_namespace(script, tmp_path)
    assert found == {"told": ["no answer within 0 s", "no answer within 600 s"]}


def test_a_call_that_comes_back_too_late_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened after the limit is closed again; then the folder can be asked for anew."""
    gate, real = threading.Event(), opening.system_open
    late: list[int] = []

    def slow(path: Path) -> int:
        if not gate.wait(60):
            raise AssertionError("never let go")
        late.append(real(path))
        return late[-1]

    monkeypatch.setattr(opening, "system_open", slow)
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        is_folder(tmp_path, limit_s=0.0)
    with pytest.raises(TimeoutError):
        is_folder(tmp_path, limit_s=600.0)
    pending = opening._hanging[tmp_path]
    gate.set()
    assert pending.ended.wait(60)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(late[0])
    assert is_folder(tmp_path)
    assert tmp_path not in opening._hanging


def test_what_is_missing_and_what_is_no_folder(tmp_path: Path) -> None:
    """The nearest parent is opened where a path is missing or a file; only a folder is a folder."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "not" / "there", tmp_path / "file"):
        with opened(path) as descriptor:
            assert descriptor is not None
            assert os.path.samestat(os.fstat(descriptor), tmp_path.stat())
    assert [is_folder(path) for path in (tmp_path, tmp_path / "not", tmp_path / "file")] == [True, False, False]


@pytest.mark.parametrize("number", ["ESTALE", "ENOTCONN", "EIO"])
def test_a_folder_that_cannot_be_opened_is_an_error(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount of its parent is never given for it: the tier names the error, and nothing stands in for it."""
    real, code = opening.system_open, getattr(errno, number)

    def dead(path: Path) -> int:
        if path == tmp_path:
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(opening, "system_open", dead)
    with pytest.raises(OSError, match=os.strerror(code)):
        mount_of(tmp_path / "kv")
    tier = FsTier(name="pnfs", kind="fs", path=tmp_path, require="pnfs-rdma")
    reason = tier.unavailable(context(tmp_path / "x", TINY))
    assert reason == f"{tmp_path} cannot be opened: {os.strerror(code)}; is the server of the mount alive?"
    assert tier.label(context(tmp_path / "x", TINY)) == f"pnfs ({os.strerror(code)})"


def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to enter a parent the mount table decides, as far as it goes."""

    def refused(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    expected = mount_of(tmp_path)
    monkeypatch.setattr(opening, "system_open", refused)
    with opened(tmp_path) as descriptor:
        assert descriptor is None
    assert mount_of(tmp_path).point == expected.point
