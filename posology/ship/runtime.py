"""Runs an exported model with numpy, onnxruntime and tokenizers alone. `posology export` puts a copy into its folder.

    python posology_runtime.py FOLDER < texts.jsonl > answers.jsonl

Each line in is an object with `text`, and `id` and `text_pair` where there are such, or just a string. Each line out has
`id` and, from a classifier, `label`, `score` and `probabilities`; from a tagger `spans`, with start, end, label and score,
in characters of the text. In Python:

    from posology_runtime import Runtime
    answers = Runtime(FOLDER).predict(["some text", "another one"])

This file imports nothing of Posology: what it does is written down there, in `posology/engine/encode.py` (windows) and
`posology/engine/decode.py` (tags), and tests hold the two together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

TOKEN_BUDGET = 512
"""Pieces that one pass through the network may hold for each thread, padding included: what stays in a core's cache. Twice
as many were 7 % slower in 8 bits."""
BLOCK_TEXTS = 1024
"""Lines that are read before the first is answered, so that texts of like length can go together."""

Words = Sequence[tuple[int, int]]


class InputError(ValueError):
    """Something whoever calls can fix; its message holds no text."""


@dataclass
class _Window:
    """A stretch of a text: piece ids with special tokens, and which columns are the first pieces of which words."""

    text: int
    ids: list[int]
    second_from: int = 0
    columns: Any = ()
    words: Any = ()


class Runtime:
    """An exported model.

    Args:
        folder: what `posology export` has written.
        threads: of onnxruntime; 0 for one on each core, None for what OMP_NUM_THREADS says, else 0.
        model: the network's file, if not the one that `posology.json` names.

    Attributes:
        kind: `sequence-classification` or `token-classification`.
        labels: classes, or entity types.
        text_pair: whether texts come in pairs.
    """

    def __init__(self, folder: Path | str, *, threads: int | None = None, model: Path | str | None = None):
        folder = Path(folder)
        try:
            self.record: dict[str, Any] = json.loads((folder / "posology.json").read_text(encoding="utf-8"))
            reading = self.record["reading"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} is no folder that `posology export --format onnx` has written") from error
        self.kind: str = self.record["kind"]
        self.labels: list[str] = self.record["labels"]
        self.text_pair: bool = self.record["text_pair"]
        self._temperature = float(self.record["temperature"])
        self._outputs = len(self.labels) if self.kind == "sequence-classification" else 2 * len(self.labels) + 1
        self._max_length, self._padding = reading["max_length"], reading["padding_id"]
        self._overlap = reading["overlap"] if reading["long_text"] == "window" else None
        self._before, self._after, self._between, self._after_pair = (
            reading["frame"][name] for name in ("before", "after", "between", "after_pair")
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "[SEP]" in a note is text
        if self.record["precision"] == "int8" and self.record["vnni"] and _lacks_vnni():
            print(
                "posology_runtime: exported for processors with VNNI, which this one lacks: answers may differ from those "
                "that were measured; export it on this machine",
                file=sys.stderr,
            )
        options = onnxruntime.SessionOptions()
        threads = int(os.environ.get("OMP_NUM_THREADS", 0)) if threads is None else threads
        options.intra_op_num_threads = threads
        self._budget = TOKEN_BUDGET * (threads or os.cpu_count() or 1)
        options.log_severity_level = 3
        path = str(model or folder / self.record["model"])
        # onnxruntime's sum and norm in one takes four times as long as one after the other (1.32, 1,536 rows of 384)
        left_out = ["SkipLayerNormFusion"]
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
        self._typed = "token_type_ids" in {entry.name for entry in self._session.get_inputs()}

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Answers texts in their order: `label`, `score` and `probabilities`, or `spans`.

        Args:
            texts: of any length; long ones are read in windows.
            pairs: their second texts, for a model of pairs.
        """
        words = [words_of(text) for text in texts] if self.kind == "token-classification" else None
        logits = self.logits(texts, pairs, words)
        if words is None:
            return [self._classified(values) for values in logits]
        rows = []
        for own, values in zip(words, logits, strict=True):
            spans = entities(own, values, self.labels, self._temperature)
            names = ("start", "end", "label", "score")
            rows.append({"spans": [dict(zip(names, span, strict=True)) for span in spans]})
        return rows

    def _classified(self, logits: np.ndarray) -> dict[str, Any]:
        probabilities = softmax(logits, self._temperature)
        best = int(probabilities.argmax())
        if (threshold := self.record["threshold"]) is not None:  # of two classes
            positive = self.labels.index(threshold["positive"])
            best = positive if probabilities[positive] >= threshold["probability"] else 1 - positive
        return {
            "label": self.labels[best],
            "score": float(probabilities[best]),
            "probabilities": dict(zip(self.labels, probabilities.tolist(), strict=True)),
        }

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, words: Sequence[Words] | None = None
    ) -> list[np.ndarray]:
        """For each text (classes,), the mean over its windows; or (words, tags) up to the last word that was read.

        Words that the tokenizer drops have rows of NaN.

        Args:
            texts, pairs: as for `predict`.
            words: in token classification, (start, end) of the words of each text.

        Raises:
            InputError: pairs where there should be none, or the other way round.
        """
        if (pairs is not None) != self.text_pair:
            raise InputError(f"the model reads {'pairs of texts' if self.text_pair else 'single texts'}")
        if self.kind == "token-classification":
            windows = self._windows_by_word(texts, words or [words_of(text) for text in texts])
        else:
            windows = self._windows_by_text(texts, pairs)
        counts, last = np.zeros(len(texts), int), np.full(len(texts), -1)
        for window in windows:
            counts[window.text] += 1
            last[window.text] = max(last[window.text], max(window.words, default=-1))
        if self.kind == "sequence-classification":
            found = [np.zeros(self._outputs, np.float32) for _ in texts]
        else:
            found = [np.full((end + 1, self._outputs), np.nan, np.float32) for end in last]
        for group in self._groups(windows):
            for window, values in zip(group, self._run(group), strict=True):
                if self.kind == "sequence-classification":
                    found[window.text] += values / counts[window.text]
                else:
                    found[window.text][window.words] = values[window.columns]
        return found

    def _run(self, windows: Sequence[_Window]) -> np.ndarray:
        length = max(len(window.ids) for window in windows)
        ids = np.full((len(windows), length), self._padding, np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, window in enumerate(windows):
            ids[row, : len(window.ids)] = window.ids
            mask[row, : len(window.ids)] = 1
            if window.second_from:
                types[row, window.second_from : len(window.ids)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, **({"token_type_ids": types} if self._typed else {})}
        result: np.ndarray = self._session.run(["logits"], inputs)[0]
        return result

    def _groups(self, windows: Sequence[_Window]) -> Iterator[list[_Window]]:
        """Windows of like lengths, so many at once as the budget allows."""
        group: list[_Window] = []
        for window in sorted(windows, key=lambda window: -len(window.ids)):
            if group and (len(group) + 1) * len(group[0].ids) > self._budget:
                yield group
                group = []
            group.append(window)
        if group:
            yield group

    def _windows_by_text(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[_Window]:
        firsts = [entry.ids for entry in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        seconds: list[list[int] | None] = [None] * len(firsts)
        if pairs is not None:
            seconds = [entry.ids for entry in self._tokenizer.encode_batch(list(pairs), add_special_tokens=False)]
        windows = []
        for text, (ids, second) in enumerate(zip(firsts, seconds, strict=True)):
            if second is None:
                for start, stop in self._spans(len(ids), self._capacity()):
                    windows.append(_Window(text, [*self._before, *ids[start:stop], *self._after]))
                continue
            both = self._max_length - len(self._before) - len(self._between) - len(self._after_pair)
            room = both - min(len(second), max(both // 2, both - len(ids)))
            kept = second[: max(0, both - room)]
            for start, stop in self._spans(len(ids), room):
                first = [*self._before, *ids[start:stop], *self._between]
                windows.append(_Window(text, [*first, *kept, *self._after_pair], len(first)))
        return windows

    def _windows_by_word(self, texts: Sequence[str], words: Sequence[Words]) -> list[_Window]:
        """Each word is cut into pieces alone, with the blank before it, as byte-level tokenizers want it."""
        spelt = [
            [" " * (start > 0 and text[start - 1].isspace()) + text[start:end] for start, end in own]
            for text, own in zip(texts, words, strict=True)
        ]
        known = list(dict.fromkeys(word for own in spelt for word in own))
        cut = self._tokenizer.encode_batch([[word] for word in known], is_pretokenized=True, add_special_tokens=False)
        pieces = {word: entry.ids for word, entry in zip(known, cut, strict=True)}
        windows = []
        for text, own in enumerate(spelt):
            ids: list[int] = []
            numbers, places = [], []  # the words that have pieces, and where these begin
            for number, word in enumerate(own):
                if pieces[word]:
                    numbers.append(number)
                    places.append(len(ids))
                    ids += pieces[word]
            windows += self._placed(text, ids, np.array(numbers, int), np.array(places, int))
        return windows

    def _placed(self, text: int, ids: list[int], numbers: np.ndarray, places: np.ndarray) -> list[_Window]:
        """Windows of a tagged text; each word belongs to the one in which the nearer cut is farthest from it."""
        spans = self._spans(len(ids), self._capacity())
        context = np.full((len(spans), len(places)), -1)
        for row, (start, stop) in enumerate(spans):
            left = places - start if start > 0 else np.full_like(places, len(ids))
            right = stop - 1 - places if stop < len(ids) else np.full_like(places, len(ids))
            inside = (places >= start) & (places < stop)
            context[row] = np.where(inside, np.minimum(left, right), -1)
        windows = []
        for row, (start, stop) in enumerate(spans):
            own = (context.argmax(axis=0) == row) & (context[row] >= 0)
            columns = places[own] - start + len(self._before)
            whole = [*self._before, *ids[start:stop], *self._after]
            windows.append(_Window(text, whole, columns=columns, words=numbers[own]))
        return windows

    def _capacity(self) -> int:
        return int(self._max_length - len(self._before) - len(self._after))

    def _spans(self, count: int, room: int) -> list[tuple[int, int]]:
        if count <= room or self._overlap is None:
            return [(0, min(count, room))]
        step = room - min(self._overlap, room // 2)
        return [(start, start + room) for start in [*range(0, count - room, step), count - room]]


class _Classes(dict[int, str]):
    """For `str.translate`: what kind of character each is."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)[0]
        found = " " if character.isspace() else "L" if kind in "LM" else "N" if kind == "N" else "X"
        self[code] = found
        return found


_CLASSES = _Classes()
_RUNS = re.compile("L+|N+|X")


def words_of(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words of a text: runs of letters with their combining marks, runs of digits, and every other
    character that is no white space alone."""
    return [match.span() for match in _RUNS.finditer(text.translate(_CLASSES))]


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities along the last axis."""
    logits = logits / temperature
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def entities(
    words: Words, logits: np.ndarray, labels: Sequence[str], temperature: float = 1.0
) -> list[tuple[int, int, str, float]]:
    """(start, end, label, score) of the entities in the most probable tag sequence in which I- only continues an entity of
    its own type.

    Args:
        words: (start, end) of each word.
        logits: (words, tags) up to the last word that was read, tags O, then B- and I- of each label; NaN for words that
            the tokenizer dropped: they continue the entity around them and are O elsewhere.
        labels: entity types.
        temperature: of the scores.
    """
    seen = np.flatnonzero(~np.isnan(logits[:, 0]))
    if not len(seen):
        return []
    best = dict(zip(seen.tolist(), _viterbi(logits[seen].astype(np.float64)).tolist(), strict=True))
    tags, following = [0] * len(logits), 0
    for position in range(len(logits) - 1, -1, -1):
        following = best.get(position, following)
        tags[position] = following if position in best or following % 2 == 0 else 0
    probabilities = softmax(np.nan_to_num(logits), temperature)
    found, position = [], 0
    while position < len(tags):
        begin, tag = position, tags[position]
        position += 1
        if tag % 2 == 1:
            while position < len(tags) and tags[position] == tag + 1:
                position += 1
            scores = [probabilities[place, tags[place]] for place in range(begin, position) if place in best]
            found.append((words[begin][0], words[position - 1][1], labels[(tag - 1) // 2], float(np.mean(scores))))
    return found


def _viterbi(logits: np.ndarray) -> np.ndarray:
    width = logits.shape[1]
    penalty = np.zeros((width, width))
    for inside in range(2, width, 2):
        penalty[:, inside] = -np.inf
        penalty[[inside - 1, inside], inside] = 0
    score = logits[0].copy()
    score[2::2] = -np.inf
    back = np.zeros(logits.shape, np.int64)
    for step in range(1, len(logits)):
        options = score[:, None] + penalty
        back[step] = options.argmax(axis=0)
        score = options.max(axis=0) + logits[step]
    path = np.empty(len(logits), np.int64)
    path[-1] = score.argmax()
    for step in range(len(logits) - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path


def _lacks_vnni() -> bool:
    """Whether this is an x86 processor on Linux without 8-bit dot products; False where nobody can tell."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _read(line: str, number: int) -> tuple[Any, str, str | None]:
    """Id, text and second text of a line."""
    try:
        value = json.loads(line)
    except ValueError:
        raise InputError(f"line {number} is no valid JSON") from None
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise InputError(f'line {number} has no "text" that is a string')
    pair = value.get("text_pair")
    if pair is not None and not isinstance(pair, str):
        raise InputError(f'line {number} has a "text_pair" that is no string')
    return value.get("id", number), value["text"], pair


def _answer(runtime: Runtime, rows: Sequence[tuple[Any, str, str | None]]) -> None:
    ids, texts, seconds = zip(*rows, strict=True)
    if any((second is not None) != runtime.text_pair for second in seconds):
        needs = "needs a" if runtime.text_pair else "takes no"
        raise InputError(f'the model {needs} "text_pair" in every line')
    for id, answer in zip(ids, runtime.predict(texts, seconds if runtime.text_pair else None), strict=True):
        print(json.dumps({"id": id, **answer}, ensure_ascii=False))


def main() -> int:
    """Answers the lines of standard input."""
    parser = argparse.ArgumentParser(description="Answers JSON Lines with a model that `posology export` has written.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, help="of onnxruntime; 0 for one on each core")
    arguments = parser.parse_args()
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        runtime = Runtime(arguments.folder, threads=arguments.threads)
        rows = []
        for number, line in enumerate(sys.stdin, start=1):
            if line.strip():
                rows.append(_read(line, number))
            if len(rows) == BLOCK_TEXTS:
                _answer(runtime, rows)
                rows = []
        if rows:
            _answer(runtime, rows)
    except InputError as error:
        print(f"posology_runtime: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
