"""The served tokenizer: what answers like vLLM is believed, and what answers otherwise is named, never a traceback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_kvcache.errors import RunError
from pytest_kvcache.workload.script import Message
from pytest_kvcache.workload.tokens import ServedTokenizer
from tests.stubs.web import Request, Server


@contextmanager
def answering(tokenize: str, detokenize: str = "{}") -> Iterator[ServedTokenizer]:
    """Run a server that gives these answers, whatever it is asked."""

    def giving(text: str) -> object:
        def answer(request: Request) -> None:
            if text.startswith("http"):
                request.send_response(307)
                request.send_header("Location", text)
                request.send_header("Content-Length", "0")
                return request.end_headers()
            return request.whole(text)

        return answer

    answers = {"/tokenize": giving(tokenize), "/detokenize": giving(detokenize)}
    with Server(0, {}, answers) as server:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield ServedTokenizer(f"http://127.0.0.1:{server.server_address[1]}", "m")
        finally:
            server.shutdown()


COUNTS = [
    *("{}", "[1]", "null", '"x"', "<html>", "", "NaN", '{"tokens": [1]}', '{"prompt": "a"}', '{"text": "a"}'),
    *(f'{{"count": {count}, "tokens": [1]}}' for count in ("null", '"5"', "5.5", "true", "NaN", "[5]", "9" * 5000)),
    "[" * 100_000,
    "http://a..b/tokenize",
    "http://127.0.0.1:1/tokenize",
]


@pytest.mark.parametrize("answer", COUNTS, ids=range(len(COUNTS)))
def test_counts_of_other_servers(answer: str) -> None:
    """What is no count of vLLM's API ends in an error that names the address."""
    with answering(answer) as tokenizer, pytest.raises(RunError, match=r"^http://127\.0\.0\.1:\d+/tokenize: ") as error:
        tokenizer.count([Message("user", ("x",))])
    assert "vLLM's tokenizer API" in str(error.value)


@pytest.mark.parametrize("tokens", ["null", "[]", '"x"', '["x"]', "[null]", "{}"])
def test_tokens_of_other_servers(tokens: str) -> None:
    """A server that counts and lists no token ids, as others than vLLM do, is none whose words can be found."""
    with (
        answering(f'{{"count": 1, "tokens": {tokens}}}') as tokenizer,
        pytest.raises(RunError, match="/tokenize: is not vLLM's tokenizer API"),
    ):
        tokenizer.words()


@pytest.mark.parametrize("answer", ['{"text": "a"}', '{"content": "a"}', '{"prompt": null}', '{"prompt": ["a"]}', "[]"])
def test_texts_of_other_servers(answer: str) -> None:
    """So is one whose `/detokenize` gives something else than a prompt, as SGLang's and llama.cpp's do."""
    with (
        answering('{"count": 1, "tokens": [5]}', answer) as tokenizer,
        pytest.raises(RunError, match="/detokenize: is not vLLM's tokenizer API"),
    ):
        tokenizer.words()


@pytest.mark.parametrize(("longest", "expected"), [("4096", 4096), ("null", None), ('"4096"', None), ("1e5", None)])
def test_the_length_that_a_server_says(longest: str, expected: int | None) -> None:
    """The model's length is known where the server says it as a whole number."""
    with answering(f'{{"count": 7, "tokens": [], "max_model_len": {longest}}}') as tokenizer:
        assert tokenizer.count([Message("user", ("x",))]) == 7
        assert tokenizer.max_model_len == expected
