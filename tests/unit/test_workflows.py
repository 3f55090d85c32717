"""Workflows, the action and the examples of other CI systems: what they pin, may do and run."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GITHUB = [*WORKFLOWS, ROOT / "action.yml", ROOT / "docs" / "ci" / "github.yml"]
OTHERS = [ROOT / "docs" / "ci" / name for name in ("gitlab.yml", "buildkite.yml")]
HEAD = "0123456789abcdef0123456789abcdef01234567"


def parsed(path: Path) -> Any:
    """Return a file's content; the key `on` is read as the text that it is."""
    loader = type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {}})
    return yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506 - derived from the safe one


def named(path: Path) -> str:
    """Return a file's name for the id of a test."""
    return path.name


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all steps of a workflow or of an action."""
    content = parsed(path)
    for job in content.get("jobs", {"": content.get("runs")}).values():
        yield from job["steps"]


def script(path: Path, name: str) -> str:
    """Return what a step of that name runs."""
    (found,) = [step["run"] for step in steps(path) if step.get("name") == name]
    return str(found)


@pytest.mark.parametrize("path", GITHUB, ids=named)
def test_actions_are_pinned_by_digest(path: Path) -> None:
    """Each `uses` names a commit in full with its version in a comment; the repository's own action needs none."""
    lines = [line for line in path.read_text().splitlines() if re.match(r"\s*(- )?uses:", line)]
    assert lines
    for line in lines:
        assert re.search(r"uses: (\./( #.*)?|[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$", line), line


@pytest.mark.parametrize("path", GITHUB, ids=named)
def test_a_version_has_one_digest(path: Path) -> None:
    """An action has the same digest in all files."""
    pins = re.compile(r"uses: ([\w.-]+/[\w./-]+)@([0-9a-f]{40})")
    everywhere = {found for each in GITHUB for found in pins.findall(each.read_text())}
    here = set(pins.findall(path.read_text()))
    assert all(sum(name == other for other, _ in everywhere) == 1 for name, _ in here)


@pytest.mark.parametrize("path", [path for path in GITHUB if path.name != "action.yml"], ids=named)
def test_jobs_have_the_least_permissions(path: Path) -> None:
    """A workflow as a whole may do nothing; each job names what it may, and no self-hosted one may write."""
    content = parsed(path)
    assert content["permissions"] == {}
    for name, job in content["jobs"].items():
        assert isinstance(job["permissions"], dict), name
        assert int(job["timeout-minutes"]) > 0
        if "self-hosted" in job["runs-on"]:
            assert job["permissions"] == {"contents": "read"}
            assert "concurrency" in job


@pytest.mark.parametrize("path", GITHUB, ids=named)
def test_no_credentials_stay_in_a_checkout(path: Path) -> None:
    """No later step and no artefact finds the token in `.git/config`."""
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize("path", GITHUB, ids=named)
def test_no_expression_is_part_of_a_script(path: Path) -> None:
    """Values reach scripts by their environment only: none is read as a part of the program."""
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


@pytest.mark.parametrize("path", GITHUB, ids=named)
def test_scripts_are_bash(path: Path) -> None:
    """Bash reads every script."""
    for step in steps(path):
        if "run" in step:
            subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


def test_secrets_reach_only_our_own_commits() -> None:
    """In perf.yml a secret is handed on only in the environment that forks never get."""
    lines = [
        line
        for line in (ROOT / ".github/workflows/perf.yml").read_text().splitlines()
        if "${{" in line and "secrets." in line
    ]
    assert len(lines) == 2
    assert all("needs.plan.outputs.environment == 'perf' && secrets." in line for line in lines)


@pytest.mark.parametrize("path", OTHERS, ids=named)
def test_examples_of_other_systems_are_yaml(path: Path) -> None:
    """They parse, measure every tier, keep runs and JUnit, and let one job at a time onto a runner."""
    content = parsed(path)
    jobs = content["steps"] if "steps" in content else list(content.values())
    (job,) = [job for job in jobs if isinstance(job, dict) and "matrix" in str(job)]
    commands = job.get("script") or job["commands"]
    assert any(" -m perf --tier " in command and "--junitxml" in command for command in commands)
    assert {"concurrency_group", "resource_group"} & set(job)
    for command in commands:
        subprocess.run(["bash", "-n"], input=command.replace("$$", "$"), text=True, check=True)


