"""Arguments of vLLM that a profile cannot give: what a plan writes itself, and what a run could not work with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_kvcache.config.vllm_args import Option, is_option, options

#: Of vLLM's `--max-logprobs`: what the probes ask for with each token (docs/proof.md).
PROBES_LOGPROBS = 5


@dataclass(frozen=True)
class Refused:
    """Options with one reason.

    Args:
        names: Long names of the options.
        reason: Why, and what to use instead.
        values: Only these values are refused; any, where there are none.
        switched_off: Only the `--no-` form is refused.
    """

    names: tuple[str, ...]
    reason: str
    values: frozenset[str] = frozenset()
    switched_off: bool = False

    def takes(self, option: Option) -> bool:
        """Whether `option` is one of these."""
        if self.switched_off:
            return any(option.negates(name) for name in self.names)
        if not any(option.means(name) or option.negates(name) for name in self.names):
            return False
        return not self.values or option.value in self.values


_OWN_PORT = "each server has a port of its own at 127.0.0.1, chosen free at its start"
_HTTP = "the router, the load and the probes talk plain HTTP to 127.0.0.1, without a key and at vLLM's own paths"
_ENGINES = "each engine of such a server has a cache of its own, and no probe says which was asked; set servers instead"
_ONE_MACHINE = "a server runs on this machine alone, and a run finds its ports itself"
_LOGS = "the first cause of a failure is read from the server's log; set VLLM_LOGGING_LEVEL in the profile's env"

#: From the parser of vLLM 0.32; what an older or newer one has not does no harm here.
REFUSED = (
    Refused(("--port", "--host", "--uds", "--grpc", "--grpc-port"), _OWN_PORT),
    Refused(("--served-model-name", "--model"), "set model"),
    Refused(("--dtype",), "set dtype"),
    Refused(("--max-model-len",), "set max_model_len"),
    Refused(("--num-gpu-blocks-override",), "set device_blocks"),
    Refused(
        ("--kv-transfer-config", "--kv-offloading-size", "--kv-offloading-backend"),
        "the tier says how KV is offloaded: set lmcache_mode, or a tier of kind lmcache-l2",
    ),
    Refused(("--kv-events-config",), "all servers would listen on its one port"),
    Refused(("--response-role",), "each server says in it which one answered"),
    Refused(
        ("--enable-prompt-tokens-details", "--enable-per-request-metrics", "--disable-uvicorn-access-log"),
        "every server gets it already",
    ),
    Refused(("--disable-log-stats",), "without vLLM's counters nothing is proved; leave it out"),
    Refused(("--api-server-count",), "counters of several API processes do not add up; set servers instead"),
    Refused(
        (
            "--api-key", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-ciphers",
            "--enable-ssl-refresh", "--root-path",
        ),
        _HTTP,
    ),
    Refused(("--skip-tokenizer-init", "--tokens-only"), "the load reads text from the servers' answers"),
    Refused(("--config",), "write its arguments into vllm_args and the keys of the profile, which are checked"),
    Refused(("--headless", "--help", "--version"), "no server would answer"),
    Refused(
        (
            "--data-parallel-rank", "--data-parallel-start-rank", "--data-parallel-size-local",
            "--data-parallel-address", "--data-parallel-rpc-port", "--data-parallel-backend",
            "--data-parallel-hybrid-lb", "--data-parallel-external-lb", "--data-parallel-multi-port-external-lb",
            "--data-parallel-supervisor-port",
        ),
        _ENGINES,
    ),
    Refused(("--nnodes", "--node-rank", "--master-addr", "--master-port"), _ONE_MACHINE),
    Refused(
        ("--distributed-executor-backend",),
        "its workers would not be the run's own processes; leave it out, or mp",
        frozenset({"ray", "external_launcher"}),
    ),
    Refused(("--device-ids",), "set gpus_per_server; CUDA_VISIBLE_DEVICES of the caller says which GPUs"),
    Refused(("--logging-config", "--log-config-file"), _LOGS),
)  # fmt: skip


def refusals(argv: Sequence[str]) -> Iterator[str]:
    """Return why arguments of a profile (`vllm_args`) are refused, a line each."""
    if argv and not is_option(argv[0]):
        yield f"{argv[0]!r} belongs to no option: the model is the profile's key model"
    if "--" in argv:
        yield "'--' ends the options: what follows would be taken for the model"
    for option in options(argv):
        for row in REFUSED:
            if row.takes(option):
                yield f"{_as_written(option, row)} is not allowed: {row.reason}"
                break
        if option.means("--data-parallel-size") and option.value != "1":
            yield f"{option.written} is not allowed: {_ENGINES}"


def beside_probes(argv: Sequence[str]) -> Iterator[str]:
    """Return why arguments of a profile whose boots are probed are refused, a line each."""
    for option in options(argv):
        if option.means("--max-logprobs") and _below(option.value, PROBES_LOGPROBS):
            yield (
                f"{option.written} {option.value} is not allowed: probes compare the {PROBES_LOGPROBS} best of each "
                f"token; take {PROBES_LOGPROBS} or more, or set rules.probes = false"
            )


def _as_written(option: Option, row: Refused) -> str:
    """Return the option's spelling, with what it stands for where that is another one."""
    whole = next((name for name in row.names if option.means(name)), option.name)
    return option.written if option.name == whole else f"{option.written} ({whole})"


def _below(value: str | None, least: int) -> bool:
    return value is not None and value.isdecimal() and int(value) < least
