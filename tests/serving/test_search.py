"""Titles by what somebody types: which names fit, how well, and what never breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from frontrow.serving.search import TIERS, TitleSearch, plain

NAMES = [
    "Alien", "Aliens", "The Alienist", "Matrix, The", "The Matrix Reloaded", "Les Misérables", "M*A*S*H", "Face/Off",
    "Spider-Man", "The Amazing Spider-Man 2", "Schindler's List", "2001: A Space Odyssey", "2000 Mules",
    "The Lost City of Z", "L'Avventura", "Das Boot", "Ærø", "千と千尋の神隠し", "Will & Grace", "The", "Alien", "???",
    "ALIEN: Resurrection",
]  # fmt: skip
POPULAR = np.arange(len(NAMES))[::-1].copy()  # the last name is the most popular


@pytest.fixture(scope="module")
def search() -> TitleSearch:
    return TitleSearch(NAMES, POPULAR)


def found(search: TitleSearch, query: str, **more: int) -> list[tuple[str, str]]:
    titles, tiers = search.find(query, more.pop("limit", 50), **more)
    assert len(set(titles.tolist())) == len(titles), "no title twice"
    assert (np.diff(tiers) >= 0).all(), "better tiers first"
    return [(NAMES[t], TIERS[tier]) for t, tier in zip(titles, tiers, strict=True)]


def names(search: TitleSearch, query: str, **more: int) -> list[str]:
    return [name for name, _ in found(search, query, **more)]


def test_the_whole_name_stands_before_beginnings_and_these_before_words_and_typos(search: TitleSearch) -> None:
    assert found(search, "alien") == [
        ("Alien", "exact"), ("Alien", "exact"), ("ALIEN: Resurrection", "prefix"), ("The Alienist", "prefix"),
        ("Aliens", "prefix"),
    ]  # fmt: skip
    assert found(search, "space") == [("2001: A Space Odyssey", "words")]
    assert found(search, "aleins") == [("Aliens", "typos")]


def test_within_a_tier_the_more_popular_come_first_and_are_kept(search: TitleSearch) -> None:
    assert names(search, "a", limit=2) == ["ALIEN: Resurrection", "Alien"]
    titles, _ = search.find("alien", 1)
    assert titles.tolist() == [20], "the more popular of two of the same name"


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("ALIENS", "Aliens"),
        ("les miserables", "Les Misérables"),
        ("LES MISE\u0301RABLES", "Les Misérables"),
        ("mise", "Les Misérables"),
        ("the matrix", "Matrix, The"),
        ("Matrix, The", "Matrix, The"),
        ("matrix", "Matrix, The"),
        ("a matrix", "Matrix, The"),
        ("mash", "M*A*S*H"),
        ("m a s h", "M*A*S*H"),
        ("face off", "Face/Off"),
        ("faceoff", "Face/Off"),
        ("spiderman", "Spider-Man"),
        ("spider man", "Spider-Man"),
        ("schindlers list", "Schindler's List"),
        ("schindler’s", "Schindler's List"),
        ("avventura", "L'Avventura"),
        ("l’avventura", "L'Avventura"),
        ("boot", "Das Boot"),
        ("aero", "Ærø"),
        ("千と", "千と千尋の神隠し"),
        ("will and grace", "Will & Grace"),
        ("the", "The"),
        ("  alien\t\n", "Alien"),
        ("alien👽\x00", "Alien"),
    ],
)
def test_case_accents_punctuation_spaces_and_articles_do_not_matter(search: TitleSearch, query: str, name: str) -> None:
    assert found(search, query)[0][0] == name
    assert found(search, query)[0][1] in ("exact", "prefix")


def test_each_word_may_be_the_beginning_of_any_word_in_any_order(search: TitleSearch) -> None:
    assert found(search, "odys spa") == [("2001: A Space Odyssey", "words")]
    assert found(search, "spiderm ama") == [("The Amazing Spider-Man 2", "words")]
    assert names(search, "space nothing") == []


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("matirx", "Matrix, The"),  # swapped
        ("matix", "Matrix, The"),  # left out
        ("mattrix", "Matrix, The"),  # too many
        ("katrix", "Matrix, The"),  # wrong, the first too
        ("resurektion", "ALIEN: Resurrection"),  # two in a long word
        ("odysey", "2001: A Space Odyssey"),
        ("amzing spider", "The Amazing Spider-Man 2"),  # one word right, one not
        ("resurre", "ALIEN: Resurrection"),
        ("rusurre", "ALIEN: Resurrection"),  # of a word still being typed
    ],
)
def test_small_typos_are_forgiven(search: TitleSearch, query: str, name: str) -> None:
    assert name in names(search, query)


def test_what_is_no_small_typo_is_not(search: TitleSearch) -> None:
    for query in ("mtrxi", "2002", "lxt", "boat trips", "qqqqqq"):
        assert found(search, query) == [], query


def test_typos_are_looked_for_only_where_no_whole_name_and_little_was_found() -> None:
    """`alien` is one letter off `aliena`, and is not asked for where one title is enough or the name is whole."""
    begun = TitleSearch(["Aliena Two", "Alien"], np.arange(2))
    assert begun.find("aliena", 50)[1].tolist() == [1, 3]
    assert begun.find("aliena", 50, enough=1)[1].tolist() == [1]
    assert TitleSearch(["Aliena", "Alien"], np.arange(2)).find("aliena", 50)[1].tolist() == [0]


def mistakes(typed: str, word: str) -> int:
    """Optimal string alignment, cell by cell."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(word) + 1)] for i in range(len(typed) + 1)]
    for i in range(1, len(typed) + 1):
        for j in range(1, len(word) + 1):
            options = [table[i - 1][j - 1] + (typed[i - 1] != word[j - 1]), table[i - 1][j] + 1, table[i][j - 1] + 1]
            if min(i, j) > 1 and typed[i - 2 : i] == word[j - 1] + word[j - 2]:
                options.append(table[i - 2][j - 2] + 1)
            table[i][j] = min(options)
    return table[-1][-1]


