"""Why a GPU's clocks are below the highest: the bits of NVML's mask, by name.

The mask is that of `nvmlDeviceGetCurrentClocksEventReasons`, which drivers before R535 have under the name of
`nvmlDeviceGetCurrentClocksThrottleReasons` with the same bits. Values and meanings: NVML API reference,
NvmlClocksEventReasons (`nvmlClocksThrottleReason*` is the older name of each constant); the two of boards and
reliability, nvidia-ml-py 13.
"""

from __future__ import annotations

from collections.abc import Collection

#: Nothing runs: low clocks are no throttle.
IDLE = 0x1
#: Software holds the board at its power limit.
POWER_CAP = 0x4
#: Hardware lowers the clocks to a half or less: heat, power brake, or a fast rise of power. NVML says that it "may be
#: also reported during PState or clock change", so that this bit alone in a single sample shows nothing.
HW_SLOWDOWN = 0x8
#: Software lowers the clocks since GPU or memory is above its highest operating temperature.
SW_THERMAL = 0x20
#: Hardware does, for the same reason.
HW_THERMAL = 0x40
#: The power supply of the system asks for it.
HW_POWER_BRAKE = 0x80
#: The board's own limit, as the power cap is.
BOARD_LIMIT = 0x200

#: Each bit for people, after the name of its constant.
NAMES = {
    IDLE: "idle",
    0x2: "application clocks setting",
    POWER_CAP: "SW power cap",
    HW_SLOWDOWN: "HW slowdown",
    0x10: "sync boost",
    SW_THERMAL: "SW thermal slowdown",
    HW_THERMAL: "HW thermal slowdown",
    HW_POWER_BRAKE: "HW power brake slowdown",
    0x100: "display clock setting",
    BOARD_LIMIT: "board limit",
    0x400: "reliability limit",
    1 << 63: "unknown",
}
#: Reasons of heat or power that no GPU in a healthy machine shows, however much it has to do.
THROTTLES = (HW_THERMAL, SW_THERMAL, HW_POWER_BRAKE)
#: Limits that a GPU at full load is meant to reach.
CAPS = (POWER_CAP, BOARD_LIMIT)
_BITS = 64


def names(mask: int) -> list[str]:
    """Return the reasons in a mask; a bit that is not known yet by its value (`bit 0x800`)."""
    bits = (1 << n for n in range(_BITS))
    return [NAMES.get(bit, f"bit {bit:#x}") for bit in bits if mask & bit]


def has_any(mask: int | None, bits: Collection[int]) -> bool:
    """Return whether one of `bits` is in a mask; nothing is in one that the GPU does not give."""
    return mask is not None and any(mask & bit for bit in bits)
