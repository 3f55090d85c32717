"""What others build on: exported names, typed figures, and what a name or a figure that is not there comes to."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest

import pytest_kvcache
from pytest_kvcache import ConfigError, Figures, KvCacheError, NotMeasuredError, fixtures, hookspecs, plugin, selection
from pytest_kvcache.api.requests import table
from pytest_kvcache.proof.ledger import Ledger, Tokens
from pytest_kvcache.serving.launchers import catalogue as launchers
from pytest_kvcache.tiers import catalogue, registry
from pytest_kvcache.verdict.estimate import estimate
from tests.unit.verdict.make import requests
from tests.worked_examples import PAGE, write

_SOURCE = Path(pytest_kvcache.__file__).read_text(encoding="utf-8")
_TOKENS = Tokens(computed=40, device=30, l1=20, l2=5, other=3, lost=2)


def measured(*faults: str, **more: float) -> Figures:
    """Return the figures of a run of a dozen requests, and of a ledger."""
    shares = Ledger({"vllm-0": _TOKENS}, {}).as_figures()
    return Figures(figures=estimate(requests(), duration_s=48) | shares | more, faults=faults, where="the folder")


def named(figures: Figures, path: str) -> float:
    """Return a figure by its dotted name, as a test writes it."""
    found: object = figures
    for part in path.split("."):
        found = getattr(found, part)
    assert isinstance(found, float)
    return found


def documented() -> list[str]:
    """Return the dotted names of all figures in the page's table."""
    rows = PAGE.read_text(encoding="utf-8").partition("| figure |")[2].partition("\n\n")[0]
    found = []
    for line in rows.splitlines()[2:]:
        first, *others = re.findall(r"`([^`]+)`", line.split("|")[1])
        found += [first, *(first.partition(".")[0] + other for other in others)]
    return [name for name in found if "(" not in name]


@pytest.mark.parametrize("path", documented())
def test_every_figure_of_the_page_is_typed(path: str) -> None:
    """Each documented figure is a property with a docstring, and the number that the run has under its plain name."""
    figures = measured()
    plain = path.replace("shares.", "share_").replace(".", "_")
    assert named(figures, path) == figures.figures[plain]
    owner, _, name = path.rpartition(".")
    assert inspect.getdoc(getattr(type(getattr(figures, owner) if owner else figures), name))


def test_no_figure_is_left_out_of_the_page() -> None:
    """What a result offers is documented, figure for figure."""
    offered = set()
    for name, member in inspect.getmembers(Figures, lambda m: isinstance(m, property)):
        kind = inspect.signature(member.fget).return_annotation
        if kind == "float":
            offered.add(name)
        elif kind != "bool":
            inner = getattr(pytest_kvcache, kind)
            offered |= {f"{name}.{n}" for n, _ in inspect.getmembers(inner, lambda m: isinstance(m, property))}
    assert offered - {"shares.unsplit"} == set(documented())


def test_a_figure_that_was_not_measured_raises() -> None:
    """A figure that a run does not have is an error that says what there is, and no number that meets a limit."""
    figures = measured()
    with pytest.raises(NotMeasuredError, match=r"the folder: share_unsplit was not measured; measured: .*share_l1"):
        _ = figures.shares.unsplit
    with pytest.raises(NotMeasuredError, match="tokens_per_s was not measured"):
        _ = measured(tokens_per_s=float("nan")).tokens_per_s
    with pytest.raises(NotMeasuredError, match="ttft_p99_s was not measured; measured: nothing"):
        _ = Figures({}, (), "").ttft.p99_s
    assert issubclass(NotMeasuredError, KvCacheError)


@pytest.mark.parametrize("path", documented())
def test_no_limit_is_met_by_an_invalid_run(path: str) -> None:
    """Every figure of an invalid run raises with the run's faults; the plain mapping has it for those who store it."""
    figures = measured("the tier did not do its work")
    assert not figures.valid
    with pytest.raises(NotMeasuredError, match="of an invalid run: the tier did not do its work"):
        named(figures, path)
    assert figures.figures["ttft_p99_s"] > 0


