"""Which other mounts send by the connections of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvcache.storage import mountstats
from pytest_kvcache.storage.mounts import mount_of


def test_mounts_of_one_server_are_neighbours() -> None:
    """Mounts that show the same connections are told to each other; other servers' and second places are not."""
    head = "device {}:/{} mounted on /{} with fstype nfs4 statvers=1.1\n\topts:\trw,vers=4.2,proto=tcp\n"
    body = "\tbytes:\t{} 0 0 0 0 0 0 0\n\txprt:\ttcp 0 0 2 0 0 {} 7 0 997 0\n"
    mounts_ = [("s", "kv", "kv", 1, 7), ("s", "kv", "again", 1, 7), ("s", "home", "home", 2, 9), ("t", "x", "x", 3, 7)]
    text = "".join(head.format(*m[:3]) + body.format(*m[3:]) for m in mounts_)
    found = mountstats.at(text, Path("/kv"))
    assert found is not None
    assert [m.point for m in found.neighbours] == [Path("/home")]


#: Mounts beside `s:/kv` on /kv (device 0:50, address 10.0.0.1): source, point, bytes, requests of the connection,
#: device and address; then the neighbours.
BESIDE: dict[str, tuple[list[tuple[str, str, int, int, str, str]], list[str]]] = {
    "another export": ([("s:/home", "/home", 2, 9, "0:51", "10.0.0.1")], ["/home"]),
    "another export that counted as much": ([("s:/home", "/home", 1, 7, "0:51", "10.0.0.1")], ["/home"]),
    "a second place at work": ([("s:/kv", "/again", 2, 9, "0:50", "10.0.0.1")], []),
    "a part of it elsewhere": ([("s:/kv/sub", "/var/lib/kubelet/x", 1, 7, "0:50", "10.0.0.1")], []),
    "another export in two places": (
        [("s:/home", "/home", 2, 9, "0:51", "10.0.0.1"), ("s:/home", "/srv/home", 2, 9, "0:51", "10.0.0.1")],
        ["/home"],
    ),
    "its server by another name": ([("s.example:/home", "/home", 2, 9, "0:51", "10.0.0.1")], ["/home"]),
    "another server by the same name": ([("s:/home", "/home", 2, 9, "0:51", "10.0.0.2")], []),
    "a server whose address is not told": ([("s:/home", "/home", 2, 9, "0:51", "")], ["/home"]),
}


@pytest.mark.parametrize("name", BESIDE)
def test_neighbours_are_other_file_systems_of_the_server(tmp_path: Path, name: str) -> None:
    """Device numbers tell one file system in several places from several, and addresses one server by several names."""
    beside, expected = BESIDE[name]
    mounts_ = [("s:/kv", "/kv", 1, 7, "0:50", "10.0.0.1"), *beside]
    stats, table = "", "1 0 254:0 / / rw - ext4 /dev/vda rw\n"
    for number, (source, point, counted, sends, device, address) in enumerate(mounts_, 2):
        stats += f"device {source} mounted on {point} with fstype nfs4 statvers=1.1\n\topts:\trw,vers=4.2,proto=tcp\n"
        stats += f"\tbytes:\t{counted} 0 0 0 0 0 0 0\n\txprt:\ttcp 0 1 1 0 0 {sends} 7 0 997 0\n"
        table += f"{number} 1 {device} / {point} rw - nfs4 {source} rw,vers=4.2,proto=tcp,addr={address}\n"
    (tmp_path / "mountinfo").write_text(table)
    (tmp_path / "mountstats").write_text(stats)
    found = mount_of(Path("/kv"), proc=tmp_path).nfs
    assert found is not None
    assert [str(m.point) for m in found.neighbours] == expected
