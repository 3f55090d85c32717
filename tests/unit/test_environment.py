"""What of an environment reaches the processes of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.config import environment
from pytest_kvcache.serving.render import render
from tests.placed import planned_here
from tests.unit.test_tiers import CATALOGUE, KEYS, QWEN, TINY, context

GONE = (
    "LMCACHE_CHUNK_SIZE", "LMCACHE_CONFIG_FILE", "LMCACHE_LOG_LEVEL", "LMCACHE_FORCE_SKIP_SAVE", "VLLM_PORT",
    "VLLM_HOST_IP", "VLLM_API_KEY", "VLLM_PLUGINS", "VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_LEVEL", "VLLM_USE_V1",
    "VLLM_SERVER_DEV_MODE", "VLLM_LOG_STATS_INTERVAL", "VLLM_RPC_BASE_PATH", "VLLM_KV_CACHE_LAYOUT",
    "VLLM_OF_TOMORROW", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir", "PYTHONPATH", "PYTHONHASHSEED",
    "PYTHONHOME", "VIRTUAL_ENV", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "RCLONE_BWLIMIT", "RANK", "WORLD_SIZE",
    "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "TORCHDYNAMO_DISABLE", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING", "FORCE_COLOR",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "WEB_CONCURRENCY", "OTEL_EXPORTER_OTLP_ENDPOINT", "PYTEST_ADDOPTS",
    "RAY_ADDRESS", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONWARNINGS",
)  # fmt: skip
STAY = (
    "PATH", "HOME", "USER", "LANG", "HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "https_proxy",
    "NO_PROXY", "SSL_CERT_FILE", "AWS_CA_BUNDLE", "NCCL_SOCKET_IFNAME", "UCX_TLS", "CUDA_HOME",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "VLLM_CACHE_ROOT", "VLLM_NCCL_SO_PATH", "TRITON_CACHE_DIR", "XDG_CACHE_HOME",
    "TORCHINDUCTOR_CACHE_DIR", "LMCACHE_RESP_PASSWORD", "MOONCAKE_CONFIG_PATH", "STUB_LOOKUP",
)  # fmt: skip


class Tools:
    """Programs by their names, of current versions."""

    versions: ClassVar[Mapping[str, str]] = {}

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return a command."""
        return ("vllm", "serve", model)

    def program(self, name: str) -> str:
        """Return the name."""
        return name


@pytest.mark.parametrize("name", GONE)
def test_withheld(name: str) -> None:
    """What would change a run behind its profile's back reaches no process, and has a reason."""
    assert environment.inherited({name: "1", "PATH": "/bin"}) == {"PATH": "/bin"}
    assert environment.withheld({name: "1"})[name]


@pytest.mark.parametrize("name", STAY)
def test_passed(name: str) -> None:
    """Facts of the machine and of its user pass as they are."""
    assert environment.inherited({name: "x"}) == {name: "x"}


@given(st.dictionaries(st.sampled_from([*GONE, *STAY]), st.text("secret", min_size=6, max_size=9)))
def test_names_only(environ: dict[str, str]) -> None:
    """Each variable is passed or withheld, never both, and no value is in what is kept of them."""
    facts = environment.facts(environ)
    assert set(environment.inherited(environ)) | set(facts["withheld"]) == set(environ)
    assert not set(environment.inherited(environ)) & set(facts["withheld"])
    text = json.dumps(facts) + environment.inheritance_line(environ)
    assert not any(value in text for value in environ.values())


def test_what_the_product_sets_no_profile_sets(tmp_path: Path) -> None:
    """Every variable of a plan that comes from us is refused in a profile, and wins over whatever it would be."""
    for profile, mode, tier in product((TINY, QWEN), ("in-process", "mp"), ("gpu", "cpu", "s3", "pnfs")):
        bare = profile.model_copy(update={"env": {}, "lmcache_mode": mode})
        plan = CATALOGUE.tiers[tier].plan(context(tmp_path, bare))
        made = planned_here(bare, plan, Tools(), port=iter(range(1, 99)).__next__, scratch=tmp_path)
        ours = {name for c in made.components if c.stage == "servers" for name in c.env}
        assert ours - dict(environment.refusals(ours)).keys() == set()
        odd = bare.model_copy(update={"env": dict.fromkeys(ours, "odd")})
        again = planned_here(odd, plan, Tools(), port=iter(range(1, 99)).__next__, scratch=tmp_path)
        for before, after in zip(made.components, again.components, strict=True):
            assert {name: after.env[name] for name in before.env} == dict(before.env)


@pytest.mark.parametrize(
    "name",
    [
        "LMCACHE_CONFIG_FILE", "LMCACHE_CHUNK_SIZE", "LMCACHE_MAX_LOCAL_CPU_SIZE", "LMCACHE_REMOTE_URL", "TMPDIR",
        "PROMETHEUS_MULTIPROC_DIR", "PYTHONHASHSEED", "PYTHONPATH", "VLLM_PORT", "VLLM_API_KEY", "VLLM_PLUGINS",
        "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_API_KEY",
    ],
)  # fmt: skip
def test_refused_in_a_profile(name: str) -> None:
    """What would break a run, and any secret, is refused in a profile's env."""
    assert dict(environment.refusals([name]))[name]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "NCCL_DEBUG", "VLLM_LOGGING_LEVEL"])
def test_allowed_in_a_profile(name: str) -> None:
    """Settings of engines are what a profile's env is for."""
    assert list(environment.refusals([name])) == []


def test_render_shows_what_is_withheld() -> None:
    """The script names it with the key to use, and takes it out of the shell that runs it; credentials stay."""
    environ = {**KEYS, "LMCACHE_CHUNK_SIZE": "64", "CUDA_VISIBLE_DEVICES": "4,5"}
    script = render(QWEN, CATALOGUE.tiers["s3"], None, environ, as_json=False)
    assert "# Not from your environment: LMCACHE_CHUNK_SIZE (set chunk_tokens)" in script
    assert "\nunset CUDA_VISIBLE_DEVICES LMCACHE_CHUNK_SIZE\n" in script
    data = json.loads(render(QWEN, CATALOGUE.tiers["pnfs"], None, environ, as_json=True))
    assert "LMCACHE_CHUNK_SIZE" in data["withheld"]
    assert [c["env"]["CUDA_VISIBLE_DEVICES"] for c in data["components"] if c["stage"] == "servers"] == ["4", "5"]
