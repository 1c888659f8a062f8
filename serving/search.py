"""Titles by what somebody types: whole names, beginnings of names and of words, small typos.

Names and queries are compared without case, accents, punctuation and spaces, and an article in front (`The Matrix`,
`Matrix, The`) may be there or not. In scripts that leave no space between words a name is one word.
Shape letters: N titles, W words, P places where a word stands in a title, K titles found.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

TIERS = ("exact", "prefix", "words", "typos")  # how a title was found, the better first
_EXACT, _PREFIX, _WORDS, _TYPOS = range(len(TIERS))
_ARTICLES = ("the", "a", "an", "le", "la", "les", "l", "un", "une", "il", "lo", "el", "los", "las", "der", "die", "das",
             "ein", "eine")  # fmt: skip
_ACCENTED = re.compile("([A-Za-z\u0370-\u03ff\u0400-\u052f])[\u0300-\u036f]+")  # a letter and its combining accents
_FOLDED = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i",
                         "&": " and ", "’": "'", "ʼ": "'", "`": "'"})  # fmt: skip
_BEHIND = re.compile(rf"(.+),\s*({'|'.join(_ARTICLES)})\b'?\s*(\(.*)?", re.DOTALL)  # `Matrix, The`
_ELISION = re.compile(r"\b([dl])'")  # of L'Avventura; other apostrophes stand within a word
_NO_WORD = re.compile(r"[\W_]+")
_LONGEST = 24  # letters of a word that typos are looked for in
_COUNTED = 10  # words of a query that are looked up one by one
_CLOSE = 250  # words of most letter pairs in common, of which the near ones are kept


def plain(text: str) -> str:
    """Lower case without the accents of Latin, Greek and Cyrillic letters (in other scripts marks are letters of their
    own), an article behind the comma brought to the front; punctuation as it is."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", _ACCENTED.sub(r"\1", unicodedata.normalize("NFKD", text)))
    text = text.casefold().translate(_FOLDED)
    behind = _BEHIND.fullmatch(text)
    text = f"{behind[2]} {behind[1]} {behind[3] or ''}" if behind else text
    return _ELISION.sub(r"\1 ", text).replace("'", "")


def words_of(text: str) -> list[str]:
    """The words of what `plain` returns: letters and digits, nothing else."""
    return _NO_WORD.sub(" ", text).split()


def without_article(words: list[str]) -> list[str]:
    """Words without an article in front, unless nothing would be left."""
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


