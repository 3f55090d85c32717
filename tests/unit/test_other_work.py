"""Whose work the processors did beside a load, and what becomes of a boot that had other work beside it."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.runs.processes import Leader, leader_of
from pytest_kvcache.telemetry import processes
from pytest_kvcache.telemetry.other_work import Account, OtherWork, Worker, watched
from pytest_kvcache.telemetry.processes import Look, Ours, Process
from tests.neighbours import Start

QUIET = "run it again on a quiet machine"
NOBODY = "processes that ended at once or cannot be seen from here"
SHELL, SERVER, MAKE, RUSTC, WRITER = 1, 10, 20, 21, 30
NAMES = {SHELL: "init", SERVER: "vllm", MAKE: "make", RUSTC: "rustc", WRITER: "kworker/0:1"}


def process(pid: int, used_s: float, children_s: float = 0.0, *, parent: int = SHELL) -> Process:
    """Return a process that began with the machine."""
    return Process(pid, 1, NAMES.get(pid, "x"), parent, pid, used_s, children_s, kernel=pid == WRITER)


def at(second: float, *there: Process, busy_s: float | None, steal_s: float = 0.0, own: int = SERVER) -> Look:
    """Return a look at these processes."""
    known = {each.key: each for each in there}
    return Look(second, busy_s, steal_s, second / 2, known, frozenset(key for key in known if key[0] == own))


def account(*looks: Look, processors: float = 2, available: int = 2) -> OtherWork:
    """Return what was done in these looks."""
    found = Account(processors, available)
    for each in looks:
        found.add(each)
    return found.result()


def of_run(used_s: float, children_s: float = 0.0) -> Process:
    """Return the run's server."""
    return process(SERVER, used_s, children_s)


START = at(0, of_run(5), process(MAKE, 1), busy_s=100)
#: Looks 10 s apart on two processors, and what is found: the run's, the kernel's and others' time (s), the share that
#: others took, who is named, and the share of those that nobody is named for.
CASES: dict[str, tuple[list[Look], tuple[float, float, float], float, list[str], float]] = {
    "nothing else": ([START, at(10, of_run(20), process(MAKE, 1), busy_s=115)], (15, 0, 0), 0.0, [], 0.0),
    "a compiler": (
        [START, at(10, of_run(10), process(MAKE, 1), process(RUSTC, 8), busy_s=113)],
        (5, 0, 8),
        0.4,
        ["21 rustc"],
        0.0,
    ),
    "compilers that ended between looks are their parent's": (
        [START, at(10, of_run(10), process(MAKE, 1, 8), busy_s=113)],
        (5, 0, 8),
        0.4,
        ["20 make"],
        0.0,
    ),
    "what was seen of a compiler that ended is not its parent's too": (
        [
            START,
            at(5, of_run(5), process(MAKE, 1), process(RUSTC, 4, parent=MAKE), busy_s=104),
            at(10, of_run(5), process(MAKE, 1, 5), busy_s=105),
        ],
        (0, 0, 5),
        0.25,
        ["21 rustc", "20 make"],
        0.0,
    ),
    "a child of the run that ended is the run's": ([START, at(10, of_run(6, 9), busy_s=110)], (10, 0, 0), 0.0, [], 0.0),
    "processes of another container": ([START, at(10, of_run(10), busy_s=113)], (5, 0, 8), 0.4, [], 0.4),
    "threads of the kernel are nobody's": (
        [START, at(10, of_run(10), process(WRITER, 6), busy_s=111)],
        (5, 6, 0),
        0.0,
        [],
        0.0,
    ),
    "a process number that another process has got": (
        [START, at(10, of_run(5), Process(MAKE, 9, "cc1plus", SHELL, MAKE, 6.0), busy_s=106)],
        (0, 0, 6),
        0.3,
        ["20 cc1plus"],
        0.0,
    ),
    "processors' time is sampled and may fall short": (
        [START, at(10, of_run(15), process(MAKE, 2), busy_s=109)],
        (9, 0, 0),
        0.0,
        [],
        0.0,
    ),
    "no counters of processors": (
        [at(0, of_run(5), busy_s=None), at(10, of_run(10), process(RUSTC, 4), busy_s=None)],
        (5, 0, 4),
        0.2,
        ["21 rustc"],
        0.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_whose_work_it_was(case: str) -> None:
    """The processors' time is the run's, the kernel's and others', and those who took most are named."""
    looks, times, share, names, unnamed = CASES[case]
    found = account(*looks)
    assert (found.own_s, found.kernel_s, found.other_s) == pytest.approx(times)
    assert found.share == pytest.approx(share)
    assert [str(each) for each in found.top] == names
    assert found.unnamed_share == pytest.approx(unnamed)
    assert found.pressure_s == 5


def test_a_quota_leaves_processors_to_others() -> None:
    """Of 2 processors of 8, others take only what exceeds the six that are theirs."""
    start = at(0, of_run(0), busy_s=0)
    six = account(start, at(10, of_run(20), busy_s=80), processors=2, available=8)
    seven = account(start, at(10, of_run(10), busy_s=80), processors=2, available=8)
    assert (six.share, seven.share) == (0.0, 0.5)


def test_steal_is_a_share_of_the_processors() -> None:
    """2.4 s of 10 s of two processors are 12 %, which is said where less is allowed."""
    found = account(START, at(10, of_run(5), busy_s=100, steal_s=2.4))
    assert found.suspicions(0.10) == [f"the hypervisor took 12 % of the processors (steal); {QUIET}"]
    assert found.suspicions(0.12) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            OtherWork(
                share=0.62, top=(Worker(1234, "rustc", 0.4), Worker(1240, "cc1plus", 0.2), Worker(5, "sh", 0.02))
            ),
            [f"other processes took 62 % of the processors: 1234 rustc, 1240 cc1plus; {QUIET}"],
        ),
        (
            OtherWork(share=0.5, unnamed_share=0.5),
            [f"other processes took 50 % of the processors: {NOBODY}; {QUIET}"],
        ),
        (OtherWork(share=0.1, top=(Worker(1234, "rustc", 0.1),)), []),
        (OtherWork(share=0.9, unseen=("vllm-0",)), []),
    ],
    ids=["named", "not named", "not above the share", "the run itself cannot be seen"],
)
def test_above_a_share_it_is_said(found: OtherWork, said: list[str]) -> None:
    """Those who took most are named; nothing is said up to the share, nor where the run's own cannot be told apart."""
    assert found.suspicions(0.10) == said


