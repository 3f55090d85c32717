"""`pytest-kvcache bisect`: which release of vLLM or LMCache moved a cell, by halving over releases.

Each step is a session of pytest in the user's project that holds a release against the good one, boot by boot
(`--kv-against`). Exit codes: 0 found, 3 several releases are left, 4 the bad release is not worse.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pytest_kvcache.commands.located import add_project_arguments, located
from pytest_kvcache.config.project import Located
from pytest_kvcache.errors import ConfigError, SetupError
from pytest_kvcache.history import releases, step
from pytest_kvcache.history.bisection import Bisection, Step, begun
from pytest_kvcache.history.candidates import DISTRIBUTIONS, PLACE, Candidate, Candidates
from pytest_kvcache.history.halving import Outcome
from pytest_kvcache.verdict.gates import TokenGate
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK

Say = Callable[[str], None]
FOUND, RANGE_LEFT, NOT_WORSE = 0, 3, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--package", required=True, choices=tuple(DISTRIBUTIONS), help="whose releases are tested")
    parser.add_argument("--good", required=True, metavar="VERSION", help="a release that all others are held against")
    parser.add_argument("--bad", required=True, metavar="VERSION", help="a newer one that is worse")
    parser.add_argument("--tier", required=True, metavar="NAME", help="as for pytest")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="judge at this length alone (default: all)")
    parser.add_argument(
        "--metric", default="", metavar="GATE", help="judge by this gate alone, such as ttft, speed, decode, tokens"
    )
    parser.add_argument(
        "--versions", nargs="+", metavar="VERSION", help="releases to try (default: those that pip finds)"
    )
    parser.add_argument(
        "--other", default="", metavar="VERSION", help="of the package that stays the same (default: the lock's)"
    )
    parser.add_argument(
        "--engine",
        metavar="PATTERN",
        help=f"where the engine of a release is: a folder, or image:REPO:TAG, with {PLACE} in it "
        "(default: `setup`, which makes CPU builds)",
    )
    parser.add_argument("--again", action="store_true", help="start anew; steps of an earlier bisect do not count")
    parser.add_argument("--kv-profile", "--profile", metavar="NAME", help="as for pytest")
    parser.add_argument(
        "--pytest", default="", metavar="ARGS", help="more arguments for pytest, in one text, such as 'tests/perf -x'"
    )
    add_project_arguments(parser)


def run(args: argparse.Namespace, say: Say) -> int:
    """Test releases until one is found, or nothing more can be known; return the exit code.

    Raises:
        ConfigError: A flag has a wrong value.
        SetupError: The engine of the good release cannot be made, or pip finds no releases.
        RunError: A session ended before it came to verdicts.
        ResultsError: The file of earlier steps is damaged.
    """
    project = located(args)
    candidates = _candidates(args, project)
    versions = releases.between(args.good, args.bad, args.versions or _released(args))
    folder = Path(project.runs).parent / "bisect"
    bisection = begun(folder, _question(args, project), versions, again=args.again)
    say(
        f"bisect: {len(versions)} releases of {args.package}, {args.good} to {args.bad}:"
        f" {_steps(bisection.halving.steps_left)}, and one more for each without a verdict"
    )
    for each in bisection.steps:
        say(f"  {each.version} {_OUTCOMES[each.outcome]} (tested before): {each.line}")
    if bisection.halving.next is not None:
        good = candidates.of(args.good, lambda line: say(f"  setup: {line}"))
        bisection = _halve(bisection, candidates, good, args, say)
    return _tell(bisection, args.package, say)


_OUTCOMES = {"good": "is not worse", "bad": "is worse", "skipped": "has no verdict"}


def _candidates(args: argparse.Namespace, project: Located) -> Candidates:
    if args.engine is None and project.engine is not None:
        raise ConfigError(
            f"the project's engine is {project.engine}, and `setup` would make CPU builds in its place",
            where="--engine",
            todo=f"say where the engine of each release is (folder or image:…, with {PLACE} in it), or --engine setup",
        )
    pattern = "" if args.engine in {None, "setup"} else args.engine
    if pattern and PLACE not in pattern:
        raise ConfigError(f"must have {PLACE} in it, or be setup, not {pattern!r}", where="--engine")
    if pattern and args.other:
        raise ConfigError("is for engines that `setup` makes: leave it out beside --engine", where="--other")
    return Candidates(args.package, args.other, pattern)


def _released(args: argparse.Namespace) -> list[str]:
    made = args.engine in {None, "setup"}
    return releases.released(DISTRIBUTIONS[args.package][-1 if made else 0])


def _question(args: argparse.Namespace, project: Located) -> dict[str, str]:
    """Return all that the outcome of a step depends on."""
    asked = {
        key: str(getattr(args, key) or "")
        for key in ("package", "good", "bad", "tier", "context", "metric", "other", "engine", "kv_profile", "pytest")
    }
    config = project.config
    asked["config"] = hashlib.sha256(config.read_bytes()).hexdigest() if config else ""
    return asked


def _halve(
    bisection: Bisection, candidates: Candidates, good: Candidate, args: argparse.Namespace, say: Say
) -> Bisection:
    """Return the bisection with all steps that can tell something."""
    while (at := bisection.halving.next) is not None:
        version = bisection.versions[at]
        say(f"step {len(bisection.steps) + 1}: {args.package} {version} against {args.good}")
        started = time.monotonic()
        command: list[str] = []
        outcome: Outcome = "skipped"
        try:
            candidate = candidates.of(version, lambda line: say(f"  setup: {line}"))
        except (SetupError, ConfigError, OSError) as error:
            line = f"no engine: {' '.join(str(error).split())}"
        else:
            if others := candidate.differences(good, args.package):
                say(f"  differs from {args.good} in more than {args.package}: {', '.join(others)}")
            junit = bisection.path.with_suffix("") / f"{version}.xml"
            command = _command(args, good, candidate, junit)
            say(f"  {shlex.join(command)}")
            outcome, line = step.decide(_measured(command, junit, say), context_tokens=args.context, metric=args.metric)
        minutes = round((time.monotonic() - started) / 60, 2)
        done = Step(version=version, outcome=outcome, line=line, command=command, minutes=minutes)
        bisection = bisection.added(done)
        say(f"  {version} {_OUTCOMES[outcome]}: {line} ({minutes:.1f} minutes)")
        left = [bisection.versions[each] for each in bisection.halving.suspects]
        if left and bisection.halving.next is not None:
            say(f"  left: {', '.join(left)}; {_steps(bisection.halving.steps_left)}")
    return bisection


def _measured(command: list[str], junit: Path, say: Say) -> list[step.Judged]:
    try:
        return step.measure(command, junit)
    except KeyboardInterrupt:
        say("bisect: interrupted; the same command goes on with this step")
        raise


def _command(args: argparse.Namespace, good: Candidate, candidate: Candidate, junit: Path) -> list[str]:
    """Return the command of a step's session, for the folder in which the bisect was started."""
    more = shlex.split(args.pytest)
    named = {
        "--kv-profile": args.kv_profile,
        "--kv-config": args.kv_config,
        "--rootdir": args.rootdir,
        "--config-file": args.config_file,
    }
    if not any(word.startswith("-k") for word in more):
        # No boot is spent on what is not asked for; `decide` leaves out what this takes in too much.
        named["-k"] = " and ".join(filter(None, (str(args.context or ""), args.metric)))
    if args.metric == TokenGate().short and not any(word.startswith("--kv-boots") for word in more):
        # Where tokens come from is told by the first boots: no more are spent on gates that nobody asked for.
        named["--kv-boots"] = 2 * PAIRS_AT_LOOK[0]
    return [
        *(sys.executable, "-m", "pytest", "-m", "perf", "--kv-tier", args.tier),
        *(f"--kv-engine={good.name}", f"--kv-against={candidate.name}", f"--junitxml={junit}"),
        *(word for option, value in named.items() if value for word in (option, str(value))),
        *more,
    ]