def test_typos_against_all_words_one_by_one() -> None:
    rng = np.random.default_rng(2)
    names = list(dict.fromkeys("".join(rng.choice(list("abc"), rng.integers(2, 12))) for _ in range(300)))
    search = TitleSearch(names, np.arange(len(names)))
    found_any = 0
    for query in ["".join(rng.choice(list("abc"), n)) for n in (3, 4, 5, 6, 7, 8, 9, 10, 11) for _ in range(8)]:
        titles, tiers = search.find(query, len(names))
        if 0 in tiers:
            continue
        allowed = min(len(query) // 4, 2)
        expected = []
        for title, word in enumerate(names):
            ends = {len(word)} | set(range(len(query), len(word)))
            if allowed and not word.startswith(query) and min(mistakes(query, word[:e]) for e in ends) <= allowed:
                expected.append(title)
        assert titles[tiers == 3].tolist() == expected, query
        found_any += len(expected)
    assert found_any > 100


@pytest.mark.parametrize("query", ["", " ", "\t\n", "\x00\x07", "👽🚀", "?!", "'", "\ud800", "\u0301"])
def test_without_a_letter_or_a_digit_nothing_is_found(search: TitleSearch, query: str) -> None:
    assert found(search, query) == []


def test_excluded_titles_leave_their_place_to_others(search: TitleSearch) -> None:
    excluded = np.zeros(len(NAMES), bool)
    excluded[[0, 20]] = True
    titles, _ = search.find("alien", 2, excluded=excluded)
    assert [NAMES[t] for t in titles] == ["ALIEN: Resurrection", "The Alienist"]


def test_long_queries_and_long_words_break_nothing(search: TitleSearch) -> None:
    for query in ("x" * 256, "ab " * 85, " ".join(f"word{i}" for i in range(30)), "a" * 255 + "é"):
        assert found(search, query) == []
    long = "z" * 300
    assert TitleSearch([long], np.array([0])).find(long[:256], 5)[0].tolist() == [0]


def test_a_catalogue_without_names_is_searched_too() -> None:
    for of in ([], ["", "…"]):
        titles, tiers = TitleSearch(of, np.arange(len(of))).find("alien", 5)
        assert len(titles) == len(tiers) == 0


def test_against_a_search_through_all_names() -> None:
    """Prefixes and words of many names made of few words, against the definition."""
    rng = np.random.default_rng(4)
    parts = ["paper", "pair", "moon", "moth", "mot", "the", "a", "red", "reddish"]
    names = [" ".join(rng.choice(parts, rng.integers(1, 5))) for _ in range(400)]
    search = TitleSearch(names, np.arange(400))

    def bare(words: list[str]) -> list[str]:
        return words[1:] if len(words) > 1 and words[0] in ("the", "a") else words

    for query in ["pa", "moo", "red", "the", "paper mo", "mot red", "the red", "r", "a", "a pa re"]:
        asked, expected = query.split(), []
        for title, name in enumerate(names):
            words = name.split()
            forms = ["".join(words), "".join(bare(words))]
            if "".join(asked) in forms or "".join(bare(asked)) in forms:
                expected.append((0, title))
            elif any(form.startswith("".join(asked)) for form in forms):
                expected.append((1, title))
            elif all(any(w.startswith(q) for w in words) for q in bare(asked)):
                expected.append((2, title))
        titles, tiers = search.find(query, 400, enough=0)
        assert list(zip(tiers.tolist(), titles.tolist(), strict=True)) == sorted(expected), query


def test_marks_of_scripts_that_spell_with_them_are_kept() -> None:
    assert len({plain(word) for word in ("कल", "काल", "कला")}) == 3
    assert plain("ガラス") != plain("カラス")
    assert plain("Amélie") == plain("AMELIE")
    assert plain("Ёлка") == plain("елка")
