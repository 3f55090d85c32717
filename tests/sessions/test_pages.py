"""Every command of README.md and of the tutorial, in a project whose engine is a stub, and the files of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from docgen.files import FILES, RUN_JSON
from pytest_kvcache.engine import connector, setup
from tests.pages import PAGES, ROOT, Command, Written, steps
from tests.projects import Project, configure, run_folder
from tests.stubs.engine import make_engine, toml

#: Where tokens came from is compared exactly, as in `cpu-tiny`; a baseline has two boots in place of six.
STUB = toml(boots=2, more='\n[profiles.stub.gates]\ntokens = "auto"\n').replace(
    "chunk_tokens", "l1_size_gb = 0.1\nchunk_tokens"
)


@pytest.fixture
def environ(project: Project, kvcache_home: Path) -> dict[str, str]:
    """The environment of a reader's shell, in which `pytest-kvcache setup` finds its work done by stubs."""
    here = ".".join(map(str, sys.version_info[:3]))
    engine = make_engine(setup.engine_path(kvcache_home), python=here)
    (engine / "lib" / f"python{here.rpartition('.')[0]}" / "site-packages").mkdir(parents=True)
    connector._folder(engine).mkdir()
    connector._pth(engine).write_text(f"{connector._folder(engine)}\n", encoding="utf-8")
    (engine / setup._MARKER).write_text('{"versions": {}}', encoding="utf-8")
    configure(project, STUB)
    ini = '[tool.pytest.ini_options]\nkv_profile = "stub"\n'
    (project.path / "pyproject.toml").write_text(ini, encoding="utf-8")
    (project.path / "test_multi_round_qa.py").unlink()
    for made in (".installed", ".ready"):  # in the order in which make makes them
        (project.path / made).touch()
    programs = Path(sys.executable).parent
    return os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "PYTHONUTF8": "1",
        # make's own environment would make a new one of the plugin.
        "MAKEFLAGS": f"BIN={programs} INSTALLED=.installed READY=.ready",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }


def _repository(project: Path) -> None:
    """Make the project what README's reader has: this repository, with one quick test in place of each suite."""
    shutil.copyfile(ROOT / "Makefile", project / "Makefile")
    for suite in ("unit", "sessions", "integration"):
        folder = project / "tests" / suite
        folder.mkdir(parents=True)
        (folder / f"test_of_{suite}.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    shutil.copytree(ROOT / "tests" / "perf", project / "tests" / "perf", ignore=shutil.ignore_patterns("__pycache__"))


def _write(project: Project, file: Written) -> None:
    text = file.text.replace("cpu-tiny", "stub")
    if file.path == "kvcache.toml":
        return configure(project, STUB.replace("[profiles.stub.gates]", f"{text}\n[profiles.stub.gates]"))
    path = project.path / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return None


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page == "README.md" else pytest.mark.long) for page in PAGES]
)
def test_every_command_of_the_page_works(page: str, project: Project, environ: dict[str, str]) -> None:
    """Whoever types a page's commands in its order, and writes its files, sees each of them end as the page says."""
    if page == "README.md":
        _repository(project.path)
    printed = []
    for step in steps(page):
        if isinstance(step, Written):
            _write(project, step)
        elif not step.not_run:
            done = _ran(step, project.path, environ)
            assert done.returncode == step.code, f"{step.line}\n{done.stdout}"
            printed.append(done.stdout)
    assert len(printed) >= 4
    if page == "README.md":
        _sample_is_of_today("\n".join(printed))


def _ran(step: Command, project: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-e", "-c", step.line],
        cwd=project,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )


def _sample_is_of_today(printed: str) -> None:
    """Hold README's sample against a session's screen: titles, signs and words of its rows are those of today."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    titles, *rows, signs, _stand_in = sample.splitlines()
    shown = [" ".join(line.split()) for line in printed.splitlines()]
    assert " ".join(titles.split()) in shown
    assert " ".join(signs.split()) in shown
    assert all(row.endswith("recorded 1") for row in rows)
    assert any(line.startswith("cpu 50 ") and line.endswith("recorded 1") for line in shown)


def test_the_reference_lists_every_file_that_a_run_leaves(project: Project, environ: dict[str, str]) -> None:
    """A run leaves the files of the reference and no others, and so it is with the keys of run.json."""
    configure(project, STUB.replace("[50]", "[50, 60]"))  # a chart needs two contexts
    _write(project, next(each for each in steps("README.md") if isinstance(each, Written)))
    done = _ran(Command("pytest -m perf --tier cpu --record-baselines --kv-boots 1"), project.path, environ)
    assert done.returncode == 0, done.stdout
    folder = run_folder(project)
    patterns = [re.sub(r"TIER|COMPONENT|(?<=-)[NM]\b", "*", name) for name in FILES]
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert [name for name in left if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    missing = [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in left)]
    # No server has a GPU here, and the workload is not in mode compat.
    assert {name.rpartition("/")[2] for name in missing} == {"gpus.parquet", "gpus.jsonl", "summary.csv"}
    facts = next(folder.rglob("run.json"))
    keys = set(json.loads(facts.read_text(encoding="utf-8")))
    assert keys <= set(RUN_JSON)
    assert set(RUN_JSON) - keys <= {"gpus", "explanation", "reference_summary"}
