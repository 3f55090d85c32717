"""How often are the gates and gains of `cpu-nightly` wrong? Boots of its tiers in turn, and sessions drawn from them.

    python -m benchmarks.power.nightly [--dir DIR] [--rounds 12] [--whole 0]

Whole sessions of the gains of two tiers take eight boots of two minutes, and twenty of them five hours. So boots are
taken in turn, and what sessions of them would have said is told by the functions that decide:

- A round is a boot of gpu, two of pnfs and one of cpu, and every second one has a boot of pnfs with loads from LMCache
  so slow that it brings nothing over gpu. The next round goes backwards, so that neighbours are booted A B B A.
- Gains: two rounds that follow each other are a session, whose baselines are the boots of the other rounds. Nothing is
  drawn, so that a session has the hour that it had; neighbours share boots, and no two of them are independent.
- A/B: the two boots of pnfs in a round are a pair; of the pairs six are drawn, one boot of each made worse by a share.
- Gates against a baseline of twelve boots: as in `redraw.py`.

With --whole N, N whole sessions of the gains of pnfs over gpu, unchanged and without gain in turn, show whether those
that were drawn say the same: the boots of all rounds are their baselines.

Leave the machine alone meanwhile. A boot that was taken is not taken again: DIR/boots.csv has a line for each, and
DIR/sessions.csv one for each gate of a session.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.power import changes, metrics, redraw
from benchmarks.power.engine import CONTEXT_TOKENS, Job, Lab
from pytest_kvcache.engine import setup
from pytest_kvcache.home import home
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.verdict.gains import Gain, KnownSpread, decide_gain, spread_of
from pytest_kvcache.verdict.interim import Policy
from pytest_kvcache.verdict.metrics import BY_NAME
from pytest_kvcache.verdict.paired import BootPair
from pytest_kvcache.verdict.procedure import Boot

PROFILE, NO_GAIN = "nightly", "nightly-no-gain"
GATED = "cpu-nightly"
#: What boots are of; the last is pnfs with loads that bring nothing.
GPU, PNFS, CPU, SLOWED = "gpu", "pnfs", "cpu", "pnfs without gain"
GAINS = (
    Gain(PNFS, GPU, BY_NAME["ttft"], 0.6),
    Gain(PNFS, GPU, BY_NAME["speed"], 0.95),
    Gain(CPU, GPU, BY_NAME["ttft"], 0.8),
)
_ASKED = "\n".join(f'"{gain.tier} over {gain.over}".{gain.metric.short} = {gain.bound:g}' for gain in GAINS)
#: Sessions add their boot however many there are.
TOML = f"""
[profiles.{PROFILE}]
extends = "{GATED}"
[profiles.{PROFILE}.rules]
baseline_boots = 500
[profiles.{PROFILE}.gates.gains]
{_ASKED}

