"""What each tier adds to a pair, and what the kernel says of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pytest_kvcache.config.profile import Profile
from pytest_kvcache.serving.render import render
from pytest_kvcache.serving.tier import TierContext
from pytest_kvcache.storage import mounts
from pytest_kvcache.storage.mounts import mount_of
from pytest_kvcache.storage.requirement import Require
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.fs import FsTier
from pytest_kvcache.tiers.l2 import L2Tier
from pytest_kvcache.tiers.s3 import S3Tier
from tests.placed import planned_here

CATALOGUE = catalogue.load(None)
TINY, MP, QWEN = (CATALOGUE.profile(name) for name in ("cpu-tiny", "cpu-tiny-mp", "qwen3-8b"))
MOUNTS = Path(__file__).with_name("data") / "pnfs"
KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "SECRET"}


def context(tmp_path: Path, profile: Profile = TINY, environ: Mapping[str, str] = KEYS) -> TierContext:
    """Return a planning context whose ports count from 9000."""
    ports = iter(range(9000, 9100))
    return TierContext(
        profile=profile,
        run_id="R1",
        scratch=tmp_path,
        storage_home=tmp_path,
        tool=lambda name: Path("/bin") / name,
        port=lambda: next(ports),
        environ=environ,
    )


def test_a_stand_in_is_named(tmp_path: Path) -> None:
    """Without the mount, the pnfs tier of a CPU profile runs on a local folder and its label says so."""
    tier = FsTier(name="pnfs", kind="fs", path=Path("/nowhere"), require="pnfs-rdma")
    plan = tier.plan(context(tmp_path))
    assert tier.unavailable(context(tmp_path)) is None
    assert plan.label.startswith("pnfs (stand-in: ")
    assert plan.folders == (tmp_path / "kvcache-R1-pnfs",)
    assert plan.facts["stand_in"] == "true"


def test_a_gpu_profile_never_stands_in_by_itself(tmp_path: Path) -> None:
    """Without the mount, the pnfs tier of a GPU profile cannot run."""
    tier = FsTier(name="pnfs", kind="fs", path=Path("/nowhere"), require="pnfs-rdma")
    reason = tier.unavailable(context(tmp_path, QWEN))
    assert reason is not None
    assert "/nowhere is not a folder" in reason


def test_a_local_folder_in_the_place_of_pnfs_is_refused(tmp_path: Path) -> None:
    """A path that is there but on no NFS mount, as after a mount that failed, is no stand-in: the tier cannot run."""
    tier = FsTier(name="pnfs", kind="fs", path=tmp_path, require="pnfs-rdma")
    reason = tier.unavailable(context(tmp_path))
    assert reason is not None
    assert 'require = "pnfs-rdma"' in reason
    assert "nothing of NFS is mounted there; mount the export" in reason
    assert "stand-in" not in tier.label(context(tmp_path))


def test_a_plain_folder_tier_needs_no_excuse(tmp_path: Path) -> None:
    """A tier that does not claim pNFS carries its own name, and each run a folder of its own."""
    tier = FsTier(name="nvme", kind="fs", path=tmp_path)
    plan = tier.plan(context(tmp_path))
    assert plan.label == "nvme"
    assert plan.folders == (tmp_path / "kvcache-R1-nvme",)


def test_keys_of_an_existing_bucket_come_from_the_environment_only(tmp_path: Path) -> None:
    """Without keys the tier cannot run; with them they are secret, and the endpoint names the bucket first."""
    tier = S3Tier(name="s3", kind="s3", endpoint="https://s3.example.org", bucket="kv", region="eu-1")
    assert tier.unavailable(context(tmp_path, environ={})) == (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY not set in the environment"
    )
    plan = tier.plan(context(tmp_path))
    assert dict(plan.secret_env) == KEYS
    assert "SECRET" not in repr(plan)
    assert plan.offload is not None
    assert plan.offload.l2_adapter is not None
    assert plan.offload.l2_adapter["s3_endpoint"] == "kv.s3.example.org"
    assert plan.offload.l2_adapter["disable_tls"] is False


def test_a_server_of_our_own_has_random_keys(tmp_path: Path) -> None:
    """Without an endpoint each plan brings an S3 server on loopback whose keys are new and on no command line."""
    tier = S3Tier(name="s3", kind="s3")
    one, two = tier.plan(context(tmp_path)), tier.plan(context(tmp_path))
    assert one.secret_env != two.secret_env
    (server,) = one.storage
    assert f"127.0.0.1:{9000}" in server.argv
    secret = one.secret_env["AWS_SECRET_ACCESS_KEY"]
    assert secret not in " ".join(server.argv) + repr(server)
    assert secret in server.secret_env["RCLONE_AUTH_KEY"]


def test_l2_adapters_need_the_multi_process_mode(tmp_path: Path) -> None:
    """An L2 adapter of LMCache's own cannot run where LMCache is inside vLLM."""
    tier = L2Tier(name="v", kind="lmcache-l2", adapter={"type": "resp", "host": "h", "port": 1})
    assert tier.unavailable(context(tmp_path, MP)) is None
    assert '"mp"' in str(tier.unavailable(context(tmp_path, QWEN)))
    plan = tier.plan(context(tmp_path))
    assert plan.offload is not None
    assert plan.offload.l2_adapter == {"type": "resp", "host": "h", "port": 1}


