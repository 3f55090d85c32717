"""Workloads of third parties, and how a workload travels to the load process."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest

from pytest_kvcache.errors import ConfigError
from pytest_kvcache.load.plan import LoadPlan
from pytest_kvcache.tiers.catalogue import load
from pytest_kvcache.workload import registry
from pytest_kvcache.workload.base import Workload
from pytest_kvcache.workload.multi_round import MultiRoundQa
from pytest_kvcache.workload.script import Conversation, Message, Script, Turn
from pytest_kvcache.workload.tokens import Tokenizer

TOML = """
[profiles.mine]
extends = "cpu-tiny"
[profiles.mine.workload]
kind = "one-word"
word = "hello"
context_tokens = [1]
duration_s = 1
"""


class OneWord(Workload):
    """A third party's workload: says one word."""

    kind: Literal["one-word"] = "one-word"
    word: str

    @property
    def needs_tokenizer(self) -> bool:
        """Words are not counted."""
        return False

    def script(self, context_tokens: int, tokenizer: Tokenizer | None, *, first_user: int = 0) -> Script:  # noqa: ARG002
        """Say it once."""
        return Script((Conversation(first_user + 1, (Turn(1, 0.0, (Message("user", (self.word,)),), 1),)),))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the kind installed, as a plugin's entry point would."""
    ours = registry.workload_kinds()
    point = EntryPoint("one-word", f"{__name__}:OneWord", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [*ours.values(), point])
    registry.workload_kinds.cache_clear()
    yield
    registry.workload_kinds.cache_clear()


@pytest.mark.usefixtures("installed")
def test_a_third_partys_kind_is_configured_like_ours(tmp_path: Path) -> None:
    """A kind from an entry point is named in kvcache.toml, its keys replace the base's, and errors name them."""
    file = tmp_path / "kvcache.toml"
    file.write_text(TOML)
    workload = load(file).profile("mine").workload
    assert isinstance(workload, OneWord)
    assert workload.script(1, None).conversations[0].turns[0].messages[0].text == "hello"
    file.write_text(TOML.replace("word = ", "wort = "))
    with pytest.raises(ConfigError, match=r"profiles\.mine\.workload\.wort: unknown key; allowed: .*word"):
        load(file)


@pytest.mark.usefixtures("installed")
def test_a_plan_keeps_the_keys_of_its_kind() -> None:
    """What goes to the load process as JSON comes back as the same workload, of whichever kind."""
    ours = MultiRoundQa(
        users=2, rounds=3, qps=1, shared_prompt_tokens=5, context_tokens=(9,), answer_tokens=1, duration_s=1
    )
    theirs = OneWord(word="x", context_tokens=(1,), duration_s=2)
    for workload in (ours, theirs):
        plan = LoadPlan(
            base_url="http://h/v1",
            model="m",
            workload=workload,
            context_tokens=1,
            tokenizer_url="http://h",
            rows=Path("r"),
            summary=Path("s"),
        )
        assert LoadPlan.model_validate_json(plan.model_dump_json()) == plan


def test_an_unknown_kind_lists_the_known_ones(tmp_path: Path) -> None:
    """A kind that is not installed is an error that names the key and the kinds that are."""
    (tmp_path / "kvcache.toml").write_text(TOML)
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "kvcache.toml")
    assert "profiles.mine.workload.kind: 'one-word' is not allowed; allowed: " in str(error.value)
    assert "mooncake-trace" in str(error.value)


def test_a_model_length_that_prompts_do_not_fit_into(tmp_path: Path) -> None:
    """max_model_len is held against the longest prompt with its answer before anything boots."""
    (tmp_path / "kvcache.toml").write_text("[profiles.cpu-tiny]\nmax_model_len = 4000\n")
    with pytest.raises(ConfigError, match="max_model_len 4000 is less than the longest prompt with its answer"):
        load(tmp_path / "kvcache.toml")