@pytest.mark.parametrize(
    "path", ["ttft.p99", "ttft.p95_s", "tpot.geomean_s", "ttft_p99_s", "goodput_share", "shares.L1"]
)
def test_a_wrong_name_is_an_attribute_error(path: str) -> None:
    """A name that is no figure is Python's own error, at once."""
    with pytest.raises(AttributeError):
        named(measured(), path)


def test_the_columns_of_requests_are_those_of_the_page() -> None:
    """The table of requests has the documented columns and no others; what did not finish has no times."""
    rows = requests(users=2, rounds=3)
    rows.loc[0, "status"] = "timed-out"
    found = table([rows, rows])
    text = PAGE.read_text(encoding="utf-8").partition("| column |")[2].partition("\n\n")[0]
    columns = [name for line in text.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    full = table([rows.assign(**dict.fromkeys(set(columns) - set(found.columns), None))])
    assert set(full.columns) == set(columns)
    assert list(found["boot"]) == [1] * 6 + [2] * 6
    assert found["ttft_s"].isna().sum() == found["tpot_s"].isna().sum() == found["e2el_s"].isna().sum() == 2
    ok = found[found["status"] == "ok"]
    pd.testing.assert_series_equal(
        ok["e2el_s"], ok["ttft_s"] + ok["tpot_s"] * (ok["generated_tokens"] - 1), check_names=False, check_dtype=False
    )


def test_exports_are_one_list() -> None:
    """`__all__`, what type checkers see and what is imported when it is used are the same names."""
    (typed,) = (
        node for node in ast.parse(_SOURCE).body if isinstance(node, ast.If) and "import" in ast.unparse(node)[:99]
    )
    seen = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen.keys() == set(pytest_kvcache.__all__) - {"__version__"}
    for name, module in seen.items():
        assert getattr(pytest_kvcache, name) is getattr(sys.modules[str(module)], name)
    assert set(pytest_kvcache.__all__) <= set(dir(pytest_kvcache))
    with pytest.raises(AttributeError, match="no attribute 'Wrong'"):
        _ = pytest_kvcache.Wrong  # type: ignore[attr-defined]


def test_what_a_test_annotates_is_exported() -> None:
    """The types of all fixtures and of all arguments of hooks can be imported from the package."""
    given = [f for f in vars(fixtures).values() if hasattr(f, "_get_wrapped_function") or "fixture" in repr(type(f))]
    types = {inspect.signature(inspect.unwrap(getattr(f, "_fixture_function", f))).return_annotation for f in given}
    for hook in (f for name, f in vars(hookspecs).items() if name.startswith("pytest_kvcache_")):
        assert inspect.getdoc(hook)
        types |= {p.annotation for p in inspect.signature(hook).parameters.values()}
    names = {re.sub(r"Iterator\[(.*)\]", r"\1", str(each)) for each in types}
    ours = {name for name in names if not name.startswith("pytest.")} - {"None", "int"}
    assert {"MeasureTier", "Measure", "LoadPair", "BaselineCheck", "ServingPair", "AnyGate", "Verdict"} <= ours
    assert ours <= set(pytest_kvcache.__all__)
    assert {name for name in plugin.__all__ if not name.startswith("_")} == selection.FIXTURES


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    """Importing the package loads none of its modules and no dependency; a name loads what it needs."""
    code = (
        "import sys, pytest_kvcache; assert 'Result' in dir(pytest_kvcache)\n"
        "print(sorted(m for m in sys.modules if m.startswith(('pytest_kvcache.', 'pandas', 'pydantic'))))\n"
        "from pytest_kvcache import KvCacheError; print([m for m in sys.modules if m.startswith('pytest_kvcache.')])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split("\n")[:2] == ["[]", "['pytest_kvcache.errors']"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("no_such_file:Tier", "'no_such_file:Tier' cannot be imported: ModuleNotFoundError: No module named"),
        ("json:NoSuchClass", "'json:NoSuchClass' cannot be imported: AttributeError: "),
        ("json:JSONDecoder", "'json:JSONDecoder' is no class derived from pytest_kvcache.TierModel"),
        ("pytest_kvcache:Workload", "is no class derived from pytest_kvcache.TierModel"),
        ("broken_tier:Tier", "'broken_tier:Tier' cannot be imported: ZeroDivisionError: division by zero"),
        (":", "':' cannot be imported: ValueError: Empty module name"),
        ("script:Tier", "'script:Tier' cannot be imported: SystemExit: 3"),
        ("skipping:Tier", "'skipping:Tier' cannot be imported: Skipped: no such service"),
    ],
)
def test_a_kind_that_cannot_be_imported_is_named(tmp_path: Path, kind: str, told: str) -> None:
    """What `kind = "MODULE:CLASS"` does not lead to is an error with file, key and cause."""
    (tmp_path / "broken_tier.py").write_text("1 / 0")
    (tmp_path / "script.py").write_text("raise SystemExit(3)")
    (tmp_path / "skipping.py").write_text("import pytest\npytest.skip('no such service', allow_module_level=True)")
    (tmp_path / "kvcache.toml").write_text(f'[tiers.mine]\nkind = "{kind}"\n')
    path = list(sys.path)
    with pytest.raises(ConfigError, match=rf"kvcache\.toml: tiers\.mine\.kind: .*{re.escape(told)}"):
        catalogue.load(tmp_path / "kvcache.toml")
    assert sys.path == path


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no_such_package:Thing", "'no_such_package:Thing' cannot be imported: ModuleNotFoundError"),
        ("json:Renamed", "'json:Renamed' cannot be imported: AttributeError"),
    ],
)
def test_a_package_whose_entry_point_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, told: str
) -> None:
    """A kind or a launcher that an installed package has registered, and that cannot be imported, is no traceback."""
    broken = {"mine": EntryPoint("mine", value, "group")}
    places = ((catalogue, "tier_kinds"), (registry, "tier_kinds"), (catalogue, "workload_kinds"))
    for module, name in (*places, (launchers, "launchers")):
        known = getattr(module, name)() | broken
        monkeypatch.setattr(module, name, lambda known=known: known)
    tier = '[tiers.a]\nkind = "mine"\n'
    profile = '[profiles.p]\nmodel = "m"\n[profiles.p.workload]\nkind = "mine"\n'
    for text, key in ((tier, r"tiers\.a\.kind"), (profile, r"profiles\.p\.workload\.kind")):
        (tmp_path / "kvcache.toml").write_text(text)
        with pytest.raises(ConfigError, match=rf"{key}: {re.escape(told)}"):
            catalogue.load(tmp_path / "kvcache.toml")
    with pytest.raises(ConfigError, match=rf"--kv-launcher: {re.escape(told)}"):
        launchers.found("mine", where="--kv-launcher", folder=None)
    assert not launchers.is_elsewhere("mine")


