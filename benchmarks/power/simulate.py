"""Tables of errors, power and cost of the procedure: `python -m benchmarks.power.simulate [--sessions 20000]`.

Seeded, so that the same command prints the same tables. Twenty seconds on one core of 2026.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.power import drift, gains
from benchmarks.power.sessions import (
    IMPROVED,
    INCONCLUSIVE,
    PASSED,
    REGRESSED,
    Ended,
    Scenario,
    alarms_of_kept_baselines,
    play,
    play_pairs,
    usual_margin,
)
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.interval import Outcome

SEED = 20261124
_TIERS = {12: 2, 24: 4}


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20_000, metavar="N", help="sessions for each figure")
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="only this one; repeatable")
    args = parser.parse_args()
    for name, make in TABLES.items():
        if args.table is None or name in args.table:
            print(f"\n{name}, {args.sessions} sessions a figure\n")
            print(_markdown(pd.DataFrame(make(args.sessions))), flush=True)


def errors_and_cost(sessions: int) -> Iterator[dict[str, str]]:
    """Yield a line for each spread and family, nothing changed: what a session says, and what it costs."""
    for sd in (0.02, 0.03, 0.05):
        for gates, tiers in _TIERS.items():
            scenario = Scenario(sds=(sd,) * 3, tiers=tiers)
            yield {
                "boot sd": f"{sd:.0%}",
                "gates": str(gates),
                "margin": _percent(usual_margin(scenario, SEED)),
            } | _quiet(scenario, sessions)


def power(sessions: int) -> Iterator[dict[str, str]]:
    """Yield a line for each spread and family: what becomes of one cell whose first metric is worse."""
    for sd in (0.02, 0.03, 0.05):
        for gates in _TIERS:
            base = Scenario(sds=(sd,) * 3, tiers=1, family=gates)
            yield {"boot sd": f"{sd:.0%}", "gates": str(gates)} | _loud(base, sessions)


def policies(sessions: int) -> Iterator[dict[str, str]]:
    """Yield a line for each number of baseline boots, of looks and each error budget, at 3 % and 24 gates."""
    kinds = {
        "default": Scenario(tiers=4),
        "K = 8": Scenario(tiers=4, baseline_boots=8),
        "K = 12": Scenario(tiers=4, baseline_boots=12),
        "1 context a tier": Scenario(tiers=8, contexts=1),
        "4 contexts a tier": Scenario(tiers=2, contexts=4),
        "at most 2 boots": Scenario(tiers=4, policy=Policy(looks=2)),
        "1 boot": Scenario(tiers=4, policy=Policy(looks=1)),
        "regression error 1 %": Scenario(tiers=4, policy=Policy(regression_error=0.01)),
        "regression error 2 %": Scenario(tiers=4, policy=Policy(regression_error=0.02)),
    }
    for name, scenario in kinds.items():
        quiet = _quiet(scenario, sessions)
        loud = _loud(replace(scenario, tiers=1, family=scenario.gates), sessions)
        yield {"design": name, "margin": _percent(usual_margin(scenario, SEED))} | {
            key: (quiet | loud)[key] for key in (*_KEPT_QUIET, *_KEPT_LOUD)
        }


def broken_assumptions(sessions: int) -> Iterator[dict[str, str]]:
    """Yield a line for each way in which boots may not be what the interval takes them for, at 3 % and 24 gates."""
    quiet_others = (0.03, 0.004, 0.01)
    kinds = {
        "none": Scenario(tiers=4),
        "TTFT 3 %, tokens/s 0.4 %, decode 1 %": Scenario(tiers=4, sds=quiet_others),
        "one context spreads 3 times as much": Scenario(tiers=4, sds=(0.01,) * 3, context_factors=(1, 3)),
        "one of four contexts spreads 3 times as much": Scenario(
            tiers=2, contexts=4, sds=(0.01,) * 3, context_factors=(1, 1, 1, 3)
        ),
        "boots t-distributed, 4 df": Scenario(tiers=4, tails=4),
        "days differ by sd 1 %, baseline of 1 day": Scenario(tiers=4, day_sd=0.01),
        "days differ by sd 1.5 %, baseline of 1 day": Scenario(tiers=4, day_sd=0.015),
        "days differ by sd 1.5 %, baseline of 3 days": Scenario(tiers=4, day_sd=0.015, days=3),
        "days differ by sd 1.5 %, baseline of 1 day, and the policy says so": Scenario(
            tiers=4, day_sd=0.015, policy=Policy(day_sd=0.015)
        ),
        "days differ by sd 1.5 %, baseline of 3 days, and the policy says so": Scenario(
            tiers=4, day_sd=0.015, days=3, policy=Policy(day_sd=0.015)
        ),
        "days differ by sd 3 %, baseline of 1 day": Scenario(tiers=4, day_sd=0.03),
        "days differ by sd 3 %, baseline of 3 days": Scenario(tiers=4, day_sd=0.03, days=3),
        "days differ by sd 3 %, baseline of 6 days": Scenario(tiers=4, day_sd=0.03, days=6),
        "days differ by sd 3 %, baseline of 6 days, and the policy says so": Scenario(
            tiers=4, day_sd=0.03, days=6, policy=Policy(day_sd=0.03)
        ),
        "the same, days move both contexts of a tier alike": Scenario(
            tiers=4, day_sd=0.03, days=6, days_alike=True, policy=Policy(day_sd=0.03)
        ),
    }
    for name, scenario in kinds.items():
        yield {"what does not hold": name, "margin": _percent(usual_margin(scenario, SEED))} | _quiet(
            scenario, sessions
        )


def old_rule(sessions: int) -> Iterator[dict[str, str]]:
    """Yield what one run against one run and a fixed share does, at 3 %."""
    rng = np.random.default_rng(SEED)
    for share in (0.025, 0.05, 0.10):
        line = {"rule": f"one run against one run, worse by {share:.1%}"}
        for gates in _TIERS:
            difference = rng.standard_normal((sessions, gates)) * 0.03 * np.sqrt(2)
            line[f"false alarm, {gates} gates"] = f"{(difference > np.log1p(share)).any(-1).mean():.1%}"
        hit = rng.standard_normal(sessions) * 0.03 * np.sqrt(2) + np.log1p(0.10)
        yield line | {"regressed at +10 %": f"{(hit > np.log1p(share)).mean():.1%}"}


def kept(sessions: int) -> Iterator[dict[str, str]]:
    """Yield how baselines differ that are kept for many nights, nothing changed, at 3 %: some are unlucky ones."""
    nights = 500
    for gates, tiers in _TIERS.items():
        rates = alarms_of_kept_baselines(Scenario(tiers=tiers), max(20, sessions // 50), nights, SEED)
        yield {
            "gates": str(gates),
            "baselines": str(len(rates)),
            "nights each": str(nights),
            "false alarm, mean": f"{rates.mean():.2%}",
            "median baseline": f"{np.median(rates):.2%}",
            "95th percentile": f"{np.quantile(rates, 0.95):.1%}",
            "above 5 %": f"{(rates > 0.05).mean():.1%}",
        }


def gain_gates(sessions: int) -> Iterator[dict[str, str]]:
    """Yield a line for each spread of a pair of tiers, with and without baselines of both."""
    return gains.gains(sessions, seed=SEED)


def against(sessions: int) -> Iterator[dict[str, str]]:
    """Yield a line for each spread of a pair: A/B of two engines, one tier, two contexts, six gates, margin 10 %."""
    for sd in (0.01, 0.02, 0.03, 0.05):
        line = {"sd of a pair's difference": f"{sd:.0%}"}
        quiet = play_pairs(sd, sessions, SEED)
        line |= {"false alarm": _any(quiet, REGRESSED), "inconclusive": _any(quiet, INCONCLUSIVE)}
        line |= {"boots of both": f"{quiet.boots.mean():.1f} of 12"}
        for share in (0.05, 0.10, 0.15, 0.30):
            loud = play_pairs(sd, sessions, SEED, shift=float(np.log1p(share))).status[:, 0, 0]
            line[f"+{share:.0%}: regressed"] = f"{(loud == REGRESSED).mean():.1%}"
            if share == 0.10:
                line["+10%: pass"] = f"{(loud == PASSED).mean():.1%}"
        yield line


def drifting(sessions: int) -> Iterator[dict[str, str]]:
    """Yield a line for each design on a machine whose speed drifts: one gate of three, slope 2, boots sd 5 % beside."""
    machines = {
        "the reading is exact": drift.Machine(),
        "the reading is off by sd 2 %": drift.Machine(blur=0.02),
        "the machine does not drift": drift.Machine(step=0.01, away=0.01, slope=1.0),
        "the metric does not follow the reading": drift.Machine(slope=0.0),
    }
    for name, machine in machines.items():
        for boots in (6, 12):
            for adjust in (False, True):
                yield {"machine": name, "K": str(boots), "adjusted": "yes" if adjust else "no"} | _drifted(
                    machine, sessions, boots, adjust=adjust
                )


def _drifted(machine: drift.Machine, sessions: int, boots: int, *, adjust: bool) -> dict[str, str]:
    def play(shift: float) -> drift.AccountCheck:
        return drift.play(machine, sessions, SEED, baseline_boots=boots, adjust=adjust, family=3, shift=shift)

    quiet = play(0.0)
    margin = float(np.median(quiet.margin))
    loud = {"+30 %": play(float(np.log1p(0.30))), "margin": play(margin)}
    line = {
        "margin, median": _percent(margin),
        "false alarm": f"{(quiet.outcome == Outcome.REGRESSED).mean():.2%}",
        "pass": f"{(quiet.outcome == Outcome.PASS).mean():.1%}",
        "boots": f"{quiet.boots.mean():.2f}",
    }
    line |= {f"{name}: regressed": f"{(said.outcome == Outcome.REGRESSED).mean():.1%}" for name, said in loud.items()}
    return line | {"margin: pass": f"{(loud['margin'].outcome == Outcome.PASS).mean():.1%}"}


_KEPT_QUIET = ("false alarm", "inconclusive", "boots a cell", "of three")
_KEPT_LOUD = ("margin: regressed", "margin: pass", "1.5 margin: regressed")


def _quiet(scenario: Scenario, sessions: int) -> dict[str, str]:
    ended = play(scenario, sessions, SEED)
    looks = 3
    return {
        "false alarm": _any(ended, REGRESSED),
        "improved": _any(ended, IMPROVED),
        "inconclusive": _any(ended, INCONCLUSIVE),
        "boots a cell": f"{ended.boots.mean():.2f}",
        "of three": f"{ended.boots.mean() / looks:.0%}",
        "boots a tier": f"{ended.boots.max(-1).mean():.2f}",
    }


def _loud(scenario: Scenario, sessions: int) -> dict[str, str]:
    line: dict[str, str] = {}
    shifts = {f"+{share:.0%}": float(np.log1p(share)) for share in (0.05, 0.10, 0.15, 0.30)}
    margin = usual_margin(scenario, SEED)
    shifts |= {"margin": margin, "1.5 margin": 1.5 * margin}
    for name, shift in shifts.items():
        ended = play(replace(scenario, shift=shift), sessions, SEED)
        line[f"{name}: regressed"] = f"{(ended.status[:, 0, 0] == REGRESSED).mean():.1%}"
        if name in {"+10%", "margin"}:
            passed = np.isin(ended.status[:, 0, 0], (PASSED, IMPROVED))
            line[f"{name}: pass"] = f"{passed.mean():.1%}"
    return line


def _percent(log_ratio: float) -> str:
    return f"{np.expm1(log_ratio):+.1%}"


def _any(ended: Ended, status: int) -> str:
    return f"{(ended.status == status).any((1, 2)).mean():.2%}"


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES = {
    "nothing changed": errors_and_cost,
    "one metric of one cell is worse": power,
    "other designs": policies,
    "broken assumptions": broken_assumptions,
    "one baseline kept": kept,
    "a machine that drifts": drifting,
    "A/B without a baseline": against,
    "gain gates": gain_gates,
    "the rule in common use": old_rule,
}


if __name__ == "__main__":
    main()
