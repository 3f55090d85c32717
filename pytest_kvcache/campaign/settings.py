"""Options checked against the catalogue: everything a run needs to know before anything boots."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvcache.campaign import deployments
from pytest_kvcache.config import project
from pytest_kvcache.config.attach import Attach
from pytest_kvcache.config.options import Options
from pytest_kvcache.config.profile import Profile
from pytest_kvcache.engine import image
from pytest_kvcache.engine.container import BindMount, parse_mount
from pytest_kvcache.engine.named import name_of
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.serving.tier import Tier, tier_launcher
from pytest_kvcache.telemetry import revision as revisions
from pytest_kvcache.telemetry.hardware import usable_gpus
from pytest_kvcache.tiers import catalogue
from pytest_kvcache.tiers.catalogue import Catalogue
from pytest_kvcache.verdict.paired import PAIRS_AT_LOOK

CPU_PROFILE, GPU_PROFILE = "cpu-tiny", "qwen3-8b"
#: Launcher of deployments that stand.
ATTACH = "attach"
#: Launcher that may start load nodes of its own.
RAY = "ray"


@dataclass(frozen=True)
class Settings:
    """A checked configuration.

    Args:
        options: As they were asked for.
        catalogue: All profiles and tiers.
        profile: The one to run.
        tiers: Those to run, in order.
        other: The catalogue of `--kv-against git:…`, None without.
        mounts: What containers of an image get from this machine.
        attached: Deployment that stands for a tier, by the tier's name; empty where pairs are booted.
    """

    options: Options
    catalogue: Catalogue
    profile: Profile
    tiers: tuple[Tier, ...]
    other: Catalogue | None = None
    mounts: tuple[BindMount, ...] = ()
    attached: Mapping[str, Attach] = field(default_factory=dict)

    @property
    def attaches(self) -> bool:
        """Whether deployments that stand are measured, and nothing is booted."""
        return self.profile.launcher == ATTACH

    def deployment(self, tier: Tier) -> Attach:
        """Return the deployment that stands for a tier.

        Raises:
            ConfigError: None was named.
        """
        if tier.name not in self.attached:
            raise deployments.missing(tier.name)
        return self.attached[tier.name]

    @property
    def family(self) -> int:
        """Number of declared gates: all tiers and contexts, whatever this session selects (docs/verdicts.md)."""
        return self.catalogue.declared_gates(self.profile)

    def launched(self, profile: Profile) -> Profile:
        """Return a profile with the launcher that was asked for in place of its own."""
        return with_launcher(profile, self.options.launcher)

    def engine_of(self, profile: Profile) -> str | None:
        """Return the name of the engine that serves a profile, None for the one that `setup` makes."""
        return name_of(self.options.engine, profile)

    @property
    def images(self) -> tuple[str, ...]:
        """The names of all images that the session boots, without `image:`."""
        engines = [self.engine_of(self.profile), self.options.against]
        if self.other is not None:
            engines.append(self.engine_of(self.other.profile(self.profile.name)))
        named = (name.removeprefix(image.PREFIX) for name in engines if name and name.startswith(image.PREFIX))
        return tuple(dict.fromkeys(named))

    def asked_by_name(self, tier: Tier) -> bool:
        """Whether --tier names it: then it must run, and not be skipped."""
        return tier.name in self.options.tiers


def resolve(options: Options) -> Settings:
    """Read and check all configuration.

    Raises:
        ConfigError: With file or option, key and what is allowed.
    """
    known = catalogue.load(options.config)
    default = GPU_PROFILE if usable_gpus(os.environ) else CPU_PROFILE
    profile = with_launcher(known.profile(options.profile or default), options.launcher)
    profile.workload.check()
    _check_gains(profile, known)
    _check_against(options)
    tiers = tuple(known.select(options.tiers, option=options.tier_option))
    _check_launchers(profile, tiers, known, options)
    _check_load_nodes(profile, tiers, options)
    deployments.check_options(options, attaches=profile.launcher == ATTACH)
    attached: Mapping[str, Attach] = {}
    if profile.launcher == ATTACH:
        attached = deployments.named(
            options.addresses, known, tiers, asked=options.tiers, tier_option=options.tier_option
        )
    settings = Settings(
        options=options,
        catalogue=known,
        profile=profile,
        tiers=tiers,
        other=_other(options, profile.name, tiers),
        mounts=tuple(parse_mount(text, "kv_image_mounts") for text in options.image_mounts),
        attached=attached,
    )
    look = image.check if options.pull == "never" else image.find
    for text in settings.images:
        look(text, gpus=profile.gpus_per_server > 0)
    return settings


def with_launcher(profile: Profile, name: str | None) -> Profile:
    """Return a profile with another launcher, or as it is where `name` is None."""
    return profile if name is None else profile.model_copy(update={"launcher": name})


def _check_launchers(profile: Profile, tiers: Sequence[Tier], known: Catalogue, options: Options) -> None:
    named = "--kv-launcher" if options.launcher else f"profiles.{profile.name}.launcher"
    wanted = {profile.launcher: named, **{tier_launcher(tier): f"tiers.{tier.name}.launcher" for tier in tiers}}
    for name, where in wanted.items():
        if name is not None:
            launchers.found(name, where=where, folder=known.folder)
        if name == ATTACH != profile.launcher:
            raise ConfigError(
                "attach holds for a session: pairs that are booted beside it would not be told from others' traffic",
                where=where,
                todo="leave it out, and name the tiers that stand with --kv-launcher attach --tier NAME",
            )


def _check_load_nodes(profile: Profile, tiers: Sequence[Tier], options: Options) -> None:
    on_ray = RAY in {tier_launcher(tier) or profile.launcher for tier in tiers}
    if options.load_nodes and on_ray and profile.ray is not None and profile.ray.load_nodes:
        raise ConfigError(
            f"names load nodes, and the launcher {RAY} starts {profile.ray.load_nodes} of its own",
            where="--kv-load-node",
            todo=f"leave out either this or profiles.{profile.name}.ray.load_nodes",
        )


def _check_gains(profile: Profile, known: Catalogue) -> None:
    for gain in profile.gates.declared_gains():
        for name in (gain.tier, gain.over):
            if name not in known.tiers:
                raise ConfigError(
                    f"unknown tier {name!r}; known: {', '.join(known.tiers)}",
                    where=f"profiles.{profile.name}.gates.gains.{gain.tier} over {gain.over}",
                )


def _check_against(options: Options) -> None:
    least = 2 * PAIRS_AT_LOOK[0]
    if options.against is not None and options.boots is not None and options.boots < least:
        raise ConfigError(
            f"{options.boots} cannot decide A against B: the first look is after {least} boots, "
            f"{PAIRS_AT_LOOK[0]} of each",
            where="--kv-boots",
            todo=f"allow {', '.join(str(2 * pairs) for pairs in PAIRS_AT_LOOK)} or more, or leave it out",
        )
    if options.against is None or options.against.startswith(("git:", image.PREFIX)):
        return
    if not (Path(options.against) / "bin" / "python").exists():
        raise ConfigError(
            f"{options.against} is no engine environment (no bin/python)",
            where="--kv-against",
            todo="make one with `pytest-kvcache setup --vllm VERSION --lmcache VERSION`, whose path --path prints",
        )


def _other(options: Options, profile: str, tiers: Sequence[Tier]) -> Catalogue | None:
    """Return the catalogue of another revision of kvcache.toml, checked like ours."""
    if options.against is None or not options.against.startswith("git:"):
        return None
    revision = options.against.removeprefix("git:")
    paths = [options.config] if options.config else project.candidates(options.rootdir)
    for path in paths:
        content = revisions.show(path, revision)
        if content is not None:
            break
    else:
        raise ConfigError(f"{paths[0]} is not there at revision {revision!r}", where="--kv-against")
    where = f"{revision}:{path.name}"
    other = catalogue.parse(content, source=path, where=where)
    missing = [f"profile {profile!r}"] if profile not in other.profiles else []
    missing += [f"tier {tier.name!r}" for tier in tiers if tier.name not in other.tiers]
    if missing:
        raise ConfigError(f"has no {', '.join(missing)}", where=where, todo="there is nothing to compare with")
    other.profile(profile).workload.check()
    return other