[profiles.{NO_GAIN}]
extends = "{PROFILE}"
"""
#: What is told of each gate of a whole session.
_OF_A_GATE = ("kind", "session", "began", "minutes", "kv_verdict", "kv_gate")
#: What stands in the file beside figures.
_FACTS = ("round", "kind", "began", "minutes")


@dataclass(frozen=True)
class Taken:
    """One boot.

    Args:
        number: Of its round, from 0.
        kind: What it is of.
        boot: What it came to.
    """

    number: int
    kind: str
    boot: Boot


def order(number: int) -> list[str]:
    """Return what a round boots: forwards in even ones, which have the boot without gain beside that of gpu."""
    return [GPU, SLOWED, PNFS, PNFS, CPU] if number % 2 == 0 else [CPU, PNFS, PNFS, GPU]


def of(taken: Sequence[Taken], number: int, kind: str) -> list[Boot]:
    """Return the boots of a kind in a round, as they were taken."""
    return [each.boot for each in taken if (each.number, each.kind) == (number, kind)]


def known(taken: Sequence[Taken], gain: Gain, without: Sequence[int]) -> KnownSpread:
    """Return the spread of a boot of one tier over one of the other, as baselines of all rounds but two have it.

    A round stands for a session that boots each tier once (`verdict.gains.known_spread`).

    Raises:
        ValueError: Too few rounds are left.
    """
    ratios = []
    for number in sorted({each.number for each in taken} - set(without)):
        tier, over = of(taken, number, gain.tier), of(taken, number, gain.over)
        if tier and over:
            ratios.append(gain.metric.of(tier[0].figures) - gain.metric.of(over[0].figures))
    if len(ratios) < 2:
        raise ValueError(f"{len(ratios)} other rounds tell no spread")
    return spread_of([ratios])


def gain_session(
    taken: Sequence[Taken], gain: Gain, rounds: Sequence[int], *, tier: str, which: int, policy: Policy
) -> dict[str, object]:
    """Return what two pairs of neighbours come to.

    Args:
        taken: All boots.
        gain: Which gate.
        rounds: The two that the pairs are of.
        tier: What the boots are of that must bring something: `gain.tier`, or what stands for it.
        which: Of the boots of this kind in a round, from that of gpu.
        policy: The rules.
    """
    pairs = []
    for number in rounds:
        boots = of(taken, number, tier)
        boots = boots if number % 2 == 0 else boots[::-1]
        pairs.append(BootPair(of(taken, number, gain.over)[0], boots[which]))
    told = decide_gain(
        gain,
        {CONTEXT_TOKENS: pairs},
        family=len(GAINS),
        policy=policy,
        known=known(taken, gain, rounds),
    )[CONTEXT_TOKENS]
    return {
        "gain": f"{tier} over {gain.over}, {gain.metric.short} {gain.relation} {gain.bound:g}",
        "rounds": "+".join(map(str, rounds)),
        "status": told.status,
        "ratio": told.ratio,
        "low": told.interval[0],
        "high": told.interval[1],
    }


def gain_sessions(taken: Sequence[Taken], *, policy: Policy) -> pd.DataFrame:
    """Return a row a gain and session of two pairs: unchanged, and with the tier that brings nothing."""
    last = max(each.number for each in taken)
    whole = [n for n in range(last + 1) if of(taken, n, CPU) and of(taken, n, GPU) and len(of(taken, n, PNFS)) == 2]
    slowed = [n for n in whole if of(taken, n, SLOWED)]
    rows = []
    for gain in GAINS:
        for rounds in itertools.pairwise(whole):
            for which in range(len(of(taken, rounds[0], gain.tier))):
                rows.append(gain_session(taken, gain, rounds, tier=gain.tier, which=which, policy=policy))
        if gain.tier == PNFS and gain.metric.key == BY_NAME["ttft"].key:
            for rounds in itertools.combinations(slowed, 2):
                rows.append(gain_session(taken, gain, rounds, tier=SLOWED, which=0, policy=policy))
    return pd.DataFrame(rows)


def summary(sessions: pd.DataFrame) -> pd.DataFrame:
    """Return a row a gain: how many sessions ended how, and what ratios they saw."""
    lines = []
    for gain, rows in sessions.groupby("gain", sort=False):
        ended = {status: int((rows["status"] == status).sum()) for status in ("pass", "regressed", "needs-boot")}
        ratios = f"{rows['ratio'].min():.3g} to {rows['ratio'].max():.3g}"
        reach = f"{rows['low'].min():.3g} to {rows['high'].max():.3g}"
        lines.append({"gain": gain, "sessions": len(rows), **ended, "ratios": ratios, "intervals reach": reach})
    return pd.DataFrame(lines)


def pairs_of(taken: Sequence[Taken], kind: str) -> list[BootPair]:
    """Return the neighbours of a kind that every round has."""
    rounds = sorted({each.number for each in taken})
    found = (of(taken, number, kind) for number in rounds)
    return [BootPair(*boots) for boots in found if len(boots) == 2]


def read(path: Path) -> list[Taken]:
    """Return the boots that a file has, each with what could be measured of it."""
    if not path.exists():
        return []
    found = []
    for row in pd.read_csv(path).to_dict("records"):
        figures = {str(key): value for key, value in row.items() if key not in _FACTS and pd.notna(value)}
        found.append(Taken(int(row["round"]), str(row["kind"]), Boot(figures)))
    return found


def engine(lab: Lab, kind: str) -> Path:
    """Return the environment that a kind of boot runs in."""
    if kind != SLOWED:
        return lab.engine
    # Each load takes what vLLM alone needs for the whole prompt.
    return changes.slow_loads(lab.folder / "no-gain", lab.engine, lab.mean(BY_NAME["ttft"], PROFILE, GPU))


def whole(lab: Lab, count: int) -> pd.DataFrame:
    """Play whole sessions of the gains of pnfs that were not played before; return a row a gate of all of them."""
    names = {f"whole session of {kind}": kind for kind in (PNFS, SLOWED)}
    for number in range(count):
        name = list(names)[number % len(names)]
        before = lab.done()
        if before.loc[before["kind"] == name, "session"].nunique() <= number // len(names):
            lab.run(Job(name, PROFILE, ("--tier", PNFS, "-k", "over"), partial(engine, lab, names[name])))
    done = lab.done()
    return done.loc[done["kind"].isin(names), [name for name in _OF_A_GATE if name in done]]


def take(lab: Lab, number: int, kind: str) -> dict[str, object]:
    """Boot once, and return a line for the file.

    Raises:
        SystemExit: The boot came to no figures.
    """
    tier, profile = (PNFS, NO_GAIN) if kind == SLOWED else (kind, PROFILE)
    options = (
        "--tier",
        tier,
        "--record-baselines",
        "--kv-boots",
        "1",
        "--kv-allow-suspect",
        "-k",
        "speed and not over",
    )
    rows = lab.run(Job(kind, profile, options, partial(engine, lab, kind)))
    first = rows.iloc[0]
    if str(first.get("kv_verdict")) != "recorded":
        raise SystemExit(f"{kind}: {first.get('kv_verdict')}; {lab.folder / 'logs'} has what it said")
    boot = lab.baseline(profile, tier).boots[-1]
    return {"round": number, "kind": kind, "began": first["began"], "minutes": first["minutes"], **boot.figures}


def main() -> None:
    """Measure, writing results as they come, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(".kvcache/nightly"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--draws", type=int, default=1000, help="sessions of each row of the last two tables")
    parser.add_argument("--whole", type=int, default=0, help="whole sessions, unchanged and without gain in turn")
    args = parser.parse_args()
    lab = Lab(args.dir.absolute(), setup.engine_path(home()))
    lab.prepare(boots=12, epoch_s=24.0)
    (lab.folder / "kvcache.toml").write_text(TOML, encoding="utf-8")
    path = lab.folder / "boots.csv"
    wanted = [(number, kind) for number in range(args.rounds) for kind in order(number)]
    for number, kind in wanted[len(read(path)) :]:
        line = take(lab, number, kind)
        before = pd.read_csv(path) if path.exists() else pd.DataFrame()
        pd.concat([before, pd.DataFrame([line])]).to_csv(path, index=False)
        print(number, kind, line["began"], line["minutes"], flush=True)
    tables(lab, read(path), draws=args.draws)
    if args.whole:
        print(whole(lab, args.whole).to_csv(index=False))


def tables(lab: Lab, taken: Sequence[Taken], *, draws: int) -> None:
    """Print what the boots tell."""
    configured = catalogue.load(lab.folder / "kvcache.toml")
    profile = configured.profiles[GATED]
    policy, family = profile.policy, configured.declared_gates(profile)
    print(metrics.table([lab.baseline(PROFILE, tier) for tier in (GPU, CPU, PNFS)]).to_string(index=False))
    print(metrics.together(lab.baseline(PROFILE, PNFS)))
    print(summary(gain_sessions(taken, policy=policy)).to_string(index=False))
    shares = [0.0, 0.15, 0.30, 0.50]
    turns = redraw.against(pairs_of(taken, PNFS), draws=draws, shares=shares, family=family, policy=policy)
    print(pd.DataFrame(turns).to_string(index=False))
    rows = redraw.drawn(
        lab.baseline(PROFILE, PNFS),
        baseline_boots=profile.rules.baseline_boots,
        draws=draws,
        shares=shares,
        family=family,
        policy=policy,
    )
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
