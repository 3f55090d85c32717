"""Where a project's files are: the same for pytest and for every subcommand, whatever a person wrote where."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvcache import cli, options
from pytest_kvcache.campaign import settings
from pytest_kvcache.campaign.settings import Settings
from pytest_kvcache.commands import located as commands
from pytest_kvcache.config import project
from pytest_kvcache.config.project import Located
from pytest_kvcache.engine.container import parse_mount
from pytest_kvcache.errors import ConfigError
from pytest_kvcache.home import home
from pytest_kvcache.paths import expanded
from pytest_kvcache.tiers import catalogue
from tests.projects import commit

INI = "[tool.pytest.ini_options]\n"
PERF_TEST = "import pytest\n\n@pytest.mark.perf\ndef test_it(kv_tier): pass\n"
TIER = '[profiles.stub]\nextends = "cpu-tiny"\n[tiers.nvme]\nkind = "cpu"\n'


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No options but those of the test."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def write(root: Path, files: dict[str, str]) -> None:
    """Write files below `root`."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def of_command(*words: str) -> Located:
    """Return what a subcommand finds in the present folder."""
    parser = argparse.ArgumentParser()
    commands.add_project_arguments(parser)
    for option in ("--kv-runs", "--kv-baselines", "--kv-engine", "--kv-profile"):
        parser.add_argument(option)
    return commands.located(parser.parse_args(words))


def resolved(pytester: pytest.Pytester, *words: str) -> Settings:
    """Return what a session with these arguments would run."""
    return settings.resolve(options.from_config(pytester.parseconfig(*words)))


@pytest.mark.parametrize(
    ("files", "addopts", "words"),
    [
        ({}, "", ()),
        ({"kvcache.toml": ""}, "", ()),
        ({"pyproject.toml": INI + 'kv_config = "conf/k.toml"\n', "conf/k.toml": ""}, "", ()),
        (
            {
                "pyproject.toml": INI + 'addopts = "-ra --kv-config=conf/k.toml --benchmark-disable"\n',
                "conf/k.toml": "",
            },
            "",
            (),
        ),
        ({"pyproject.toml": INI + 'addopts = ["--kv-runs", "r", "--kv-profile=p"]\n'}, "--kv-profile=q", ()),
        ({"pyproject.toml": INI + 'kv_runs = "a"\n', "tox.ini": "[pytest]\nkv_runs = b\n"}, "", ()),
        ({"tox.ini": "[pytest]\nkv_baselines = b\nkv_profile = p\n"}, "", ()),
        ({"setup.cfg": "[tool:pytest]\nkv_engine = e\n"}, "", ()),
        ({"pytest.ini": "[pytest]\nkv_image_mounts =\n    /a:/b\n    /c\naddopts = --kv-image-mount=/d\n"}, "", ()),
        ({"pytest.ini": "[pytest]\nkv_engine = image:repo:tag\n"}, "--kv-image-mount=/x", ()),
        ({"pyproject.toml": INI, "kvcache.toml": "", "tests/pytest.ini": "[pytest]\nkv_runs = r\n"}, "tests", ()),
        ({"tests/pytest.ini": "[pytest]\nkv_runs = r\n"}, "-c tests/pytest.ini", ()),
        ({"tests/pytest.ini": "[pytest]\nkv_runs = r\n"}, "", ("--config-file=tests/pytest.ini",)),
        ({"o/kvcache.toml": ""}, "--rootdir=o", ()),
        ({"o/kvcache.toml": ""}, "", ("--rootdir=o",)),
        ({"pyproject.toml": INI + 'kv_runs = "a"\n'}, "-o kv_runs=b", ()),
        ({"pyproject.toml": INI + 'kv_runs = "a"\naddopts = "-o kv_runs=b"\n'}, "", ()),
        ({"pyproject.toml": INI + 'kv_runs = "a"\n'}, "--kv-runs=b", ("--kv-runs=c", "--kv-baselines=d")),
        ({"setup.py": "", "tests/x.py": ""}, "tests", ()),
    ],
)
def test_subcommands_find_what_pytest_finds(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    addopts: str,
    words: tuple[str, ...],
) -> None:
    """Root, ini file, addopts, PYTEST_ADDOPTS and overrides give one place for each thing."""
    write(pytester.path, files)
    monkeypatch.setenv("PYTEST_ADDOPTS", addopts)
    assert of_command(*words) == project.locate(project.of_config(pytester.parseconfig(*words)))