class TitleSearch:
    """An index of N names. popular: title indices int64 [N], most popular first."""

    def __init__(self, names: Sequence[str], popular: np.ndarray) -> None:
        self.popular = popular
        self._place = np.empty(len(names), np.int64)
        self._place[popular] = np.arange(len(names))
        whole: dict[tuple[str, int], None] = {}
        stands: dict[tuple[str, int], None] = {}
        for title, name in enumerate(names):
            text = plain(name)
            words = words_of(text)
            whole[("".join(words), title)] = None
            whole[("".join(without_article(words)), title)] = None
            for token in text.split():
                parts = words_of(token)
                for word in (*parts, "".join(parts)):  # `spider-man` by spider, man and spiderman
                    if word:
                        stands[word, title] = None
        self._names, self._name_titles = _columns(whole)
        words, self._word_titles = _columns(stands)
        self._words = list(dict.fromkeys(words))
        self._starts = np.searchsorted(np.array(words, object), np.array([*self._words, _end("")], object))
        self._letters = _letters(self._words)
        self._pairs = _Pairs(self._words)

    def find(
        self, query: str, limit: int, enough: int | None = None, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(title indices int64 [K], tiers int8 [K]) for what was typed, K <= limit: better tiers first, and within a
        tier the more popular. Nothing typed, or no letter and no digit, finds nothing.

        exact: the whole name. prefix: its beginning. words: each word begins a word of the name. typos: as words, but
        words of 4 to 7 letters may have one letter wrong, left out, too many or swapped with the next, longer ones
        two, numbers none; looked for only where no whole name and less than `enough` (default: limit) was found.
        excluded: bool [N], titles not to be found.
        """
        found, tiers = [np.empty(0, np.int64)], [np.empty(0, np.int8)]
        free = np.ones(len(self._place), bool) if excluded is None else ~excluded
        count, whole = 0, False
        for tier, titles in self._by_tier(words_of(plain(query))):
            fresh = np.zeros_like(free)
            fresh[titles] = True
            fresh &= free
            free &= ~fresh
            places = self._place[fresh]
            if len(places) > limit - count:
                places = np.partition(places, limit - count)[: limit - count]
            found.append(self.popular[np.sort(places)])
            tiers.append(np.full(len(places), tier, np.int8))
            count += len(places)
            whole |= tier == _EXACT and len(places) > 0
            if count >= limit or (tier == _WORDS and (whole or count >= (limit if enough is None else enough))):
                break
        return np.concatenate(found), np.concatenate(tiers)

    def _by_tier(self, words: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        """(tier, title indices) one after the other, only as far as asked; a title may come again."""
        if not words or not self._words:
            return
        whole, bare = "".join(words), "".join(without_article(words))
        names = self._names
        same = [self._name_titles[bisect_left(names, name) : bisect_right(names, name)] for name in (whole, bare)]
        yield _EXACT, np.concatenate(same)
        yield _PREFIX, self._name_titles[bisect_left(names, whole) : bisect_left(names, _end(whole))]
        counted = list(dict.fromkeys(without_article(words)))[:_COUNTED]
        begun = [self._beginning(word) for word in counted]
        yield _WORDS, self._in_all(begun)
        meant = [np.union1d(here, self._with_typos(word)) for here, word in zip(begun, counted, strict=True)]
        yield _TYPOS, self._in_all(meant)

    def _beginning(self, word: str) -> np.ndarray:
        """Words int64 that begin with one."""
        return np.arange(bisect_left(self._words, word), bisect_left(self._words, _end(word)))

    def _in_all(self, choices: list[np.ndarray]) -> np.ndarray:
        """Titles that have one word at least of each choice int64."""
        all_of = np.ones(len(self._place), bool)
        for words in choices:
            one_of = np.zeros_like(all_of)
            if len(words) and words[-1] - words[0] + 1 == len(words):  # neighbours in the alphabet
                one_of[self._word_titles[self._starts[words[0]] : self._starts[words[-1] + 1]]] = True
            else:
                for w in words.tolist():
                    one_of[self._word_titles[self._starts[w] : self._starts[w + 1]]] = True
            all_of &= one_of
        return np.flatnonzero(all_of)

    def _with_typos(self, word: str) -> np.ndarray:
        """Words int64 that somebody may have meant who typed one, or its beginning, with a small mistake."""
        allowed = 0 if word.isdigit() else min(len(word) // 4, 2)  # 2000 is not 2001
        if not allowed:
            return np.empty(0, np.int64)
        close = self._pairs.close(word[:_LONGEST], allowed)
        return close[_near(_letters([word])[0, : len(word)], self._letters[close], allowed)]


class _Pairs:
    """Which of W words have which pair of letters, the first letter with what is before it."""

    def __init__(self, words: Sequence[str]) -> None:
        pairs: dict[str, int] = {}
        found = [(pairs.setdefault(p, len(pairs)), i) for i, word in enumerate(words) for p in _pairs(word[:_LONGEST])]
        pair, word = np.array(found, np.int64).reshape(-1, 2).T
        self._words = word[np.argsort(pair, kind="stable")].astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(pair, minlength=len(pairs)))])
        self._pairs, self._count = pairs, len(words)

    def close(self, word: str, mistakes: int) -> np.ndarray:
        """Words int64 that may be at most so many mistakes away, at most 250, those first that share most pairs. One
        mistake costs a word three pairs at most."""
        pairs = _pairs(word)
        known = [self._pairs[p] for p in pairs if p in self._pairs]
        shared = [self._words[self._starts[p] : self._starts[p + 1]] for p in known]
        common = np.bincount(np.concatenate([np.empty(0, np.int32), *shared]), minlength=self._count)
        least = max(1, len(pairs) - 3 * mistakes)
        close = np.flatnonzero(common >= least)
        if len(close) > _CLOSE:
            close = np.sort(close[np.argsort(-common[close], kind="stable")[:_CLOSE]])
        return close


def _pairs(word: str) -> dict[str, None]:
    padded = " " + word
    return dict.fromkeys(padded[i : i + 2] for i in range(len(word)))


def _letters(words: Sequence[str]) -> np.ndarray:
    """Code points int32 [W, 24], 0 behind the end."""
    return np.array(words, f"U{_LONGEST}").view(np.int32).reshape(len(words), _LONGEST)


def _near(typed: np.ndarray, words: np.ndarray, allowed: int) -> np.ndarray:
    """bool [W]: whether a typed word int32 [L] is at most so many mistakes (a letter wrong, missing, too many, or two
    swapped) away from a beginning of words int32 [W, 24] that is as long at least, or from the whole of a shorter one.

    Optimal string alignment, all words at once; of its table only what so few mistakes can reach.
    """
    length, width = len(typed), min(words.shape[1], len(typed) + allowed)
    same = words.T[None, :width] == typed[:, None, None]  # bool [L, width, W]
    table = np.full((length + 1, width + 1, len(words)), allowed + 1, np.int8)
    table[0, : allowed + 1] = table[: allowed + 1, 0] = np.arange(allowed + 1)[: width + 1, None]
    for i in range(1, length + 1):
        for j in range(max(1, i - allowed), min(width, i + allowed) + 1):
            least = table[i - 1, j - 1] + ~same[i - 1, j - 1]
            np.minimum(least, table[i - 1, j] + 1, out=least)
            np.minimum(least, table[i, j - 1] + 1, out=least)
            if i > 1 and j > 1:
                swapped = same[i - 2, j - 1] & same[i - 1, j - 2]
                np.minimum(least, table[i - 2, j - 2] + 1, out=least, where=swapped)
            table[i, j] = least
    ends, column = (words != 0).sum(1), np.arange(width + 1)[:, None]
    counts = (column <= ends) & ((column >= length) | (column == ends))
    return ((table[-1] <= allowed) & counts).any(0)


def _columns(pairs: dict[tuple[str, int], None]) -> tuple[list[str], np.ndarray]:
    """Sorted by text, then title: the texts, and the titles int64."""
    ordered = sorted(pairs)
    return [text for text, _ in ordered], np.array([title for _, title in ordered], np.int64)


def _end(prefix: str) -> str:
    """What stands behind every text of letters and digits that begins with `prefix`."""
    return prefix + "\U0010ffff"
