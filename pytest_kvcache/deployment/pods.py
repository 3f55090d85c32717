"""Pods of a deployment, found by their labels through the API server of Kubernetes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_kvcache.config.attach import Kubernetes
from pytest_kvcache.errors import BootError, ConfigError
from pytest_kvcache.redaction import redacted

_EXTRA = "pip install 'pytest-kvcache[kubernetes]'"
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Pod:
    """A pod, as its deployment is told from another one.

    Args:
        name: Name of the pod.
        uid: Kubernetes' own id; a pod that is made anew under the same name has another one.
        ip: Address of the pod in the cluster.
        node: Node that it runs on.
        images: Image of each container, with its digest where the node tells it.
        restarts: How often containers of the pod were started again.
        ports: Numbers of the named ports of all containers.
        ready: Whether it takes requests.
        ending: Whether it is being deleted.
    """

    name: str
    uid: str
    ip: str
    node: str
    images: tuple[str, ...]
    restarts: int
    ports: Mapping[str, int] = field(default_factory=dict)
    ready: bool = True
    ending: bool = False

    def port(self, wanted: int | str) -> int:
        """Return the number of a port.

        Raises:
            BootError: No container of the pod has a port of that name.
        """
        if isinstance(wanted, int):
            return wanted
        if wanted not in self.ports:
            known = ", ".join(self.ports) or "none"
            raise BootError(f"has no port {wanted!r}; named ports: {known}", where=f"pod {self.name}")
        return self.ports[wanted]


def listed(wanted: Kubernetes) -> tuple[Pod, ...]:
    """Return all pods with the labels, in the order of their names.

    Raises:
        BootError: The API server does not answer, or refuses.
        ConfigError: The client is not installed, or the kubeconfig cannot be used.
    """
    text = _ask(wanted)
    return tuple(sorted((_pod(item) for item in json.loads(text)["items"]), key=lambda pod: pod.name))


def serving(wanted: Kubernetes) -> tuple[Pod, ...]:
    """Return the pods that serve, all of them ready.

    Raises:
        BootError: There is none, or not all of them are ready: the deployment is on its way to another state.
        ConfigError: As for `listed`.
    """
    found = listed(wanted)
    where = f"Kubernetes, namespace {wanted.namespace}, {wanted.selector}"
    if not found:
        raise BootError("no pod has these labels", where=where, todo="compare `kubectl get pods --show-labels`")
    unready = [pod.name + (" (ending)" if pod.ending else "") for pod in found if pod.ending or not pod.ready]
    if unready:
        raise BootError(
            f"{len(unready)} of {len(found)} pods are not ready: {', '.join(unready)}",
            where=where,
            todo="wait until the rollout is over: kubectl rollout status",
        )
    return found


def changes(before: Sequence[Pod], after: Sequence[Pod]) -> list[str]:
    """Return what became of a deployment between two readings, a line each; empty where it stayed as it was."""
    old, new = ({pod.uid: pod for pod in pods} for pods in (before, after))
    gone = [pod for uid, pod in old.items() if uid not in new]
    come = [pod for uid, pod in new.items() if uid not in old]
    found = []
    if len(old) != len(new):
        found.append(
            f"the deployment was scaled from {len(old)} to {len(new)} pods during the run (gone: {_named(gone)}; "
            f"new: {_named(come)})"
        )
    elif gone:
        moved = f"{_named(gone)} -> {_named(come)}"
        images = {i for pod in gone for i in pod.images} != {i for pod in come for i in pod.images}
        how = "by another image: a rolling restart" if images else "by others: a rolling restart, or a pod that moved"
        found.append(f"{len(gone)} of {len(old)} pods were replaced during the run {how} ({moved})")
    for uid, pod in old.items():
        now = new.get(uid)
        if now is None:
            continue
        if now.restarts != pod.restarts:
            found.append(
                f"pod {pod.name}: its containers were started again during the run "
                f"({pod.restarts} -> {now.restarts} restarts)"
            )
        elif now.ending:
            found.append(f"pod {pod.name} is being ended: a rolling restart, or the deployment is scaled down")
        elif not now.ready:
            found.append(f"pod {pod.name} is no longer ready")
        elif now.images != pod.images:
            found.append(f"pod {pod.name}: its image changed during the run ({', '.join(now.images)})")
    return found


def _named(pods: Sequence[Pod]) -> str:
    return ", ".join(f"{pod.name} on {pod.node}" for pod in pods) or "none"


def _ask(wanted: Kubernetes) -> str:
    try:
        from kubernetes import client, config  # noqa: PLC0415 - an extra, and heavy
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415
        from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"pods are found by the package kubernetes: {error}", where="attach", todo=_EXTRA) from None
    where = str(wanted.kubeconfig or "kubeconfig")
    loader: Any = config  # its functions have no types
    try:
        if wanted.kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            settings = client.Configuration()
            loader.load_incluster_config(client_configuration=settings)
            api = client.ApiClient(settings)
        else:
            path = str(wanted.kubeconfig) if wanted.kubeconfig else None
            api = loader.new_client_from_config(config_file=path, context=wanted.context or None)
    except (ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"cannot be used: {redacted(str(error))}", where=where, todo="see [attach.TIER.kubernetes]"
        ) from None
    api.configuration.retries = 1
    with api:
        try:
            answer: Any = client.CoreV1Api(api).list_namespaced_pod(
                wanted.namespace,
                label_selector=wanted.selector,
                _preload_content=False,
                _request_timeout=_TIMEOUT_S,
            )
            return str(answer.data.decode())
        except ApiException as error:
            raise BootError(
                f"the API server refuses to list pods: HTTP {error.status} {error.reason}",
                where=f"{where}, namespace {wanted.namespace}",
                todo="the account needs the right to list pods: kubectl auth can-i list pods",
            ) from None
        except HTTPError as error:
            raise BootError(f"the API server does not answer: {redacted(str(error))}", where=where) from None


def _pod(item: Mapping[str, Any]) -> Pod:
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    states = status.get("containerStatuses") or []
    digests = {each.get("name"): each.get("imageID") or "" for each in states}
    containers = spec.get("containers") or []
    conditions = {each.get("type"): each.get("status") for each in status.get("conditions") or []}
    return Pod(
        name=str(meta["name"]),
        uid=str(meta.get("uid") or meta["name"]),
        ip=str(status.get("podIP") or ""),
        node=str(spec.get("nodeName") or ""),
        images=tuple(_image(each.get("image") or "", digests.get(each.get("name"), "")) for each in containers),
        restarts=sum(int(each.get("restartCount") or 0) for each in states),
        ports={
            str(port["name"]): int(port["containerPort"])
            for each in containers
            for port in each.get("ports") or []
            if port.get("name")
        },
        ready=conditions.get("Ready") == "True" and bool(status.get("podIP")),
        ending=meta.get("deletionTimestamp") is not None,
    )


def _image(name: str, image_id: str) -> str:
    digest = image_id.rpartition("@")[2] if "@" in image_id else ""
    return f"{name}@{digest}" if digest and "@" not in name else name
