"""When two texts have the same words, however these are written: one rule for splits, leaks and corpora.

Words are runs of letters, marks and digits, whatever stands between them. They are compared after the caseless matching
of the Unicode Standard (section 3.13, NFKC_Casefold): composed or decomposed, full-width or not, with or without soft
hyphens, capitals or small letters. Chinese and Japanese characters are words of their own, since nothing is written
between the words of these languages.
"""

from __future__ import annotations

import unicodedata

import regex

WORD = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*"
"""A word of a folded text, as `regex` and polars read it."""

_WORD = regex.compile(WORD)
_HALF = regex.compile(r"\p{Cs}")
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_ALONE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー]\p{M}*")


def encodable(text: str) -> str:
    """The text with a blank for each half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text if text.isascii() else _HALF.sub(" ", text)


def folded(text: str) -> str:
    """A text to take `WORD`s from: equal words are equal strings in it. It can be encoded."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", encodable(text))).casefold()
    return _ALONE.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))  # folding may take letters apart again


def wording(text: str) -> str:
    """The words of a text, with a blank between them."""
    return " ".join(_WORD.findall(folded(text)))
