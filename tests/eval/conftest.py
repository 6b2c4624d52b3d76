"""Small models that read text, and requests as lm-eval makes them."""

from collections.abc import Callable

import pytest
from lm_eval.api.instance import Instance

import dlm_lens as dl
from dlm_lens.eval import DlmLens


@pytest.fixture(scope="session")
def reader(tiny) -> Callable[..., dl.DLM]:
    """``reader(family)``: a random model of one layer with the bundled tokenizer."""

    def make(family: str = "llada", **shape: int) -> dl.DLM:
        dlm = dl.random_model(family, **{"layers": 1, "hidden": 32, "heads": 2, "vocab": 4096, **shape})
        dlm.tokenizer = tiny.tokenizer
        return dlm

    return make


@pytest.fixture(scope="session")
def model(reader) -> DlmLens:
    return DlmLens(reader(), batch_size=4)


@pytest.fixture(scope="session")
def requests() -> Callable[..., list[Instance]]:
    """``requests(kind, arguments, …)``: one request of a kind for each tuple of arguments."""

    def make(kind: str, *arguments: tuple) -> list[Instance]:
        return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]

    return make
