"""Which words are hidden."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.errors import UserError
from posology.pretrain.masking import HELD_OUT, TRAINING, Masker
from posology.pretrain.order import Order
from tests.engine.tiny import tokenizer

WORDS = st.lists(st.integers(1, 9), min_size=1, max_size=60)


def masker(rate: float = 0.15, seed: int = 3) -> Masker:
    return Masker.of(tokenizer(), rate, seed)


def text(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of ordinary pieces, and where words of these sizes begin."""
    starts = np.zeros(sum(sizes), bool)
    starts[np.cumsum([0, *sizes[:-1]])] = True
    return np.random.default_rng(0).integers(5, 60, len(starts)), starts


@given(WORDS, st.floats(0.05, 0.9), st.integers(0, 2**20))
@settings(max_examples=150, deadline=None)
def test_words_are_hidden_as_a_whole_and_at_least_one_is(sizes: list[int], rate: float, step: int) -> None:
    own = masker(rate)
    ids, starts = text(sizes)
    window = own.window(7, ids, starts, TRAINING, step)
    assert window.ids[0] == 2 and window.ids[-1] == 3 and len(window.ids) == len(ids) + 2  # [CLS] and [SEP]
    hidden = np.zeros(len(ids), bool)
    hidden[window.columns - 1] = True
    word = np.cumsum(starts) - 1
    by_word = np.bincount(word[hidden], minlength=len(sizes))
    assert set(zip(by_word.tolist(), sizes, strict=True)) <= {(own, own) for own in sizes} | {(0, own) for own in sizes}
    assert hidden.any()
    np.testing.assert_array_equal(window.words, ids[hidden])
    np.testing.assert_array_equal(np.delete(window.ids[1:-1], np.flatnonzero(hidden)), ids[~hidden])


def test_the_share_of_hidden_pieces_is_the_rate_and_long_words_are_hidden_as_often() -> None:
    sizes = [1, 1, 1, 2, 5] * 8
    ids, starts = text(sizes)
    own, word = masker(), np.cumsum(starts) - 1
    times = np.zeros(len(sizes))
    for step in range(1500):
        window = own.window(0, ids, starts, TRAINING, step)
        times[np.unique(word[window.columns - 1])] += 1
    shares = times / 1500
    assert (shares * sizes).sum() / sum(sizes) == pytest.approx(0.15, abs=0.01)
    assert shares[np.array(sizes) == 5].mean() == pytest.approx(shares[np.array(sizes) == 1].mean(), abs=0.02)


def test_of_hidden_pieces_eighty_percent_are_masked_and_ten_are_others() -> None:
    ids, starts = text([1] * 2000)
    own = masker(0.9)
    shown, wanted = [], []
    for step in range(10):
        window = own.window(0, ids, starts, TRAINING, step)
        shown.append(window.ids[window.columns])
        wanted.append(window.words)
    given_, true = np.concatenate(shown), np.concatenate(wanted)
    assert (given_ == own.mask).mean() == pytest.approx(0.8, abs=0.01)
    # One of 115 ordinary pieces that are drawn is the true one.
    assert (given_ == true).mean() == pytest.approx(0.1 + 0.1 / 115, abs=0.01)
    assert not np.isin(given_[given_ != own.mask], tokenizer().all_special_ids).any()


def test_masks_follow_from_seed_step_and_text_alone() -> None:
    ids, starts = text([2, 1, 3] * 10)

    def hidden(own: Masker, number: int, *when: int) -> bytes:
        return own.window(number, ids, starts, *when).ids.tobytes()

    assert hidden(masker(), 4, TRAINING, 9) == hidden(masker(), 4, TRAINING, 9)
    all_ = [
        hidden(masker(), 4, TRAINING, 9),
        hidden(masker(), 5, TRAINING, 9),
        hidden(masker(), 4, TRAINING, 10),
        hidden(masker(), 4, HELD_OUT),
        hidden(masker(seed=8), 4, TRAINING, 9),
    ]
    assert len(set(all_)) == len(all_)


def test_words_that_nobody_could_guess_are_not_hidden() -> None:
    own, starts = masker(0.9), np.array([True, False, True])
    for step in range(20):
        window = own.window(0, np.array([7, 1, 9]), starts, TRAINING, step)  # 1 is [UNK]
        assert window.columns.tolist() == [3]
    assert not len(own.window(0, np.array([1]), starts[:1], TRAINING, 0).words)


def test_a_rate_or_a_tokenizer_without_a_mask_is_refused() -> None:
    for rate in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="no share of the words"):
            masker(rate)
    bare = tokenizer()
    bare.mask_token = None
    with pytest.raises(UserError, match="no mask token"):
        Masker.of(bare, 0.15, 0)


@given(st.integers(1, 3000), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_order_has_each_text_once(count: int, seed: int, epoch: int) -> None:
    order = Order(count, seed, epoch)
    assert sorted(order(np.arange(count)).tolist()) == list(range(count))
    some = np.arange(count)[::7]
    np.testing.assert_array_equal(order(some), order(np.arange(count))[some])


def test_orders_look_random_and_differ_by_epoch() -> None:
    places = np.arange(10_000)
    first, second = Order(10_000, 1, 0)(places), Order(10_000, 1, 1)(places)
    assert (first != second).mean() > 0.99
    for found in (first, second):
        assert abs(np.corrcoef(found, places)[0, 1]) < 0.05
        assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.05