def run_step(
    path: Path, name: str, folder: Path, environ: dict[str, str], **programs: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run a step as a runner does, with stand-ins for programs; return how it ended, and its outputs."""
    stubs = folder / "bin"
    stubs.mkdir(exist_ok=True)
    for program, text in programs.items():
        (stubs / program).write_text(f"#!/bin/bash\n{text}\n")
        (stubs / program).chmod(0o755)
    outputs = folder / "outputs"
    outputs.write_text("")
    given = {"PATH": f"{stubs}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(outputs), "RUNNER_TEMP": str(folder)}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script(path, name)],
        cwd=folder, env=given | environ, text=True, capture_output=True, check=False,
    )  # fmt: skip
    return done, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


def plan(
    folder: Path,
    comment: str = "",
    *,
    permission: str = "write",
    head: str = "owner/name",
    event: str = "issue_comment",
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the step that decides whether and what to measure."""
    gh = f"""
    case "$2" in
      */permission) [ "{permission}" = error ] && exit 1; [ "$2" = "repos/owner/name/collaborators/someone/permission" ] && echo {permission} ;;
      */pulls/7) echo "{HEAD} {head}" ;;
      *) exit 9 ;;
    esac"""  # noqa: E501
    environ = {"REPOSITORY": "owner/name", "EVENT": event, "COMMIT": "f" * 40, "COMMENT": comment}
    environ |= {"COMMENTER": "someone", "NUMBER": "7", "TIERS": "gpu cpu s3 pnfs", "GH_TOKEN": "x"}
    return run_step(ROOT / ".github/workflows/perf.yml", "Plan", folder, environ, gh=gh)


ALL = '["gpu","cpu","s3","pnfs"]'
ACCEPTED = [
    ("/perf", "owner/name", ALL, "perf"),
    ("/perf\r\nplease", "owner/name", ALL, "perf"),
    ("/perf pnfs", "owner/name", '["pnfs"]', "perf"),
    (f"/perf {HEAD[:7]} s3 gpu", "owner/name", '["s3","gpu"]', "perf"),
    (f"/perf {HEAD[:7]}", "stranger/name", ALL, "perf-fork"),
    (f"/perf pnfs {HEAD}", "stranger/name", '["pnfs"]', "perf-fork"),
    (f"/perf {HEAD[:9]}", "gone", ALL, "perf-fork"),
]


@pytest.mark.parametrize(("comment", "head", "tiers", "environment"), ACCEPTED)
@pytest.mark.parametrize("permission", ["admin", "write"])
def test_people_with_write_access_measure(  # noqa: PLR0917
    tmp_path: Path, comment: str, head: str, tiers: str, environment: str, permission: str
) -> None:
    """The newest commit of the pull request is measured, a fork's one without secrets and only by its name."""
    done, outputs = plan(tmp_path, comment, permission=permission, head=head)
    assert (done.returncode, outputs) == (0, {"commit": HEAD, "environment": environment, "tiers": tiers})


@pytest.mark.parametrize("permission", ["read", "none", "triage", "", "error", "write-ish"])
def test_others_do_not_measure(tmp_path: Path, permission: str) -> None:
    """Whoever has no write access is refused, whatever the comment names, and so is everybody where nobody can tell."""
    done, outputs = plan(tmp_path, f"/perf {HEAD[:7]}", permission=permission)
    assert (done.returncode, outputs) == (1, {})
    assert "only people with write access" in done.stdout


REFUSED = [
    ("/perf", "stranger/name", "/perf COMMIT"),
    ("/perf pnfs", "stranger/name", "/perf COMMIT"),
    ("/perf 9999999", "stranger/name", "no longer at the commit"),
    ("/perf 9999999", "owner/name", "no longer at the commit"),
    (f"/perf {HEAD[:6]}", "stranger/name", "usage"),
    ("/perf nvme", "owner/name", "usage"),
    ("/perf $(touch owned)", "owner/name", "usage"),
    ("/perf `touch owned`", "owner/name", "usage"),
    ('/perf "; touch owned; "', "owner/name", "usage"),
    ("/perf *", "owner/name", "usage"),
    ("/perf gpu;touch owned", "owner/name", "usage"),
    ("/perf ::set-env", "owner/name", "usage"),
]


@pytest.mark.parametrize(("comment", "head", "said"), REFUSED)
def test_what_is_asked_wrongly_is_refused(tmp_path: Path, comment: str, head: str, said: str) -> None:
    """A fork's commit must be named, and be the newest; other words are no tiers, and none is run."""
    done, outputs = plan(tmp_path, comment, head=head)
    assert (done.returncode, outputs) == (1, {})
    assert said in done.stdout
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("comment", ["/performance is fine", "/perfect", "/perf-fork", "/perf;id"])
def test_other_comments_are_none(tmp_path: Path, comment: str) -> None:
    """A comment that only begins alike measures nothing, and is no failure."""
    done, outputs = plan(tmp_path, comment)
    assert (done.returncode, outputs) == (0, {})


@pytest.mark.parametrize("event", ["schedule", "workflow_dispatch", "pull_request"])
def test_other_events_measure_their_commit(tmp_path: Path, event: str) -> None:
    """At night, on demand and for a label every tier is measured at the event's own commit, whatever a comment says."""
    done, outputs = plan(tmp_path, f"/perf {HEAD} gpu", event=event, permission="none")
    assert (done.returncode, outputs) == (0, {"commit": "f" * 40, "environment": "perf", "tiers": ALL})


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [
        ({}, []),
        ({"TIER": "s3 pnfs", "PROFILE": "a b"}, ["--tier", "s3", "--tier", "pnfs", "--kv-profile", "a b"]),
        ({"TIER": "$(touch owned)"}, ["--tier", "$(touch", "--tier", "owned)"]),
        ({"ENGINE": "image:x y", "BASELINES": "update"}, ["--kv-engine=image:x y", "--update-baselines"]),
        ({"BASELINES": "record"}, ["--record-baselines"]),
    ],
)
@pytest.mark.parametrize("code", [0, 1])
def test_the_action_measures_what_it_is_asked(
    tmp_path: Path, environ: dict[str, str], arguments: list[str], code: int
) -> None:
    """Inputs are arguments of their own, pytest's exit code is the step's, and the page is kept in either case."""
    report = tmp_path / "report"
    python = tmp_path / "report.venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    report.mkdir()
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@"; echo page > "$GITHUB_STEP_SUMMARY"; exit {code}\n')
    python.chmod(0o755)
    given = {"REPORT": str(report), "TIER": "", "PROFILE": "", "TESTS": "tests/perf", "ENGINE": ""}
    given |= {"BASELINES": "compare", "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md")} | environ
    done, _ = run_step(ROOT / "action.yml", "Measure", tmp_path, given)
    fixed = ["-m", "pytest", "-m", "perf", f"--kv-runs={report}/runs", f"--junitxml={report}/junit.xml"]
    assert (done.returncode, done.stdout.splitlines()) == (code, [*fixed, *arguments, "tests/perf"])
    assert (report / "summary.md").read_text() == "page\n"
    assert not (tmp_path / "owned").exists()


