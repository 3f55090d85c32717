"""What a run leaves in its folder; a test holds this list against the folder of a whole session."""

from __future__ import annotations

#: Files below `.kvcache/runs/ID/`, as patterns, each with what it has.
FILES = {
    "chart.svg": "The article's chart: processing speed, mean TTFT and decode throughput against context length, one "
    "line for each tier. It is there where the session measured more than one context length.",
    "report.html": "The report of the session, one page for a browser: charts, verdicts, timelines, ledger.",
    "verdicts.json": "What each gate came to, with old, new, interval and margin; the report reads it.",
    "details.txt": "All tables of the session, also those that the terminal does not show.",
    "TIER/boot-N/probes.json": "What the probes found before the load: cold start, cross-instance hits, integrity.",
    "TIER/boot-N/gpus.parquet": "One row for each sample of each GPU, with its node; only where servers are "
    "given GPUs.",
    "TIER/boot-N/gpus.jsonl": "The samples of a run that was killed before the table was made.",
    "TIER/boot-N/logs/COMPONENT.log": "The whole output of a component: each vLLM server, LMCache, the router, the "
    "storage.",
    "TIER/boot-N/context-M/plan.json": "What the load process was told to send.",
    "TIER/boot-N/context-M/load.json": "What the load process says of itself: when the clock started, how late sends "
    "were.",
    "TIER/boot-N/context-M/load.log": "The output of the load process, with its progress.",
    "TIER/boot-N/context-M/requests.parquet": "One row for each request.",
    "TIER/boot-N/context-M/summary.csv": "The CSV file of LMCache's `multi-round-qa.py`; only in mode compat.",
    "TIER/boot-N/context-M/run.json": "All facts of one load, listed below.",
}

#: Keys of `run.json`, each with what it has.
RUN_JSON = {
    "account": "Prompt tokens by source, those that were expected, and what was stored and loaded, as the exact gate "
    "compares them.",
    "balancer": "What stood in front of the servers: kind, policy, version, and the time that it adds to a request.",
    "boot_s": "Seconds from the first process to a pair that is ready.",
    "canary": "How fast the machine was beside the load: seconds of a matrix product and of a storage read.",
    "commands": "The command line of each component.",
    "comparability": "The keys that must be equal in a run and in its baseline.",
    "engine_lacks": "What the engine's version cannot tell, and what is lost by it.",
    "environment": "Names of variables that were withheld and of those of note that were passed, without values.",
    "estimates": "The figures of the load.",
    "explanation": "Which part of TTFT moved; only where the verdict is regressed or improved.",
    "faults": "Why no verdict may rest on the run; an empty list for a valid one.",
    "gpus": "What the samples of the GPUs say; only where servers are given GPUs.",
    "label": "The tier as outputs show it, with the words stand-in where it is one.",
    "launcher": "What booted the servers, and where they ran.",
    "load": "What the load process says of itself.",
    "other_work": "How much of the processors was used by the run, by the kernel and by others; in `nodes` the same of "
    "each other machine of servers.",
    "proof": "The ledger of prompt tokens, counters before and after, expected hits, and where TTFT went.",
    "reference_summary": "The summary as LMCache's `multi-round-qa.py` prints it; only in mode compat.",
    "session": "The profile's name, the machine's, and the commit of the project.",
    "settings": "The workload, and where it was sent.",
    "suspicions": "What may have spoilt the figures of a run that is valid.",
    "tier": "The tier's name.",
    "versions": "Versions of Python, vLLM, LMCache, torch, the router and the storage.",
}