class Tools:
    """Program names as they are, of an engine of these versions."""

    def __init__(self, versions: Mapping[str, str] = MappingProxyType({})) -> None:
        self.versions = versions

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        """Return vLLM's command."""
        return ("vllm", "serve", model)

    def program(self, name: str) -> str:
        """Return the name."""
        return name


@pytest.mark.parametrize("profile", [TINY, MP, QWEN], ids=lambda p: p.name)
@pytest.mark.parametrize("tier", CATALOGUE.tiers.values(), ids=lambda t: t.name)
def test_everything_binds_to_loopback_on_its_own_port(tmp_path: Path, profile: Profile, tier: FsTier) -> None:
    """No component listens beyond loopback, no two share a port, and no secret is on a command line."""
    ctx = context(tmp_path, profile)
    plan = planned_here(profile, tier.plan(ctx), Tools(), port=ctx.port, scratch=tmp_path)
    words = [w for c in plan.components for w in c.argv]
    hosts = [words[i + 1] for i, w in enumerate(words) if w in {"--host", "--http-host", "--prometheus-host"}]
    ports = [words[i + 1] for i, w in enumerate(words) if w.endswith("port") and w.startswith("--")]
    assert set(hosts) == {"127.0.0.1"}
    assert len(set(ports)) == len(ports) >= 4
    secrets = [v for c in plan.components for v in c.secret_env.values()]
    assert not any(secret in word for secret in secrets for word in words)
    expected = {"gpu": 3, "cpu": 5, "s3": 6, "pnfs": 5} if profile is MP else {"gpu": 3, "cpu": 3, "s3": 4, "pnfs": 3}
    assert len(plan.components) == expected[tier.name]


def test_an_lmcache_inside_vllm_is_a_component_that_can_be_read() -> None:
    """Each rank of each server has an address, in a folder that is made for the server; the YAML has none of it."""
    profile = QWEN.model_copy(update={"vllm_args": ("--tensor-parallel-size", "2"), "gpus_per_server": 2})
    ports = iter(range(9000, 9100))
    ctx = context(Path("/s"), profile)
    tier = CATALOGUE.tiers["cpu"].plan(ctx)
    plan = planned_here(profile, tier, Tools(), port=lambda: next(ports), scratch=Path("/s"))
    inside = {name: url for name, url in plan.metrics_urls.items() if name.startswith("lmcache")}
    assert list(inside) == ["lmcache-0", "lmcache-0.1", "lmcache-1", "lmcache-1.1"]
    assert inside["lmcache-1.1"] == "http+unix://%2Fs%2Flmcache-1%2Fapi_2/metrics"
    server = next(c for c in plan.components if c.name == "vllm-1")
    assert server.folders == (Path("/s/lmcache-1"),)
    assert server.env["PROMETHEUS_MULTIPROC_DIR"] == "/s/lmcache-1"
    assert server.env["LMCACHE_INTERNAL_API_SERVER_INCLUDE_INDEX_LIST"] == "1,2"
    assert "internal_api" not in "".join(server.files.values())


ARTICLE = """\
local_cpu: True
max_local_cpu_size: 100
save_decode_cache: True
remote_storage_plugins: ["fs"]
extra_config:
  remote_storage_plugin.fs.base_path: "/mnt/kvcache"
"""


def test_the_articles_yaml() -> None:
    """The pnfs tier of qwen3-8b writes the article's keys and values in order; the folder is one of the run's own.

    One key of ours comes by the environment: the article's two servers write one `.tmp` file for the same chunk, and
    stores fail (`tiers.fs.OWN_TMP`).
    """
    shown = json.loads(render(QWEN, CATALOGUE.tiers["pnfs"], None, {}, as_json=True))
    folder = "/mnt/kvcache/kvcache-RUN-pnfs"
    servers = [c for c in shown["components"] if c["files"]]
    assert len(servers) == 2
    for index, server in enumerate(servers):
        (text,) = server["files"].values()
        article = yaml.safe_load(ARTICLE.replace("/mnt/kvcache", folder))
        assert list(yaml.safe_load(text).items()) == list(article.items())
        assert json.loads(server["env"]["LMCACHE_EXTRA_CONFIG"]) == {
            "remote_storage_plugin.fs.base_path": folder,
            "fs_connector_relative_tmp_dir": f".tmp-{index}",
        }