def test_subcommands_find_what_pytest_finds_in_a_folder_below(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the root, paths of the ini file are the ini file's, and those of the command line are the folder's."""
    write(pytester.path, {"pyproject.toml": INI + 'kv_runs = "r"\n', "kvcache.toml": "", "a/b/x": ""})
    monkeypatch.chdir(pytester.path / "a" / "b")
    found = of_command("--kv-baselines=here")
    assert found == project.locate(project.of_config(pytester.parseconfig("--kv-baselines=here")))
    assert (found.config, found.runs) == (pytester.path / "kvcache.toml", pytester.path / "r")
    assert found.baselines == pytester.path / "a" / "b" / "here"


def test_no_conftest_is_imported_by_a_subcommand(pytester: pytest.Pytester) -> None:
    """A project whose conftest needs what is not here can be looked at all the same."""
    pytester.makeconftest("raise SystemExit(3)")
    write(pytester.path, {"pyproject.toml": INI + 'kv_runs = "r"\nfilterwarnings = ["error"]\n'})
    assert of_command().runs == pytester.path / "r"


@pytest.mark.parametrize(
    ("name", "text", "addopts"),
    [
        ("pyproject.toml", "[tool.pytest", ""),
        ("pytest.ini", "[pytest\n", ""),
        ("setup.cfg", "[pytest]\n", ""),
        ("pytest.ini", "[pytest]\nminversion = 99\n", ""),
        ("pytest.ini", "[pytest]\nrequired_plugins = pytest-is-not-there\n", ""),
        ("pytest.ini", "[pytest]\naddopts = --kv-boots=many\n", ""),
        ("pytest.ini", "[pytest]\n", '"'),
        ("pytest.ini", "[pytest]\n", "-c nowhere.ini"),
        ("pytest.ini", "[pytest]\n", "-p is_not_there"),
    ],
)
def test_what_pytest_cannot_read_is_one_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, text: str, addopts: str
) -> None:
    """A subcommand says where pytest stopped, without a traceback."""
    write(pytester.path, {name: text})
    monkeypatch.setenv("PYTEST_ADDOPTS", addopts)
    with pytest.raises(ConfigError, match="pytest cannot read its configuration") as caught:
        of_command()
    assert len(str(caught.value).splitlines()) == 1


def test_prune_removes_no_baseline_of_the_projects_own_configuration(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tier in the file of the ini key `kv_config` is live; the file is named, and why each other baseline goes."""
    ini = INI + 'kv_config = "conf/k.toml"\nkv_baselines = "stored"\n'
    write(pytester.path, {"pyproject.toml": ini, "conf/k.toml": TIER})
    write(pytester.path, {f"stored/cpu-tiny/m/{tier}/context-1000.json": "{}" for tier in ("nvme", "gone")})
    write(pytester.path, {"stored/cpu-tiny/m/nvme/context-60.json": "{}", "stored/x/m/nvme/context-1000.json": "{}"})
    assert cli.main(["baselines", "prune", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"configuration: {pytester.path / 'conf' / 'k.toml'}" in said
    assert "gone/context-1000.json: there is no tier gone; keep it if a test brings this tier itself" in said
    assert "nvme/context-60.json: no context of profile cpu-tiny; keep it if a test brings this length itself" in said
    assert "x/m/nvme/context-1000.json: there is no profile x" in said
    assert "3 files removed" in said
    assert [path.parts[-2] for path in (pytester.path / "stored").rglob("*.json")] == ["nvme"]


@pytest.mark.parametrize("top", [".git", "pyproject.toml", "setup.cfg"])
def test_the_configuration_above_the_root_is_read(pytester: pytest.Pytester, top: str) -> None:
    """`tests/pytest.ini` makes tests/ the root; the nearest kvcache.toml up to the project's top is read, and named."""
    write(pytester.path, {"tests/pytest.ini": "[pytest]\n", "kvcache.toml": TIER, "tests/test_x.py": PERF_TEST})
    (pytester.path / top).mkdir() if top == ".git" else (pytester.path / top).touch()
    done = pytester.runpytest_inprocess("--collect-only", "-m", "perf", "--kv-profile=stub", "tests")
    done.stdout.fnmatch_lines([f"kvcache: profile stub, *nvme (configuration: {pytester.path}/kvcache.toml)"])


def test_the_configuration_of_a_stranger_is_not_read(tmp_path: Path) -> None:
    """Above the top of a repository, and above a root without any, nothing is looked for."""
    write(tmp_path, {"kvcache.toml": "", "repo/.git/x": "", "repo/tests/x": "", "bare/tests/x": ""})
    assert project.find(tmp_path / "repo" / "tests") is None
    assert project.find(tmp_path / "bare" / "tests") is None


def git_project(pytester: pytest.Pytester, path: str, old: bytes) -> None:
    """Commit a configuration at `path`, then change it."""
    (pytester.path / path).parent.mkdir(parents=True, exist_ok=True)
    (pytester.path / path).write_bytes(old)
    commit(pytester)
    (pytester.path / path).write_text(TIER + "[profiles.stub.workload]\nqps = 3\n", encoding="utf-8")


OLD = (TIER + "[profiles.stub.workload]\nqps = 2\n").encode()


@pytest.mark.parametrize(
    ("ini", "path", "words"),
    [
        ("", "kvcache.toml", ()),
        ("kv_config = conf/k.toml", "conf/k.toml", ()),
        ("kv_config = {root}/conf/k.toml", "conf/k.toml", ()),
        ("kv_config = conf/../conf/k.toml", "conf/k.toml", ()),
        ("kv_config = link.toml", "conf/k.toml", ()),
        ("", "conf/k.toml", ("--kv-config=conf/k.toml",)),
        ("", "conf/k.toml", ("--kv-config={root}/conf/k.toml",)),
        ("", "kvcache.toml", ("tests",)),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_another_revision_of_whichever_file_is_read(
    pytester: pytest.Pytester, ini: str, path: str, words: tuple[str, ...], mark: bytes
) -> None:
    """`--kv-against=git:REV` takes the file that pytest reads, wherever that is named."""
    write(pytester.path, {"pytest.ini": "[pytest]\n" + ini.format(root=pytester.path)})
    write(pytester.path, {"tests/pytest.ini": "[pytest]\n"} if "tests" in words else {})
    (pytester.path / "link.toml").symlink_to("conf/k.toml")
    git_project(pytester, path, mark + OLD)
    given = [word.format(root=pytester.path) for word in words]
    found = resolved(pytester, "-m", "perf", "--kv-profile=stub", "--kv-against=git:HEAD", *given)
    assert found.other is not None
    rates = [getattr(known.profile("stub").workload, "qps", None) for known in (found.catalogue, found.other)]
    assert rates == [3, 2]


@pytest.mark.parametrize(
    ("old", "revision", "said"),
    [
        (OLD, "nowhere", "git knows no revision 'nowhere'"),
        (OLD, "--help", "git knows no revision '--help'"),
        (OLD, "", "git knows no revision ''"),
        (b"", "HEAD", "HEAD:kvcache.toml: has no profile 'stub', tier 'nvme'"),
        (b"\xff", "HEAD", "HEAD:kvcache.toml: cannot be read"),
        (b"tiers = 3", "HEAD", "HEAD:kvcache.toml: tiers: must be a table"),
    ],
)
def test_another_revision_that_cannot_be_used_is_said_before_a_boot(
    pytester: pytest.Pytester, old: bytes, revision: str, said: str
) -> None:
    """No such revision, a file that is none, a tier that was not there yet: one line each."""
    git_project(pytester, "kvcache.toml", old)
    with pytest.raises(ConfigError) as caught:
        resolved(pytester, "-m", "perf", "--kv-profile=stub", f"--kv-against=git:{revision}")
    assert said in str(caught.value)


def test_another_revision_without_a_repository(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a repository, and without git, there is a line that says so."""
    write(pytester.path, {"kvcache.toml": TIER})
    words = ("-m", "perf", "--kv-profile=stub", "--kv-against=git:HEAD")
    with pytest.raises(ConfigError, match="git knows no revision 'HEAD' around"):
        resolved(pytester, *words)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="git cannot be asked"):
        resolved(pytester, *words)


@pytest.mark.parametrize("written", ["~/x", "${HOME}/x", "$THERE"])
@pytest.mark.parametrize("name", ["kv_runs", "kv_baselines", "kv_engine", "kv_config"])
@pytest.mark.parametrize("by", ["option", "ini", "addopts"])
def test_home_and_variables_stand_in_every_path(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, by: str, name: str, written: str
) -> None:
    """`~` and `$NAME` are expanded after `=`, where no shell does, in options and ini keys alike."""
    monkeypatch.setenv("HOME", str(pytester.path))
    monkeypatch.setenv("THERE", str(pytester.path / "x"))
    (pytester.path / "x").touch()
    option = f"--{name.replace('_', '-')}={written}"
    ini = {"option": "", "ini": f"{name} = {written}\n", "addopts": f"addopts = '{option}'\n"}[by]
    write(pytester.path, {"pytest.ini": "[pytest]\n" + ini})
    words = [option] if by == "option" else []
    found = project.locate(project.of_config(pytester.parseconfig(*words)))
    assert str(getattr(found, name.removeprefix("kv_"))) == str(pytester.path / "x")


def test_home_and_variables_stand_in_every_other_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So they do in the plugin's own home, in mounts, in all paths of kvcache.toml and in files of subcommands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTEST_KVCACHE_HOME", "$HOME/k")
    assert home() == tmp_path / "k"
    assert str(parse_mount("$HOME:~/b:rw", "x")) == f"{tmp_path}:{tmp_path}/b:rw"
    text = """
        [profiles.a]
        extends = "cpu-tiny"
        model = "${HOME}/m"
        [profiles.a.workload]
        kind = "mooncake-trace"
        path = "$HOME/t"
        context_tokens = [5]
        duration_s = 5
        [tiers.f]
        kind = "fs"
        path = "$HOME/f"
        [tiers.l]
        kind = "lmcache-l2"
        adapter = { type = "fs", base_path = "~/l", relative_tmp_dir = "t", name = "$HOME" }
        """
    (tmp_path / "kvcache.toml").write_text(text, encoding="utf-8")
    known = catalogue.load(tmp_path / "kvcache.toml")
    profile, tiers = known.profile("a"), known.tiers
    assert profile.model == f"{tmp_path}/m"
    assert getattr(profile.workload, "path", None) == tmp_path / "t"
    assert getattr(tiers["f"], "path", None) == tmp_path / "f"
    adapter = {"type": "fs", "base_path": f"{tmp_path}/l", "relative_tmp_dir": "t", "name": "$HOME"}
    assert getattr(tiers["l"], "adapter", None) == adapter
    assert cli.main(["report", "~/nothing"]) == 1
    assert f"{tmp_path}/nothing: no boot was measured there" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", " ", "~is-no-user/x", "$IS_NOT_SET/x", "${IS_NOT_SET}", "a\0b"])
def test_what_is_no_path(pytester: pytest.Pytester, text: str) -> None:
    """An unknown user, an unset variable, an empty text and a NUL are no paths; a subcommand says which option."""
    with pytest.raises(ValueError, match=r"path|user|variable"):
        expanded(text)
    if text.strip():
        for name in ("kv_runs", "kv_baselines", "kv_engine", "kv_config"):
            with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
                of_command(f"--{name.replace('_', '-')}={text}")


def test_paths_of_the_file_begin_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path of kvcache.toml is the same from whichever folder pytest runs; where it lies is not compared."""
    text = '[profiles.{0}]\nextends = "cpu-tiny"\nmodel = "./m"\n[profiles.{0}.workload]\nkind = "mooncake-trace"\n'
    text += 'path = "t.jsonl"\ncontext_tokens = [5]\nduration_s = 5\n'
    for name in ("a", "b"):
        write(tmp_path, {f"{name}/kvcache.toml": text.format("p"), f"{name}/t.jsonl": "{}"})
    monkeypatch.chdir("/")
    a, b = (catalogue.load(tmp_path / name / "kvcache.toml").profile("p") for name in ("a", "b"))
    assert a.model == str(tmp_path / "a" / "m")
    assert getattr(a.workload, "path", None) == tmp_path / "a" / "t.jsonl"
    assert a.workload.sent(5) == b.workload.sent(5)


def _place(path: Path, what: str) -> None:
    if what == "folder":
        path.mkdir()
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(
            {"latin": b"# \xe9", "nul": b"a = 1\x00", "toml": b"[", "list": b'[tiers.x]\nkind = ["fs"]\n'}[what]
        )


@pytest.mark.parametrize("what", ["folder", "dangling", "loop", "pipe", "latin", "nul", "toml", "list"])
@pytest.mark.parametrize("by", ["found", "option", "ini"])
def test_what_stands_in_the_files_place_is_one_error_before_a_boot(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str], by: str, what: str
) -> None:
    """Whatever is there in place of a configuration is a line with the file, for pytest and for subcommands."""
    path = pytester.path / ("kvcache.toml" if by == "found" else "k.toml")
    _place(path, what)
    write(pytester.path, {"pytest.ini": "[pytest]\n" + ("kv_config = k.toml\n" if by == "ini" else "")})
    words = [f"--kv-config={path}"] if by == "option" else []
    with pytest.raises(ConfigError) as caught:
        resolved(pytester, "-m", "perf", *words)
    assert str(path) in str(caught.value)
    assert len([line for line in str(caught.value).splitlines() if "->" not in line]) == 1
    assert cli.main(["baselines", *words, "prune"]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        '[tiers.x]\nkind = ["fs"]\n',
        '[profiles.x]\nextends = ["x"]\n',
        '[tiers.cpu]\nname = "gpu"\n',
        "[profiles.cpu-tiny.workload]\ncontext_tokens = [true]\n",
    ],
)
def test_a_wrong_configuration_ends_pytest_with_its_line(pytester: pytest.Pytester, text: str) -> None:
    """Pytest ends with a usage error that names file and key, and not with one of its own."""
    write(pytester.path, {"kvcache.toml": text, "test_x.py": PERF_TEST})
    done = pytester.runpytest_inprocess("-m", "perf")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: {pytester.path}/kvcache.toml: *.*"])


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is an error with its name (root may read all, so the system's answer is played)."""
    path = tmp_path / "kvcache.toml"
    path.touch()

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"kvcache\.toml: cannot be read: Permission denied"):
        catalogue.load(path)


@pytest.mark.parametrize("key", ["kv_runs", "kv_config", "kv_profile", "kv_image_mounts"])
@pytest.mark.parametrize("value", ["3", "[3]", "{ a = 1 }"])
@pytest.mark.parametrize("table", ["tool.pytest.ini_options", "tool.pytest"])
def test_an_ini_value_of_another_type_is_no_crash(pytester: pytest.Pytester, key: str, value: str, table: str) -> None:
    """Tables of pyproject.toml have types; one that fits nothing is an error of the configuration, or of pytest's."""
    write(pytester.path, {"pyproject.toml": f"[{table}]\n{key} = {value}\n", "test_x.py": PERF_TEST})
    done = pytester.runpytest_inprocess("--collect-only", "-m", "perf")
    assert done.ret in {pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.OK}
    assert cli.main(["baselines", "migrate"]) == 1  # there is no folder of baselines, or no text that names one
    assert "Traceback" not in done.stdout.str()
    done.stdout.no_fnmatch_line("*INTERNALERROR*")
    done.stderr.no_fnmatch_line("*Traceback*")


def test_a_subcommand_in_its_own_process(tmp_path: Path) -> None:
    """Nothing of pytest's is printed, and no warning of it is an error, where the plugin was imported first."""
    write(tmp_path, {"pyproject.toml": INI + 'filterwarnings = ["error"]\nkv_baselines = "b"\n', "b/x": ""})
    argv = [sys.executable, "-m", "pytest_kvcache.cli", "baselines", "list"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no baselines\n", "")