def test_the_action_refuses_another_word_for_baselines(tmp_path: Path) -> None:
    """What is neither compare, record nor update is told, and nothing is measured."""
    given = {"REPORT": str(tmp_path / "none"), "TIER": "", "PROFILE": "", "ENGINE": "", "BASELINES": "rewrite"}
    done, _ = run_step(ROOT / "action.yml", "Measure", tmp_path, given | {"GITHUB_STEP_SUMMARY": "x", "TESTS": "t"})
    assert done.returncode == 2
    assert "compare, record or update" in done.stdout


@pytest.mark.parametrize("changed", [True, False])
def test_a_proposal_is_a_branch_with_the_baselines_only(tmp_path: Path, changed: bool) -> None:
    """New baselines become a commit and a pull request with the page as its text; the token is in no command."""
    checkout, proposal, remote = tmp_path / "checkout", tmp_path / "proposal", tmp_path / "remote.git"
    (checkout / "baselines").mkdir(parents=True)
    (checkout / "baselines" / "old.json").write_text("1")
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    for args in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *args], check=True)
    (proposal / "baselines").mkdir(parents=True)
    name, content = ("new.json", "2") if changed else ("old.json", "1")
    (proposal / "baselines" / name).write_text(content)
    (proposal / "summary.md").write_text("old to new\n" + "x" * 100_000)
    environ = {"PROPOSAL": str(proposal), "REPOSITORY": str(tmp_path / "remote"), "RUN": "42", "PROFILE": "$(id) p"}
    environ |= {"TIERS": "gpu", "GH_TOKEN": "the-token", "HOME": str(tmp_path), "RUNNER_TEMP": str(tmp_path)}
    (checkout / "bin").mkdir()
    (checkout / ".git" / "info" / "exclude").write_text("bin\noutputs\n")
    done, _ = run_step(
        ROOT / ".github/workflows/refresh-baselines.yml", "Open it", checkout, environ,
        gh=f'printf "%s\\n" "$@" >> {tmp_path}/gh.txt',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the-token" not in done.stdout + done.stderr
    branches = subprocess.run(
        ["git", "-C", str(remote), "branch", "--list"], text=True, capture_output=True, check=True
    ).stdout.split()
    if not changed:
        assert (branches, (tmp_path / "gh.txt").exists()) == ([], False)
        return
    assert branches == ["baselines/42"]
    shown = subprocess.run(
        ["git", "-C", str(remote), "show", "--name-status", "--format=%s", "baselines/42"],
        text=True, capture_output=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    assert next(line for line in shown if line) == "Refresh baselines of $(id) p (gpu)"
    assert all("baselines/" in line for line in shown[1:] if line)
    assert "Refresh baselines of $(id) p" in (tmp_path / "gh.txt").read_text().splitlines()
    body = (tmp_path / "body.md").read_text()
    assert body.startswith("Measured in [run 42](")
    assert "old to new" in body
    assert len(body) < 65536  # the most that a pull request may say
