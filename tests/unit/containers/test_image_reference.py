"""Names of images mean what they mean to Docker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.config.image_reference import ImageReference, digest_among, parse_reference
from pytest_kvcache.errors import ConfigError

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("text", "reference", "full_name"),
    [
        ("kv", ImageReference("kv"), "docker.io/library/kv"),
        ("kv:1", ImageReference("kv", "1"), "docker.io/library/kv"),
        ("vllm/vllm-openai:v0.32.0", ImageReference("vllm/vllm-openai", "v0.32.0"), "docker.io/vllm/vllm-openai"),
        ("docker.io/kv:1", ImageReference("docker.io/kv", "1"), "docker.io/library/kv"),
        ("docker.io/vllm/x", ImageReference("docker.io/vllm/x"), "docker.io/vllm/x"),
        ("index.docker.io/library/kv", ImageReference("index.docker.io/library/kv"), "docker.io/library/kv"),
        ("localhost/kv:1", ImageReference("localhost/kv", "1"), "localhost/kv"),
        ("localhost:5000/kv", ImageReference("localhost:5000/kv"), "localhost:5000/kv"),
        ("127.0.0.1:5000/a/b/kv:x", ImageReference("127.0.0.1:5000/a/b/kv", "x"), "127.0.0.1:5000/a/b/kv"),
        ("[::1]:5000/kv:1", ImageReference("[::1]:5000/kv", "1"), "[::1]:5000/kv"),
        ("REG.example.org/kv:Tag_1.0", ImageReference("REG.example.org/kv", "Tag_1.0"), "REG.example.org/kv"),
        ("ghcr.io/llm-d/a__b/c--d.e", ImageReference("ghcr.io/llm-d/a__b/c--d.e"), "ghcr.io/llm-d/a__b/c--d.e"),
        (f"kv@{A}", ImageReference("kv", digest=A), "docker.io/library/kv"),
        (f"r.org:443/kv:1@{A}", ImageReference("r.org:443/kv", "1", A), "r.org:443/kv"),
    ],
)
def test_names(text: str, reference: ImageReference, full_name: str) -> None:
    """Registry, port, tag and digest are told apart, and the name is completed as Docker does it."""
    assert parse_reference(text, where="image") == reference
    assert str(reference) == text
    assert reference.full_name == full_name


def test_what_is_pinned() -> None:
    """A digest or an id means one image for ever; a tag does not, and a registry is asked for the digest before it."""
    assert not parse_reference("kv:1", where="x").is_pinned
    assert parse_reference(f"kv:1@{A}", where="x").is_pinned
    assert parse_reference(f"kv:1@{A}", where="x").version == A
    assert [parse_reference(text, where="x").version for text in ("kv:1", "kv")] == ["1", "latest"]
    for text in (A, "a" * 64):
        assert parse_reference(text, where="x") == ImageReference("", id=A)
    assert parse_reference(A, where="x").is_pinned


@pytest.mark.parametrize(
    "text",
    ["", "KV", "kv:", "kv:a b", ":1", "kv@", "kv@sha256:abc", f"kv@{A}:1", "kv@md5:" + "a" * 32, "-kv", "kv-", "a//b",
     "kv:.1", "kv:" + "a" * 129, "a" * 256, "http://r/kv", "r.org:port/kv", "../kv", "kv\n", "kv:1\n", "kv:1 ",
     f"kv@{A.upper()}", "\N{LATIN SMALL LIGATURE FI}/kv", "docker://kv"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    """It is refused with what was written and what is allowed, before any daemon is asked."""
    with pytest.raises(ConfigError, match="is no name of an image; allowed") as caught:
        parse_reference(text, where="profiles.p.image")
    assert caught.value.where == "profiles.p.image"


_part = st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,5}){0,2}", fullmatch=True)


@given(
    registry=st.sampled_from(["", "localhost/", "r.org/", "r.org:5000/", "[fd00::1]:5000/", "10.0.0.1:80/"]),
    path=st.lists(_part, min_size=1, max_size=3).map("/".join),
    tag=st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)),
    digest=st.sampled_from(["", A]),
)
def test_any_name_comes_back(registry: str, path: str, tag: str, digest: str) -> None:
    """Whatever a name is made of is found in it again."""
    name = registry + path
    found = parse_reference(str(ImageReference(name, tag, digest)), where="x")
    assert (found.name, found.tag, found.digest) == (name, tag, digest)


@pytest.mark.parametrize(
    ("digests", "text", "found"),
    [
        ([f"kv@{A}"], "kv:1", A),
        ([f"docker.io/library/kv@{A}"], "kv:1", A),
        ([f"mirror.org/kv@{B}", f"kv@{A}"], "kv:1", A),
        ([f"mirror.org/kv@{B}", f"other.org/kv@{A}"], "kv:1", ""),
        ([f"mirror.org/kv@{B}", f"other.org/kv@{B}"], "kv:1", B),
        ([f"mirror.org/kv@{B}"], "kv:1", B),
        ([], "kv:1", ""),
        ([f"kv@{A}"], f"kv@{B}", B),
        ([f"kv@{A}"], B, A),
        (["<none>@<none>"], "kv:1", ""),
    ],
)
def test_the_digest_of_an_image(digests: list[str], text: str, found: str) -> None:
    """It is the one of the repository that was named; one of another repository only if there is no other."""
    assert digest_among(digests, parse_reference(text, where="x")) == found