STEPS = st.lists(
    st.tuples(
        st.floats(0.1, 100),
        st.lists(st.tuples(st.integers(2, 9), st.floats(0, 9), st.floats(0, 9), st.booleans()), max_size=6),
        st.floats(0, 100) | st.none(),
        st.floats(0, 50),
    ),
    max_size=6,
)


@given(STEPS, st.floats(0.1, 64), st.integers(1, 64))
def test_no_counters_make_it_absurd(steps: list[Any], processors: float, available: int) -> None:
    """Whatever is counted, no time is negative, the parts are the whole, and shares lie between 0 and 1."""
    found = Account(processors, available)
    second = 0.0
    for elapsed_s, there, busy_s, steal_s in steps:
        second += elapsed_s
        known = {p.key: p for p in (process(pid, used, more, parent=pid - 1) for pid, used, more, _ in there)}
        own = frozenset((pid, 1) for pid, _, _, is_own in there if is_own)
        found.add(Look(second, busy_s, steal_s, None, known, own))
    work = found.result()
    assert min(work.own_s, work.kernel_s, work.other_s, work.share, work.steal_share, work.unnamed_share) >= 0
    assert work.own_s + work.kernel_s + work.other_s == pytest.approx(work.busy_s)
    assert max(work.share, work.steal_share) <= 1
    assert sum(each.share for each in work.top) + work.unnamed_share <= work.share + 1e-9


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.floats(0, 3), st.booleans()), min_size=1, max_size=5),
        min_size=1,
        max_size=6,
    )
)
def test_no_time_is_lost_where_parents_wait(seconds: list[list[tuple[bool, float, bool]]]) -> None:
    """However children come and end, each side has the time that it used, as long as its parents wait for them."""
    own, other = 100, 200
    used_s = {own: 0.0, other: 0.0}
    waited_s = {own: 0.0, other: 0.0}
    children: dict[int, tuple[int, float]] = {}
    count = 300

    def now(second: int) -> Look:
        there = [process(pid, 0.0, waited_s[pid]) for pid in (own, other)]
        there += [process(pid, each_s, parent=side) for pid, (side, each_s) in children.items()]
        known = {each.key: each for each in there}
        mine = frozenset(each.key for each in there if own in {each.pid, each.parent_pid})
        return Look(second * 100.0, sum(used_s.values()), 0.0, None, known, mine)

    looks = [now(0)]
    for second, work in enumerate(seconds, start=1):
        for pid in [*children][::2]:  # work on, then end
            side, each_s = children.pop(pid)
            waited_s[side] += each_s + 1
            used_s[side] += 1
        for is_own, each_s, ends in work:
            side = own if is_own else other
            used_s[side] += each_s
            if ends:
                waited_s[side] += each_s
            else:
                count += 1
                children[count] = (side, each_s)
        looks.append(now(second))
    found = account(*looks)
    assert found.own_s == pytest.approx(used_s[own])
    assert found.other_s == pytest.approx(used_s[other])


