"""`pytest-kvcache load`: sends the workload alone to any OpenAI endpoint; nothing is booted.

It has the flags of LMCache's `multi-round-qa.py`, and some more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_kvcache.endpoint import certificates
from pytest_kvcache.endpoint.address import endpoint, read_key, without_version
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.load import records, validity, worker
from pytest_kvcache.load.nodes.messages import KEY_ENV
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.load.table import to_frame
from pytest_kvcache.paths import argument
from pytest_kvcache.redaction import redacted
from pytest_kvcache.report import terminal
from pytest_kvcache.runs import signals
from pytest_kvcache.runs.files import partial_of, replace_whole
from pytest_kvcache.telemetry.counters import growth
from pytest_kvcache.tiers.catalogue import validate
from pytest_kvcache.verdict.estimate import Estimates, estimate
from pytest_kvcache.workload import reference_csv
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.mooncake import MooncakeTrace
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.sharegpt import ShareGpt
from pytest_kvcache.workload.trace_rows import FORMATS

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    what = parser.add_argument_group("what is sent (flags of multi-round-qa.py)")
    what.add_argument("--num-users", type=int, metavar="N", help="users in the system at a time")
    what.add_argument("--num-rounds", type=int, metavar="N", help="questions a user asks")
    what.add_argument("--qps", type=float, help="requests/s over all users")
    what.add_argument("--shared-system-prompt", type=int, metavar="TOKENS", help="prompt common to all (1000)")
    what.add_argument(
        "--user-history-prompt", type=int, required=True, metavar="TOKENS", help="length of user contexts"
    )
    what.add_argument("--answer-len", type=int, metavar="TOKENS", help="length of an answer (100)")
    what.add_argument("--time", type=float, required=True, metavar="SECONDS", help="no request is started later")
    what.add_argument("--init-user-id", type=int, default=0, metavar="N", help="users are numbered from the next one")
    what.add_argument("--request-with-user-id", action="store_true", help="taken and ignored, as in the original")
    what.add_argument("--sharegpt", type=argument, metavar="FILE", help="conversations from a ShareGPT-style file")

    more = parser.add_argument_group("what is sent (more)")
    more.add_argument("--mode", choices=("exact", "compat"), help="compat: what the original sends (exact)")
    more.add_argument(
        "--trace", type=argument, metavar="FILE", help="a Mooncake-style trace; --user-history-prompt caps it"
    )
    more.add_argument("--trace-format", choices=tuple(FORMATS), help="which tool's rows the trace has (mooncake)")
    more.add_argument("--speed", type=float, help="of the trace (1)")
    more.add_argument(
        "--concurrency", type=int, metavar="N", help="sessions or requests under way at a time, in place of times"
    )
    more.add_argument("--block-tokens", type=int, metavar="N", help="of a hash id of the trace (512; bailian: 16)")
    more.add_argument("--time-unit", choices=("ms", "s"), help="of the trace's times (ms; bailian: s)")
    more.add_argument("--seed", type=int, help="texts follow from it (0)")
    more.add_argument("--warmup-requests", type=int, metavar="N", help="sent before the clock starts (10)")
    more.add_argument("--keep-eos", action="store_true", help="let the model end its answers early")

    where = parser.add_argument_group("where to")
    where.add_argument("--base-url", required=True, help="with /v1")
    where.add_argument("--model", required=True, help="the name that requests carry")
    where.add_argument(
        "--tokenizer-url", metavar="URL", help="of a vLLM server, without /v1 (default: that of --base-url)"
    )
    where.add_argument("--metrics-url", action="append", default=[], metavar="URL", help="counters to read; repeatable")
    where.add_argument("--api-key-env", default="", metavar="VARIABLE", help="environment variable with the API key")

    how = parser.add_argument_group("how, and what is left")
    how.add_argument(
        "--output", type=argument, default=Path("summary.csv"), help="the original's CSV; rows go beside it"
    )
    how.add_argument("--log-interval", type=int, default=30, metavar="SECONDS", help="between two lines of progress")
    how.add_argument("--workers", type=int, help="load processes (default: as the rate needs)")
    how.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="send from this load node (`pytest-kvcache load-node`) in place of this machine; repeatable",
    )
    how.add_argument(
        "--node-key-env",
        default=KEY_ENV,
        metavar="VARIABLE",
        help=f"environment variable with the key that load nodes have too ({KEY_ENV})",
    )
    how.add_argument(
        "--clock-error-budget",
        type=float,
        default=0.001,
        metavar="SECONDS",
        help="how well the clock of each load node must be known (0.001)",
    )
    how.add_argument("--request-timeout", type=float, default=300.0, metavar="SECONDS", help="for a whole request")
    how.add_argument(
        "--token-timeout", type=float, default=120.0, metavar="SECONDS", help="for a stream that stands still"
    )


def run(args: argparse.Namespace, say: Say) -> int:
    """Send the load and print its figures.

    Returns:
        0 for a valid run, 1 for an invalid one, 130 for one that was interrupted. The rows are kept in each case.

    Raises:
        ConfigError: A flag or a file is wrong.
        OSError: The folder of --output cannot be written; nothing was sent.
        RunError: The workload does not fit the server.
    """
    say = _heard_or_not(say)
    workload = _workload(args)
    _check_output(args.output)
    key = read_key(args.api_key_env, os.environ) if args.api_key_env else ""
    target = endpoint(args.base_url, where="--base-url", key=key)
    if args.node and target.authorization and not key:
        raise ConfigError(
            "has a user or password, which is handed to no load node", where="--base-url", todo="use --api-key-env"
        )
    tokenizer_url = without_version(target.url)
    if args.tokenizer_url:
        tokenizer_url = _open_to_all(args.tokenizer_url, "--tokenizer-url")
    if target.url.startswith("https:"):
        certificates.tls_context()  # raises before anything is sent
    workload.check()
    plan = LoadPlan(
        base_url=target.url,
        model=args.model,
        workload=workload,
        context_tokens=args.user_history_prompt,
        first_user=args.init_user_id,
        tokenizer_url=tokenizer_url,
        metrics_urls={url: url for url in (_open_to_all(each, "--metrics-url") for each in args.metrics_url)},
        api_key_env=args.api_key_env,
        nodes=tuple(args.node),
        node_key_env=args.node_key_env if args.node else "",
        report_s=args.log_interval,
        rows=args.output.with_suffix(".parquet"),
        summary=args.output.with_suffix(".json"),
    )
    say(f"{workload.kind}: preparing prompts, warming up")
    outcome = worker.carry_out(plan, say, authorization=target.authorization)
    with signals.deferred():  # a second Ctrl-C waits until all is written
        return _left(args, plan, outcome, say)


def _open_to_all(text: str, where: str) -> str:
    """Return a URL that has no password in it.

    Raises:
        ConfigError: It has one, or is no URL.
    """
    found = endpoint(text, where=where)
    if found.authorization:
        raise ConfigError(
            "has a user or password, which is sent with --base-url alone", where=where, todo="leave it out"
        )
    return found.url


def _heard_or_not(say: Say) -> Say:
    """Return what prints a line and goes on where nobody reads it: a terminal that is gone takes no rows with it."""

    def saying(line: str) -> None:
        with contextlib.suppress(OSError):
            say(redacted(line))

    return saying


def _check_output(output: Path) -> None:
    """Check that results can be written, before anything is sent.

    Raises:
        ConfigError: The rows or the facts would overwrite the CSV, or one of the three is there and no regular file.
        OSError: The folder cannot be written, or a name is too long.
    """
    if output.suffix in {".parquet", ".json"}:
        raise ConfigError(
            f"{output.name} would be overwritten: rows go to {output.stem}.parquet, facts to {output.stem}.json",
            where="--output",
            todo=f"name a CSV, such as {output.stem}.csv",
        )
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    for suffix in (output.suffix, ".parquet", ".json"):
        path = output.with_suffix(suffix) if output.name else output  # the root has no name
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", where="--output", todo="name a CSV in it, or another CSV")
        if path.exists() and not path.is_file():  # such as /dev/null, in whose place a file would be put
            raise ConfigError(f"{path} is no regular file", where="--output", todo="name a CSV")
        partial = partial_of(path)
        partial.touch()
        partial.unlink()


def _left(args: argparse.Namespace, plan: LoadPlan, outcome: worker.WorkerOutcome, say: Say) -> int:
    """Write what a run left, print its figures, and return the exit code."""
    workload = plan.workload
    if not outcome.rows:
        return 130
    rows = to_frame(outcome.rows)
    table = reference_csv.csv_table(rows, started_at=outcome.started_at)
    replace_whole(args.output, lambda partial: table.to_csv(partial, index=False))
    _tell(plan, rows, table, outcome, say)
    faults = validity.faults(rows, workload, outcome.facts())
    for line in faults:
        say(f"INVALID: {line}")
    for line in validity.suspicions(rows, workload):
        say(f"suspect: {line}")
    say(f"rows: {plan.rows}, reference CSV: {args.output}, counters and facts: {plan.summary}")
    return 130 if outcome.interrupted else 1 if faults else 0


#: The kinds that can be sent, each with what chooses it. Which flags a kind has is in its own table, `FLAGS`.
_KINDS: dict[type[Workload], str] = {
    MooncakeTrace: "--trace",
    ShareGpt: "--sharegpt",
    MultiRoundQa: "multi-round QA without a file",
}
#: What the original's flags are where they are not given.
_DEFAULTS = {"shared_prompt_tokens": 1000, "answer_tokens": 100}
#: Least and greatest values of flags that are no key of a workload.
_BOUNDS = {"init_user_id": (0, 10**9), "log_interval": (1, 10**6)}


def _workload(args: argparse.Namespace) -> Workload:
    """Return the workload that the flags describe.

    Raises:
        ConfigError: A flag has a wrong value, or says nothing to this kind of workload.
    """
    if args.trace is not None and args.sharegpt is not None:
        raise ConfigError("a load is of one file", where="--trace, --sharegpt", todo="leave one out")
    for flag, (least, most) in _BOUNDS.items():
        if not least <= (value := getattr(args, flag)) <= most:
            raise ConfigError(f"must be from {least} to {most}, not {value}", where=_flag(flag))
    kind: type[Workload] = MooncakeTrace if args.trace else ShareGpt if args.sharegpt else MultiRoundQa
    flags = {flag for each in _KINDS for flag in each.FLAGS}
    given = {flag: value for flag, value in vars(args).items() if flag in flags and value is not None}
    _refuse([flag for flag in given if flag not in {*kind.FLAGS, *_BOUNDS}], f"{_KINDS[kind]}, which has its own")
    values: dict[str, Any] = {
        "context_tokens": (args.user_history_prompt,),
        "duration_s": args.time,
        "ignore_eos": not args.keep_eos,
        "workers": args.workers,
        "request_timeout_s": args.request_timeout,
        "clock_error_budget_s": args.clock_error_budget,
        "token_timeout_s": args.token_timeout,
        **{key: value for key, value in _DEFAULTS.items() if key in kind.FLAGS.values()},
        **{kind.FLAGS[flag]: value for flag, value in given.items() if flag in kind.FLAGS},
    }
    workload = validate(kind, values, "command line")
    for flag, why in workload.unused_flags.items():
        if getattr(args, flag) is not None:
            _refuse([flag], why)
    return workload


def _refuse(flags: list[str], whom: str) -> None:
    """Raise ConfigError that names the flags which say nothing to the workload, where there are any."""
    if flags:
        others = f", and {', '.join(map(_flag, flags[1:]))} too" if flags[1:] else ""
        raise ConfigError(f"says nothing to {whom}", where=_flag(flags[0]), todo=f"leave it out{others}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _tell(plan: LoadPlan, rows: pd.DataFrame, table: pd.DataFrame, outcome: worker.WorkerOutcome, say: Say) -> None:
    summed = reference_csv.summary(
        table,
        started_at=outcome.started_at,
        config_qps=getattr(plan.workload, "qps", len(rows) / plan.workload.duration_s),
        pending=int((rows["status"] == records.CANCELLED).sum()),
    )
    if summed is not None:
        for line in summed.lines():
            say(line)
    figures: Estimates = estimate(rows, duration_s=plan.workload.duration_s)
    for line in terminal.run_lines(figures):
        say(line)
    for name, grown in growth(outcome.counters_before, outcome.counters_after).items():
        say(f"{name}: {sum(1 for value in grown.values() if value)} counters grew")
