"""Judge the GPUs of a run: what makes the run invalid, and what makes its times doubtful (pure).

A GPU that failed may have answered from wrong memory, so that no verdict may rest on the run; a GPU that was hot or
short of power answered rightly, only later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_kvcache.telemetry.gpu import reasons
from pytest_kvcache.telemetry.gpu.readings import GpuProcess
from pytest_kvcache.telemetry.gpu.summary import GpuSummary, figures
from pytest_kvcache.telemetry.other_work import TODO

#: Share of busy samples at the power cap from which a run's times are those of the power limit. At full load many
#: boards touch their cap now and then, as they are meant to.
CAPPED_SHARE = 0.5
#: XIDs that say that the GPU itself or its memory failed (NVIDIA, Xid catalog). The other XIDs mostly come from a
#: program: one from an engine would have ended it, so the program is a stranger's on the same GPU.
_FAILED = {
    48: "uncorrectable memory error",
    62: "internal micro-controller halt",
    64: "memory row could not be remapped",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GSP did not answer",
    120: "GSP failed",
    140: "unrecovered memory error",
}
_OTHERS = {
    13: "exception of the graphics engine",
    31: "page fault",
    43: "GPU stopped processing",
    45: "channels removed after an error",
    63: "memory row to be remapped",
    92: "many corrected memory errors",
}


@dataclass(frozen=True)
class GpuLoad:
    """The GPUs of a run during one load.

    Args:
        gpus: Summary of each GPU; empty where there are none or nothing could be read.
        notes: What could not be read, and why.
        own_pids: Process and session numbers of the run, by the GPUs' node ("" for the machine of pytest). On a node
            that is missing, the processes of others cannot be told from them.
    """

    gpus: tuple[GpuSummary, ...] = ()
    notes: tuple[str, ...] = field(default=())
    own_pids: Mapping[str, frozenset[int]] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """Why no verdict may rest on the run: lost GPUs, uncorrected memory errors, XIDs of a failed GPU."""
        return [fault for each in self.gpus for fault in _faults(each)]

    @property
    def suspicions(self) -> list[str]:
        """What makes the run's times doubtful: throttling for heat or power, a share at the power cap, other XIDs."""
        return [line for each in self.gpus for line in (*_throttling(each), *_xids(each, _OTHERS, failed=False))]

    @property
    def disturbances(self) -> list[str]:
        """Which other processes had a context on a GPU of the run: how much of it they took is not known."""
        return [
            f"other processes are on {each.gpu}: {', '.join(map(str, others))}; {TODO}"
            for each in self.gpus
            if (others := self._others(each))
        ]

    @property
    def untold(self) -> list[str]:
        """Which GPUs list processes, and none of the run: their numbers are those of another container's namespace."""
        return [
            f"{each.gpu}: processes on it cannot be told from the run's: the driver lists none of the run's"
            for each in self.gpus
            if each.gpu.node in self.own_pids and each.processes and not self._own(each)
        ]

    def _others(self, each: GpuSummary) -> list[GpuProcess]:
        own = self._own(each)
        return [process for process in each.processes if process not in own] if own else []

    def _own(self, each: GpuSummary) -> list[GpuProcess]:
        own = self.own_pids.get(each.gpu.node, frozenset())
        return [process for process in each.processes if process.pid in own or process.session_id in own]

    @property
    def figures(self) -> dict[str, float]:
        """Clocks, power, temperature and throttling, for explanations."""
        return figures(self.gpus)

    def facts(self) -> dict[str, Any]:
        """Return the load for `run.json`; empty without GPUs and notes."""
        if not self.gpus and not self.notes:
            return {}
        others = {str(each.gpu): [asdict(process) for process in self._others(each)] for each in self.gpus}
        notes = [*self.notes, *self.untold]
        return {"gpus": {"each": [each.facts() for each in self.gpus], "others": others, "notes": notes}}


def _faults(each: GpuSummary) -> list[str]:
    found = [f"{each.gpu}: {each.lost} (see the kernel's log: `dmesg | grep -i xid`)"] if each.lost else []
    if each.ecc_uncorrected:
        found.append(
            f"{each.gpu}: {each.ecc_uncorrected} uncorrected memory errors (ECC) since the pair was ready: answers may "
            "come from damaged memory"
        )
    return [*found, *_xids(each, _FAILED, failed=True)]


def _xids(each: GpuSummary, meanings: dict[int, str], *, failed: bool) -> list[str]:
    numbers = [number for number in dict.fromkeys(each.xids) if (number in _FAILED) == failed]
    return [
        f"{each.gpu}: XID {number} ({meanings.get(number, 'see the Xid catalog of NVIDIA')})"
        + (f", {each.xids.count(number)} times" if each.xids.count(number) > 1 else "")
        + ("" if failed else ": an error of a program on this GPU or of the GPU, see the kernel's log")
        for number in numbers
    ]


def _throttling(each: GpuSummary) -> list[str]:
    found = []
    if each.throttled:
        bits = (*reasons.THROTTLES, reasons.HW_SLOWDOWN)
        named = [(reasons.NAMES[bit], each.reasons.get(reasons.NAMES[bit], 0)) for bit in bits]
        which = ", ".join(f"{name} in {count}" for name, count in named if count)
        found.append(
            f"{each.gpu} throttled in {each.throttled} of {each.busy} busy samples ({each.share(each.throttled):.0%}): "
            f"{which}; {_clocks(each)}"
        )
    if each.share(each.capped) >= CAPPED_SHARE and each.capped:
        named = [(reasons.NAMES[bit], each.reasons.get(reasons.NAMES[bit], 0)) for bit in reasons.CAPS]
        which = " and ".join(name for name, count in named if count)
        limit = f" (limit {each.power_limit_w:.0f} W)" if each.power_limit_w else ""
        found.append(
            f"{each.gpu} was at its {which}{limit} in {each.capped} of {each.busy} busy samples "
            f"({each.share(each.capped):.0%}): its times are those of the limit; {_clocks(each)}"
        )
    return found


def _clocks(each: GpuSummary) -> str:
    clock = "SM clock unknown" if each.sm_clock_mhz is None else f"SM clock {each.sm_clock_mhz:.0f} MHz (median)"
    return clock + ("" if each.temperature_c is None else f", {each.temperature_c} °C at most")