def test_what_proc_says_is_read() -> None:
    """Names may hold brackets and blanks; times are seconds; interrupts and other processors do not count."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = f"S 5 7 6 0 -1 {0x00200000} 0 0 0 0 {ticks} {2 * ticks} {3 * ticks} {4 * ticks} 20 0 1 0 99 0"
    found = processes.parse_process(f"12 (a) (b c) {fields}")
    assert found == Process(12, 99, "a) (b c", 5, 6, used_s=3.0, children_s=7.0, kernel=True)
    text = f"cpu 9 9 9 9 9 9 9 9\ncpu0 {ticks} {ticks} {ticks} 5 5 5 5 {ticks} 7 7\ncpu1 9 9 9 9 9 9 9 9\nintr 1\n"
    assert processes.parse_processors(text, {0}) == (3.0, 1.0)
    assert processes.parse_processors("cpu 0 0 0 0\ncpu0 0 0 0 0\n", {0}) == (None, 0.0)
    assert processes.parse_pressure("some avg10=1.00 avg60=1.00 avg300=1.00 total=2500000\nfull total=1\n") == 2.5
    assert processes.parse_pressure("") is None


def test_the_run_is_its_sessions_descendants_and_logs(tmp_path: Path) -> None:
    """Ours are leaders' sessions, their descendants, what writes to their logs, and pytest itself alone."""
    me = os.getpid()
    log = str(tmp_path / "vllm-0.log")

    def one(pid: int, parent: int, session: int, start: int = 50) -> Process:
        return Process(pid, start, "x", parent, session, 0.0)

    there = {
        p.key: p
        for p in [
            one(me, 1, 1),
            one(1000001, me, 1000001),  # a leader
            one(1000002, 1000001, 1000001),
            one(1000003, 1000002, 1000003),  # made a session of its own
            one(1000004, 1, 1000004),  # its parent is gone, its output is the log
            one(1000005, me, 1),  # a test's own program
            one(1000006, 1, 1000001, start=2),  # older than the leader whose number its session has
            one(1, 0, 1),
        ]
    }
    ours = Ours(lambda: [Leader(1000001, 50, log)], lambda pid: [log] if pid == 1000004 else [])
    assert {pid for pid, _ in ours.among(there)} == {me, 1000001, 1000002, 1000003, 1000004}
    orphaned = {key: each for key, each in there.items() if key[0] not in {1000001, 1000002}}
    assert 1000003 in {pid for pid, _ in ours.among(orphaned)}


def test_what_a_process_starts_that_is_the_runs_alone() -> None:
    """A cluster's daemon is the run's and its workers are not, unless the run has started the daemon."""

    def among(of_daemon: int) -> set[int]:
        parents = {1: 0, 1000001: 1, 1000002: of_daemon, 1000003: 1000002, 1000004: 1000003}
        there = {p.key: p for p in (Process(pid, 50, "x", parent, 1, 0.0) for pid, parent in parents.items())}
        leaders = [Leader(1000001, 50, "/x.log")]
        there[1000001, 50] = Process(1000001, 50, "x", 1, 1000001, 0.0)
        ours = Ours(lambda: leaders, lambda _: [], alone=frozenset({(1000002, 50)}))
        ours.among(there)
        return {pid for pid, _ in ours.among(there)}

    assert among(1) == {1000001, 1000002}
    assert among(1000001) == {1000001, 1000002, 1000003, 1000004}


@pytest.mark.parametrize(
    ("files", "membership", "found"),
    [
        ({"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, "0::/a/b", 1.5),
        ({"a/cpu.max": "50000 100000"}, "0::/a/b", 0.5),
        ({"cpu/x/cpu.cfs_quota_us": "25000", "cpu/x/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/x", 0.25),
        ({"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/x", math.inf),
        ({"cpu.max": "25000 100000"}, "3:memory:/x", math.inf),
        ({}, "0::/a", math.inf),
    ],
)
def test_a_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], membership: str, found: float) -> None:
    """The narrowest quota from a process's control group upwards counts, of either version, else its affinity."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    affinity = len(os.sched_getaffinity(0))
    assert processes.allotted_processors(tmp_path, tmp_path / "membership") == min(found, affinity)


@pytest.mark.parametrize("is_own", [False, True])
def test_a_process_at_work_is_seen(spinning: Start, tmp_path: Path, is_own: bool) -> None:
    """A process that works counts as other work, and as the run's own where a run has started it."""
    worker = spinning()
    leader = leader_of(worker.pid, tmp_path / "x.log")
    with watched(lambda: [leader] if is_own else []) as watch:
        used_s = _used_s(worker.pid)
        while _used_s(worker.pid) < used_s + 0.3:
            time.sleep(0.02)
    found = watch.found
    assert found.looks >= 2
    assert (found.own_s if is_own else found.other_s) > 0.2
    if is_own:
        assert worker.pid not in {each.pid for each in found.top}


def _used_s(pid: int) -> float:
    return processes.parse_process(Path(f"/proc/{pid}/stat").read_text()).used_s


def test_what_cannot_be_read_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose /proc cannot be read fails no run: it is said, and nothing is suspect."""

    def broken(_: Ours) -> Look:
        raise OSError("no /proc here")

    monkeypatch.setattr("pytest_kvcache.telemetry.other_work.look", broken)
    with watched(lambda: []) as watch:
        pass
    assert watch.found.notes == ("other work cannot be told: no /proc here",)
    assert watch.found.suspicions(0.0) == []


def test_components_without_a_number_here_are_named() -> None:
    """Where a component's processes are in another namespace of numbers, its name is there in place of a judgement."""
    with watched(lambda: [Leader(12, 0, "/logs/vllm-0.log")]) as watch:
        time.sleep(0.01)
    assert watch.found.unseen == ("vllm-0",)
