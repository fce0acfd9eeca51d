"""Masked words: which are hidden from the model, as a function of seed, step and text alone.

Whole words are hidden, all pieces of each (Google's BERT repository, 2019; Cui et al. 2021): a piece whose neighbours are
pieces of the same word is too easy to guess. Of the hidden pieces 80 % become the mask, 10 % another piece, and 10 %
stay as they are (Devlin et al. 2019, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from posology.engine.encode import Frame, Window
from posology.errors import UserError

TRAINING, HELD_OUT = 0, 1
"""What masks are drawn for: the first part of what they follow from, after the seed."""
_MASKED, _RANDOM = 0.8, 0.9


@dataclass(frozen=True)
class Masker:
    """Hides words of a text.

    Attributes:
        rate: share of the pieces that are hidden, on average; at least one word of each text is.
        seed: what is hidden follows from it.
        mask: id of the mask.
        ordinary: ids that may take the place of a piece: all but special ones.
        special: (vocabulary,) whether an id is special; unknown words count as such, since nobody could guess them.
        before, after: special tokens around a text.
    """

    rate: float
    seed: int
    mask: int
    ordinary: np.ndarray
    special: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, rate: float, seed: int) -> Masker:
        """For a tokenizer.

        Raises:
            UserError: it has no mask, or the rate is none.
        """
        if not 0 < rate < 1:
            raise UserError(
                f"{rate} is no share of the words", "Give a number between 0 and 1, such as 0.15", "--mask-rate"
            )
        if tokenizer.mask_token_id is None:
            raise UserError(
                "its tokenizer has no mask token, so it was not pre-trained by masking",
                "Choose an encoder such as BERT or RoBERTa",
                "--backbone",
            )
        special = np.zeros(len(tokenizer), bool)
        special[[number for number in tokenizer.all_special_ids if number < len(special)]] = True
        frame = Frame.of(tokenizer)
        return cls(
            rate,
            seed,
            int(tokenizer.mask_token_id),
            np.flatnonzero(~special),
            special,
            np.array(frame.before, np.int64),
            np.array(frame.after, np.int64),
        )

    def chosen(self, starts: np.ndarray, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Which pieces are hidden, rising places among `ids`; none where every word has a special piece.

        Words come in a random order, and are taken while their middle lies within the share: on average that share of
        the pieces is hidden, however long words are.

        Args:
            starts: (pieces,) whether a piece begins a word.
            ids: (pieces,) of them.
            draw: random numbers.
        """
        word = np.cumsum(starts) - 1 if starts[0] else np.cumsum(starts)
        words = int(word[-1]) + 1
        spoilt = np.zeros(words, bool)
        spoilt[word[self.special[ids]]] = True
        order = draw.permutation(words)
        order = order[~spoilt[order]]
        if not len(order):
            return np.empty(0, np.int64)
        sizes = np.bincount(word, minlength=words)[order]
        taken = np.cumsum(sizes) - sizes / 2 <= self.rate * len(ids)
        taken[0] = True
        hidden = np.zeros(words, bool)
        hidden[order[taken]] = True
        return np.flatnonzero(hidden[word])

    def window(self, number: int, ids: np.ndarray, starts: np.ndarray, *when: int) -> Window:
        """A text with some of its words hidden, special tokens around it.

        Args:
            number: of the text in its corpus.
            ids: its pieces.
            starts: whether each begins a word.
            when: what else the choice follows from: `TRAINING` and the step, or `HELD_OUT`.

        Returns:
            A window whose `columns` are the hidden pieces, and whose `words` are their true ids.
        """
        draw = np.random.default_rng((self.seed, *when, number))
        places = self.chosen(starts, ids, draw)
        shown = ids.astype(np.int64)
        targets = shown[places]
        lot = draw.random(len(places))
        others = self.ordinary[draw.integers(0, len(self.ordinary), len(places))]
        shown[places] = np.where(lot < _MASKED, self.mask, np.where(lot < _RANDOM, others, targets))
        row = np.concatenate((self.before, shown, self.after))
        return Window(number, row, 0, places + len(self.before), targets)


class Whole:
    """Takes the place of `Masker` where nothing is guessed: texts as they are, all of whose pieces are compared.

    Args:
        before, after: special tokens around a text.
        seed: of the order of held-out texts.
    """

    def __init__(self, before: Sequence[int], after: Sequence[int], seed: int):
        self._before, self._after, self.seed = np.array(before, np.int64), np.array(after, np.int64), seed

    def window(self, number: int, ids: np.ndarray, _starts: np.ndarray, *_when: int) -> Window:
        """See `Masker.window`."""
        return Window(
            number, np.concatenate((self._before, ids, self._after)), 0, np.arange(len(ids)) + len(self._before), ids
        )