def test_a_kind_of_the_projects_own_file_is_checked_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of such a tier are validated by its class, and no second import path stays."""
    write(tmp_path)
    monkeypatch.delitem(sys.modules, "nvme_tier", raising=False)
    tier = catalogue.load(tmp_path / "kvcache.toml").tiers["nvme"]
    assert (tier.name, type(tier).__name__) == ("nvme", "NvmeTier")
    (tmp_path / "kvcache.toml").write_text('[tiers.nvme]\nkind = "nvme_tier:NvmeTier"\npth = "/x"\n')
    with pytest.raises(ConfigError, match=r"tiers\.nvme\.pth: unknown key; allowed: launcher, path"):
        catalogue.load(tmp_path / "kvcache.toml")
    monkeypatch.delitem(sys.modules, "nvme_tier")


def test_the_worked_tests_are_typed(tmp_path: Path) -> None:
    """All files of docs/api.md pass `mypy --strict` as they stand; names that are not there are its errors."""
    files = write(tmp_path)
    assert len(files) == 7
    (tmp_path / "wrong.py").write_text(
        "from pytest_kvcache import Result, Wrong\ndef f(r: Result) -> None:\n    print(r.ttft.p99, r.tokens_s)\n"
    )
    cache = Path(__file__).parents[2] / ".mypy_cache" / "examples"
    argv = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cache), "."]
    told = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in told.stdout.splitlines() if ": error: " in line]
    assert [line.split(":")[:2] for line in errors] == [["wrong.py", "1"], ["wrong.py", "3"], ["wrong.py", "3"]], errors