@pytest.mark.parametrize(
    ("adapter", "own"),
    [
        ({"type": "fs", "base_path": "/kv"}, [".tmp-0", ".tmp-1"]),
        ({"type": "fs_native", "base_path": "/kv"}, [".tmp-0", ".tmp-1"]),
        ({"type": "fs", "base_path": "/kv", "relative_tmp_dir": "mine"}, ["mine", "mine"]),
        ({"type": "resp", "host": "h", "port": 1}, [None, None]),
    ],
    ids=["fs", "native", "set", "no-files"],
)
def test_servers_on_one_folder_write_in_folders_of_their_own(
    tmp_path: Path, adapter: dict[str, Any], own: list[str | None]
) -> None:
    """Each LMCache server that writes files gets a temporary folder of its own; what the user has set stays."""
    ctx = context(tmp_path, MP)
    tier = L2Tier(name="v", kind="lmcache-l2", adapter=adapter)
    plan = planned_here(MP, tier.plan(ctx), Tools(), port=ctx.port, scratch=tmp_path)
    lines = [c.argv for c in plan.components if c.name.startswith("lmcache")]
    found = [json.loads(argv[argv.index("--l2-adapter") + 1]) for argv in lines]
    assert [each.get("relative_tmp_dir") for each in found] == own


def test_a_value_that_looks_like_a_placeholder_is_the_users(tmp_path: Path) -> None:
    """Braces in a path of the user's are part of the path."""
    offload = FsTier(name="x", kind="fs", path=tmp_path / "{}{0}", stand_in="never").plan(context(tmp_path)).offload
    assert offload is not None
    adapter = offload.of_server(1).l2_adapter
    assert adapter == {
        "type": "fs",
        "base_path": str(tmp_path / "{}{0}" / "kvcache-R1-x"),
        "relative_tmp_dir": ".tmp-1",
    }


def test_render_shows_no_secret() -> None:
    """Rendering an S3 tier names the variables that hold keys and not their values."""
    tier = S3Tier(name="s3", kind="s3", endpoint="https://s3.example.org", bucket="kv")
    for as_json in (True, False):
        text = render(QWEN, tier, None, KEYS, as_json=as_json)
        assert "AWS_SECRET_ACCESS_KEY" in text
        assert 'SECRET"' not in text
        assert "AKID" not in text


def fake_proc(tmp_path: Path, sample: str, line: str) -> Path:
    """Return a /proc/self with this mount and the mountstats of a sample."""
    root = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"
    (tmp_path / "mountinfo").write_text(f"{root}\n{line}\n")
    (tmp_path / "mountstats").write_text((MOUNTS / f"{sample}.mountstats").read_text())
    return tmp_path


def test_a_real_pnfs_mount_over_rdma(tmp_path: Path) -> None:
    """An NFSv4.2 mount over RDMA with a layout driver is what the tier's name promises."""
    line = "90 21 0:50 / /mnt/kv rw - nfs4 10.0.0.1:/kv rw,vers=4.2,proto=rdma,port=20049"
    mount = mount_of(Path("/mnt/kv/sub"), proc=fake_proc(tmp_path, "pnfs-flexfiles-rdma.after", line))
    assert mount.describe() == "nfs v4.2 over rdma, LAYOUT_FLEX_FILES"


@pytest.mark.parametrize(
    ("sample", "met", "missing"),
    [
        ("plain-v3-rdma", [], "older than NFSv4.1"),
        ("plain-v4.0-tcp", [], "older than NFSv4.1"),
        ("plain-v4.2-tcp", ["nfs4.1"], "no pNFS layout"),
        ("plain-rdma-quiet", ["nfs4.1"], "no pNFS layout"),
        ("pnfs-flexfiles-tcp-v41", ["nfs4.1", "pnfs"], "not over RDMA"),
        ("pnfs-block-rdma-quiet", ["nfs4.1", "pnfs"], "block devices"),
        ("pnfs-scsi-fallback-rdma", ["nfs4.1", "pnfs"], "block devices"),
        ("pnfs-flexfiles-rdma", ["nfs4.1", "pnfs", "pnfs-rdma"], ""),
    ],
)
def test_what_each_mount_satisfies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: str, met: list[Require], missing: str
) -> None:
    """Each requirement is met by the mounts that have the properties, and an unmet one says which is missing."""
    line = (MOUNTS / f"{sample}.mounts").read_text().splitlines()[-1].split()
    text = f"90 21 0:50 / {tmp_path} rw - {line[2]} {line[0]} {line[3]}"
    proc = fake_proc(tmp_path, f"{sample}.after", text)
    stats = (proc / "mountstats").read_text().replace(f"on {line[1]} with", f"on {tmp_path} with")
    (proc / "mountstats").write_text(stats)
    monkeypatch.setattr(mounts, "PROC", proc)
    every: list[Require] = ["none", "nfs4.1", "pnfs", "pnfs-rdma"]
    tiers = {r: FsTier(name="x", kind="fs", path=tmp_path, require=r) for r in every}
    reasons = {r: tier.unavailable(context(tmp_path)) for r, tier in tiers.items()}
    assert [r for r, reason in reasons.items() if reason is None] == ["none", *met]
    assert missing in (reasons["pnfs-rdma"] or "")
    if missing:
        assert tiers["pnfs-rdma"].label(context(tmp_path)).startswith("x (nfs v")


