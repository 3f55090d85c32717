"""The load process: `python -m pytest_kvcache.workload.worker PLAN.json`.

Load is generated outside pytest's process, so that nothing in there delays a stamp. SIGTERM ends the run early and
keeps what was measured.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from pytest_kvcache.workload import multi_round, records
from pytest_kvcache.workload.plan import LoadPlan


def main() -> int:
    """Read the plan, run it, write rows and summary."""
    plan = LoadPlan.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    outcome = multi_round.Outcome()
    wire = multi_round.connect(plan.base_url)
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        wire.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    multi_round.run(plan, outcome, wire)
    wire.close()
    _save(plan, outcome, interrupted=bool(stopped))
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
