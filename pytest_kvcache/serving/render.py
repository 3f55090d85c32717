"""Show a run without starting it: every file and command line, as a shell script or as JSON."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pytest_kvcache.config import environment
from pytest_kvcache.config.balancer import MEANINGS
from pytest_kvcache.config.cautions import cautions
from pytest_kvcache.config.profile import TINY_MODEL, Profile
from pytest_kvcache.engine.base import BaseEngine
from pytest_kvcache.engine.container import same_path
from pytest_kvcache.engine.image import ImageEngine
from pytest_kvcache.runs import containers
from pytest_kvcache.serving import versions as older
from pytest_kvcache.serving.component import Component
from pytest_kvcache.serving.launchers.docker import container_of
from pytest_kvcache.serving.places import EngineTools, Place, all_at
from pytest_kvcache.serving.plan import ServingPlan, build_plan
from pytest_kvcache.serving.tier import PlacedTier, Tier, TierContext
from pytest_kvcache.telemetry.allotment import allotment

#: Stand-ins for the id and the ports that a run chooses when it starts.
_RUN, _FIRST_PORT = "RUN", 8000
_SCRATCH = Path("/tmp") / f"kvc-{_RUN}"  # noqa: S108 - shown, not used


class _ProgramsOfPath:
    """Plain program names, which a shell would find, of a current engine."""

    @property
    def versions(self) -> Mapping[str, str]:
        return {}

    def vllm_launch(self, model: str) -> tuple[str, ...]:
        return ("vllm", "serve", model)

    def program(self, name: str) -> str:
        return name


def render(
    profile: Profile, tier: Tier, engine: BaseEngine | None, environ: Mapping[str, str], *, as_json: bool
) -> str:
    """Return every file and command of a run of `profile` on `tier`.

    Args:
        profile: Profile to serve.
        tier: Tier to serve with.
        engine: Engine whose programs are named, in containers where it is an image; None for plain names.
        environ: Environment that credentials would come from; none of them is shown.
        as_json: Whether to return `{"components": [{"name", "place", "argv", "env", "files"}], …}`, not a script.
    """
    ports = itertools.count(_FIRST_PORT)
    context = TierContext(
        profile=profile,
        run_id=_RUN,
        scratch=_SCRATCH,
        storage_home=Path("/tmp"),  # noqa: S108 - shown, not used
        tool=lambda name: engine.find(name) if engine else Path(shutil.which(name) or name),
        port=lambda: next(ports),
        environ={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", **environ},
    )
    reason = tier.unavailable(context)
    tools: EngineTools = engine or _ProgramsOfPath()
    model = Path(profile.model).name if _is_folder(profile) else profile.model
    place = Place(tools=tools, model=model, port=lambda: next(ports), scratch=_SCRATCH)
    placed = tier.placement(place, profile) if isinstance(tier, PlacedTier) else None
    plan = build_plan(profile, tier.plan(context), placed or all_at(place, profile, allotment(environ)))
    if refused := older.refusals(tools.versions, profile, plan.tier.offload):
        missing, todo = older.missing_features(refused, tools.versions)
        reason = reason or f"{missing}; {todo}"
    if isinstance(engine, ImageEngine):
        allotted = allotment(environ) is not None
        contained = (_contained(c, engine, profile, plan, allotted=allotted) for c in plan.components)
        plan = replace(plan, components=tuple(contained))
    kept = {name for component in plan.components for name in component.secret_env}
    away = {name: why for name, why in environment.withheld(environ).items() if name not in kept}
    return _json(plan, reason, away) if as_json else _script(profile, plan, reason, away)


def _contained(
    component: Component, engine: ImageEngine, profile: Profile, plan: ServingPlan, *, allotted: bool
) -> Component:
    """Return a component whose command is the `docker run` of the container that a run starts.

    A run itself also sends the output to a log, and takes secrets from a file, which `docker inspect` does not show.
    """
    if engine.is_local(component.argv[0]):
        return component
    mounts = [same_path(path, writable=True) for path in (_SCRATCH, *plan.tier.folders)]
    if _is_folder(profile):
        mounts.append(same_path(Path("/FOLDER/OF") / Path(profile.model).name))
    container = container_of(
        component,
        engine,
        name=f"{_SCRATCH.name}-{component.name}",
        log=_SCRATCH / f"{component.name}.log",
        secrets=None,
        scratch=_SCRATCH,
        mounts=mounts,
        labels={containers.LABEL: _RUN},
        gpus=profile.gpus_per_server > 0,
        allotted=allotted,
    )
    shown = replace(container, image=engine.reference, argv=component.argv)
    return replace(component, argv=shown.run_argv(sorted(component.secret_env)), env={})


def _is_folder(profile: Profile) -> bool:
    return profile.model == TINY_MODEL or Path(profile.model).is_dir()


def _json(plan: ServingPlan, reason: str | None, away: Mapping[str, str]) -> str:
    components = [
        {
            "name": c.name,
            "stage": c.stage,
            "place": c.place,
            "argv": list(c.argv),
            "env": dict(c.env),
            "secret_env": sorted(c.secret_env),
            "files": {str(path): text for path, text in c.files.items()},
        }
        for c in plan.components
    ]
    return json.dumps(
        {
            "tier": plan.tier.label,
            "unavailable": reason,
            "lacks": list(plan.lacks),
            "withheld": dict(away),
            "base_url": plan.base_url,
            "balancer": plan.balancer.model_dump(mode="json"),
            "turn_urls": list(plan.turn_urls),
            "extra_body": plan.extra_body,
            "folders": [str(folder) for folder in plan.tier.folders],
            "components": components,
        },
        indent=2,
    )


def _script(profile: Profile, plan: ServingPlan, reason: str | None, away: Mapping[str, str]) -> str:
    lines = [f"# profile {profile.name}, tier {plan.tier.label}: what a run starts, in this order."]
    lines += [f"# {_RUN} stands for the run's id; ports are chosen free at each run. {_where(plan)}"]
    if plan.extra_body:
        lines.append(f"# Every request carries {json.dumps(plan.extra_body)}, other ones in each boot.")
    if reason:
        lines.append(f"# This tier cannot run here: {reason}")
    lines += [f"# {line}" for line in plan.lacks]
    lines += [f"# Not from your environment: {name} ({why})" for name, why in away.items()]
    lines += [f"# {line}" for line in cautions(profile, offloads=plan.tier.offload is not None)]
    if away:
        lines.append(f"unset {' '.join(away)}")
    lines += [f"mkdir -p {_SCRATCH} && cd {_SCRATCH}"]
    if _is_folder(profile):
        lines += [f"ln -s FOLDER/OF/{Path(profile.model).name} .  # LMCache must not see an absolute path"]
    lines += [f"mkdir -p {shlex.quote(str(folder))}" for folder in plan.tier.folders]
    for component in plan.components:
        lines += [
            "",
            f"# {component.name}{f', at {component.place}' if component.place else ''}",
            *_component(component),
        ]
    return "\n".join(lines)


def _where(plan: ServingPlan) -> str:
    """Return where requests go, and by which policy."""
    promised = MEANINGS[plan.balancer.promises]
    if plan.turn_urls:
        return f"No balancer: the client takes turns over {' and '.join(plan.turn_urls)}."
    counters = f" Its counters: {plan.balancer_metrics_url}." if plan.balancer_metrics_url else ""
    return f"Requests go to {plan.base_url} ({plan.balancer.label}: {promised}).{counters}"


def _component(component: Component) -> list[str]:
    lines = []
    for path, text in component.files.items():
        lines += [f"cat > {shlex.quote(str(path))} <<'EOF'", text.rstrip("\n"), "EOF"]
    if component.secret_env:
        lines.append(f"# and from the environment: {', '.join(sorted(component.secret_env))}")
    env = [f"{key}={shlex.quote(value)}" for key, value in component.env.items()]
    return [
        *lines,
        " \\\n    ".join([" ".join([*env, component.argv[0]]), *_options(component.argv[1:])]) + " &",
    ]


def _options(argv: tuple[str, ...]) -> list[str]:
    """Put each option and its values on one line."""
    rows: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not rows:
            rows.append([])
        rows[-1].append(shlex.quote(word))
    return [" ".join(row) for row in rows]