def test_a_mount_that_fell_back_to_tcp(tmp_path: Path) -> None:
    """The same over TCP, without pNFS, is described as what it is."""
    line = "90 21 0:50 / /mnt/kv\\040x rw - nfs4 10.0.0.1:/kv rw,vers=4.2,proto=tcp"
    mount = mount_of(Path("/mnt/kv x"), proc=fake_proc(tmp_path, "plain-v4.2-tcp.after", line))
    assert mount.describe() == "nfs v4.2 over tcp, no pNFS"


def test_a_folder_on_the_root_file_system(tmp_path: Path) -> None:
    """The deepest mount that holds a folder is the one it is on; others do not count."""
    line = "90 21 0:50 / /mnt/kv rw - nfs4 10.0.0.1:/kv rw,vers=4.2,proto=rdma"
    proc = fake_proc(tmp_path, "none", line)
    assert mount_of(Path("/mnt/kvcache"), proc=proc).fstype == "ext4"


@pytest.mark.parametrize(
    ("endpoint", "host", "tls"),
    [
        ("https://s3.example.org", "kv.s3.example.org", True),
        ("https://s3.example.org/", "kv.s3.example.org", True),
        ("http://minio:9000", "kv.minio:9000", False),
        ("http://minio:9000//", "kv.minio:9000", False),
        ("HTTPS://S3.example.org:443", "kv.S3.example.org:443", True),
    ],
)
def test_endpoints_that_lmcache_can_use(tmp_path: Path, endpoint: str, host: str, tls: bool) -> None:
    """Host and port reach LMCache in both of its modes, with the bucket in front and nothing behind."""
    offload = S3Tier(name="s", kind="s3", endpoint=endpoint, bucket="kv").plan(context(tmp_path)).offload
    assert offload is not None
    assert offload.l2_adapter is not None
    assert offload.l2_adapter["s3_endpoint"] == host
    assert offload.l2_adapter["disable_tls"] is not tls
    assert offload.engine_config["remote_url"] == f"s3://{host}"


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("https://host/s3", "must have no path: LMCache takes host and port only; write 'https://host'"),
        ("https://host:9000/a/b/", "must have no path: LMCache takes host and port only; write 'https://host:9000'"),
        ("https://host?x=PASSWORD", "must have no query"),
        ("https://host/?x=1", "must have no query"),
        ("https://host#x", "must have no fragment"),
        ("https://user:PASSWORD@host", "must not hold credentials"),
        ("https://user@host", "must not hold credentials"),
        ("host:9000", "write http(s)://host[:port]"),
        ("host", "write http(s)://host[:port]"),
        ("//host", "write http(s)://host[:port]"),
        ("ftp://host", "write http(s)://host[:port]"),
        ("s3://kv.host", "is the URL of a bucket"),
        ("https://", "write http(s)://host[:port]"),
        ("https://:9000", "write http(s)://host[:port]"),
        ("https://host:", "has a port that is none"),
        ("https://host:port", "has a port that is none"),
        ("https://host:99999", "has a port that is none"),
        ("https://host:0", "has a port that is none"),
        ("https://[::1]:9000", "no name before which the bucket's can stand"),
        ("https://ho st", "no name before which the bucket's can stand"),
        ("", "write http(s)://host[:port]"),
    ],
)
def test_endpoints_that_are_refused(endpoint: str, says: str) -> None:
    """What LMCache would drop or misread is refused with what to write, and no secret is repeated."""
    with pytest.raises(ValidationError) as refused:
        S3Tier(name="s", kind="s3", endpoint=endpoint, bucket="kv")
    (error,) = refused.value.errors()
    assert says in error["msg"]
    assert error["loc"] == ("endpoint",)
    assert "PASSWORD" not in error["msg"]


@pytest.mark.parametrize("bucket", ["", "a/b", "kv?x", "kv:1", " kv", "a@b"])
def test_a_bucket_that_is_no_label_is_refused(bucket: str) -> None:
    """The bucket's name becomes the beginning of a host name: what would end that is refused."""
    with pytest.raises(ValidationError, match="no name of a bucket"):
        S3Tier(name="s", kind="s3", endpoint="https://host", bucket=bucket)
