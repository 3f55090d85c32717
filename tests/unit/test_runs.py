"""Ports, journals, engines and counters: the small parts of a run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvcache.load import worker
from pytest_kvcache.runs import processes, signals
from pytest_kvcache.runs.ports import PortLeases, _shuffled
from pytest_kvcache.runs.session import RunSession
from pytest_kvcache.telemetry.counters import growth
from pytest_kvcache.telemetry.prometheus import parse


def test_every_port_is_tried_once() -> None:
    """A search for a free port comes to each port of the range, wherever it begins."""
    assert sorted(_shuffled()) == list(range(18000, 32000))


def test_two_runs_never_get_one_port(tmp_path: Path) -> None:
    """A leased port is not handed out again until it is released, not even by another run."""
    one, two = PortLeases(tmp_path), PortLeases(tmp_path)
    ports = [leases.take() for _ in range(20) for leases in (one, two)]
    assert len(set(ports)) == 40
    one.release()
    two.release()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9"])
def test_a_port_in_use_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A port on which somebody listens is passed over, on loopback or on another address that is asked for."""
    with socket.create_server((address, 0)) as listener:
        busy = listener.getsockname()[1]
        monkeypatch.setattr("pytest_kvcache.runs.ports._RANGE", range(busy, busy + 40))
        leases = PortLeases(tmp_path)
        assert busy not in [leases.take("127.0.0.9") for _ in range(5)]
        leases.release()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_load_leaves_ignored_signals_alone(name: str) -> None:
    """`pytest-kvcache load` in the background of a script is not ended by what its shell had it ignore."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with worker._Stop() as stop:
            signal.raise_signal(number)
        assert not stop.asked
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_an_ignored_signal_stays_ignored(name: str) -> None:
    """Nohup and shells that start in the background ignore signals, so that a program outlives its terminal."""
    code = (
        "import os, signal, sys; from pytest_kvcache.runs import signals\n"
        f"number = signal.{name}; signal.signal(number, signal.SIG_IGN)\n"
        "restore = signals.end_like_ctrl_c(lambda name: sys.exit(3))\n"
        "os.kill(os.getpid(), number)\n"
        "with signals.deferred(): os.kill(os.getpid(), number)\n"
        "restore(); os.kill(os.getpid(), number)\n"
        "sys.exit(0 if signal.getsignal(number) == signal.SIG_IGN else 4)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize("held", ["contextlib.nullcontext", "signals.deferred"])
def test_a_signal_in_a_finalizer_is_not_lost(name: str, held: str) -> None:
    """What a signal raises where the interpreter runs a finalizer would vanish there: the signal comes again."""
    code = (
        "import contextlib, os, signal, sys, time, weakref; from pytest_kvcache.runs import signals\n"
        f"number = signal.{name}; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signals.end_like_ctrl_c(lambda name: sys.exit(3))\n"
        "class Pool: pass\n"
        "def interrupted():\n"
        f"    with {held}(): os.kill(os.getpid(), number)\n"
        "pools = [Pool(), Pool()]\n"
        "for pool in pools: weakref.finalize(pool, interrupted)\n"
        "del pool\n"
        "try:\n"
        "    pools.pop(); pools.clear(); time.sleep(60)\n"
        "except (KeyboardInterrupt, SystemExit) as error:\n"
        "    os._exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=50, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_recycled_process_number_is_not_ended(tmp_path: Path) -> None:
    """A stranger that has got a dead leader's number is not one of the run's processes."""
    stranger = subprocess.Popen(["sleep", "30"], start_new_session=True)
    leader = processes.Leader(pid=stranger.pid, start_ticks=1, log=str(tmp_path / "x.log"))
    assert processes.members([leader]) == []
    assert processes.end([leader], grace_s=0.1) == []
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_that_will_not_end_is_forced(tmp_path: Path) -> None:
    """After the grace, what ignores SIGTERM is killed, its children too."""
    log = tmp_path / "x.log"
    code = (
        "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    )
    with log.open("wb") as out:
        stubborn = subprocess.Popen([sys.executable, "-c", code], stdout=out, start_new_session=True)
    while "up" not in log.read_text():
        pass
    leader = processes.leader_of(stubborn.pid, log)
    assert len(processes.members([leader])) == 2
    assert len(processes.end([leader], grace_s=0.3)) == 2
    assert stubborn.wait(60) == -signal.SIGKILL
    assert processes.members([leader]) == []


def test_signals_wait_for_a_clean_up() -> None:
    """An interruption during a clean-up comes after it."""
    steps = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background has it ignored

    def clean_up() -> None:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("cleaned")
        steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    signal.signal(signal.SIGINT, before)
    assert steps == ["cleaned"]


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    """Each run has a folder of its own, and an empty one does not stay."""
    sessions = [RunSession(tmp_path / "home", tmp_path / "runs", lambda _: None) for _ in range(3)]
    assert len({s.folder for s in sessions}) == 3
    (sessions[0].folder / "kept").touch()
    for s in sessions:
        s.close()
        s.close()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [sessions[0].id]
    assert not any(s.scratch.exists() for s in sessions)


def test_counters_of_one_server() -> None:
    """Counters are read by name and the labels that matter; buckets and creation times are left out."""
    before = parse(
        "# TYPE vllm:prompt_tokens_by_source counter\n"
        'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 5.0\n'
        'vllm:prompt_tokens_by_source_created{engine="0",model_name="m",source="local_compute"} 1.0\n'
        'python_gc_objects_total{generation="0"} 3.0\n'
    )
    after = parse(
        "# TYPE vllm:prompt_tokens_by_source counter\n"
        'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 7.0\n'
        'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 2.0\n'
    )
    assert list(before) == ['vllm:prompt_tokens_by_source_total{source="local_compute"}']
    assert growth({"vllm-0": before}, {"vllm-0": after, "vllm-1": before}) == {
        "vllm-0": {
            'vllm:prompt_tokens_by_source_total{source="local_compute"}': 2.0,
            'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}': 2.0,
        },
        "vllm-1": before,
    }
