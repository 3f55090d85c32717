"""The load process: `python -m pytest_kvcache.workload.worker PLAN.json`.

Load is generated outside pytest's process, so that nothing in there delays a stamp. SIGTERM ends the run early and
keeps what was measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

import uvloop

from pytest_kvcache.workload import multi_round, records
from pytest_kvcache.workload.plan import LoadPlan


async def _run(plan: LoadPlan) -> multi_round.Outcome:
    outcome = multi_round.Outcome()
    task = asyncio.ensure_future(multi_round.run(plan, outcome))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    _save(plan, outcome, interrupted=task.cancelled())
    return outcome


def _save(plan: LoadPlan, outcome: multi_round.Outcome, *, interrupted: bool) -> None:
    records.save(records.to_frame(outcome.rows), plan.rows)
    partial = plan.summary.with_suffix(".partial")
    partial.write_text(
        json.dumps(
            {
                "started_at": outcome.started_at,
                "elapsed_s": outcome.elapsed_s,
                "warmup_errors": outcome.warmup_errors,
                "interrupted": interrupted,
            }
        ),
        encoding="utf-8",
    )
    partial.replace(plan.summary)


def main() -> int:
    """Read the plan, run it, write rows and summary."""
    plan = LoadPlan.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    uvloop.run(_run(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