def _tell(bisection: Bisection, package: str, say: Say) -> int:
    """Print what came out, and return the exit code."""
    halving, versions = bisection.halving, bisection.versions
    minutes = sum(each.minutes for each in bisection.steps)
    say(f"bisect: {_steps(len(bisection.steps), least=True)}, {minutes:.1f} minutes; kept in {bisection.path}")
    if halving.is_none_worse:
        say(f"{package} {versions[-1]} is not worse than {versions[0]}: there is nothing to look for")
        return NOT_WORSE
    last_good = versions[halving.last_good]
    if halving.found is not None:
        say(f"{package} {versions[halving.found]} is the first release that is worse, {last_good} the last that is not")
        return FOUND
    say(f"not decided: the first release of {package} that is worse is one of")
    by_version = {each.version: each for each in bisection.steps}
    for at in halving.suspects:
        tested = by_version[versions[at]]
        say(f"  {tested.version} {_OUTCOMES[tested.outcome]}: {tested.line}")
    if halving.first_bad is None:
        say("  or none of them: no release was seen to be worse")
    say(f"{last_good} is the last that is known not to be worse; --again tests all of them anew")
    return RANGE_LEFT


def _steps(count: int, *, least: bool = False) -> str:
    return f"{count} step{'' if count == 1 else 's'}" + ("" if least else " at most")
