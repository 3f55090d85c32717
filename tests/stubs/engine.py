"""An engine environment whose programs are small stubs: whole sessions of the plugin in seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_PROGRAMS = Path(__file__).with_name("programs.py")
_VERSIONS = {"python": "3.11.0", "vllm": "0.stub", "lmcache": "0.stub", "vllm-router": "0.stub"}


def make_engine(folder: Path, **versions: str) -> Path:
    """Write an environment to `folder` that passes for one with vLLM, LMCache, router and rclone; return it.

    Args:
        folder: Is made.
        **versions: In place of those that say nothing.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    _script(programs / "python", f"echo '{json.dumps(_VERSIONS | versions)}'")
    for name in ("vllm", "lmcache", "vllm-router", "rclone"):
        _script(
            programs / name,
            f'[ "$1" = version ] && echo "{name} stub" && exit\nexec {sys.executable} -S -E {_PROGRAMS} {name} "$@"',
        )
    return folder


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    path.chmod(0o755)


#: A profile that serves stubs: two quick contexts, a dozen requests each.
TOML = """
[profiles.stub]
model = "stub"
gpus_per_server = 0
lmcache_mode = "mp"
# Longer than any prompt: nothing is expected of a stub's LMCache.
chunk_tokens = 128000
boot_timeout_s = 20
vllm_args = [{vllm_args}]

# Stubs answer in milliseconds, where the machine's noise is larger than any figure.
[profiles.stub.rules]
baseline_boots = {boots}
margin = 5
widest_margin = 9
canary = false
# Tests run beside each other.
other_work = 9

[profiles.stub.workload]
users = 3
rounds = 8
qps = {qps}
shared_prompt_tokens = 10
context_tokens = {contexts}
answer_tokens = 5
duration_s = {duration_s}
warmup_requests = 1
request_timeout_s = 5
send_late_budget_s = 5
shared_reads_budget = 1
"""


def toml(
    *,
    vllm_args: str = "",
    qps: float = 20,
    boots: int = 1,
    contexts: tuple[int, ...] = (50,),
    duration_s: float = 0.6,
    more: str = "",
) -> str:
    """Return a kvcache.toml with the profile `stub`."""
    text = TOML.format(vllm_args=vllm_args, qps=qps, boots=boots, contexts=list(contexts), duration_s=duration_s)
    return text + more
