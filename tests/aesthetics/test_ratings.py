"""Reading opinions: the order of lines is nothing, and every bad line is named at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dragon.aesthetics import Ratings, Votes, find_audio, load_opinions
from dragon.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "ratings.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_order_of_lines_changes_nothing(tmp_path: Path):
    lines = ["b.wav,2,ann,jazz", "a.wav,0.1,bob,rock", "a.wav,0.2,ann,rock", "c.wav,5,ann,jazz", "a.wav,0.3,cyd,rock"]
    orders = lines, lines[::-1], [*lines[2:], *lines[:2]]
    found = [load_opinions(written(tmp_path, "\n".join(["file,rating,rater,prompt", *order]))) for order in orders]
    for one in found:
        assert isinstance(one, Ratings)
        assert (one.files, one.prompts) == (("a.wav", "b.wav", "c.wav"), ("rock", "jazz", "jazz"))
        np.testing.assert_array_equal(one.value, found[0].value)  # type: ignore[union-attr]
        np.testing.assert_array_equal(one.rater, found[0].rater)  # type: ignore[union-attr]
    assert found[0].means.tolist() == pytest.approx([0.2, 2, 5])  # type: ignore[union-attr]


def test_a_rater_counts_once_a_file_and_unnamed_ratings_each(tmp_path: Path):
    """ann: (1 + 3) / 2 = 2, bob: 5, mean 3.5; without names (1 + 3 + 5) / 3 = 3."""
    named = load_opinions(written(tmp_path, "file,rating,rater\na.wav,1,ann\na.wav,3,ann\n./a.wav,5,bob\n"))
    assert isinstance(named, Ratings) and named.means.tolist() == [3.5] and named.counts.tolist() == [2]
    unnamed = load_opinions(written(tmp_path, "\ufefffile,rating,comment\na.wav,1,x\na.wav,3,\na.wav,5,z\n"))
    assert isinstance(unnamed, Ratings) and unnamed.means.tolist() == [3.0] and unnamed.counts.tolist() == [3]


def test_votes_and_what_they_link(tmp_path: Path):
    votes = load_opinions(written(tmp_path, "winner,loser\nb.wav,a.wav\nc.wav,b.wav\ne.wav,d.wav\nd.wav,e.wav\n"))
    assert isinstance(votes, Votes) and votes.prompts is None
    assert [(votes.files[w][0], votes.files[b][0]) for w, b in zip(votes.winner, votes.loser, strict=True)] == [
        ("b", "a"),
        ("c", "b"),
        ("d", "e"),
        ("e", "d"),
    ]
    assert votes.components.tolist() == [0, 0, 0, 1, 1]
    left = votes.without(["b.wav"])  # a and c then have no vote
    assert left.files == ("d.wav", "e.wav") and left.winner.tolist() == [0, 1]


def test_leaving_files_out_equals_never_having_read_them(tmp_path: Path):
    lines = ["a.wav,1,p", "b.wav,2,p", "c.wav,3,q", "b.wav,4,p"]
    left = load_opinions(written(tmp_path, "\n".join(["file,rating,prompt", *lines]))).without(["b.wav"])
    fresh = load_opinions(written(tmp_path, "\n".join(["file,rating,prompt", lines[0], lines[2]])))
    assert isinstance(left, Ratings) and isinstance(fresh, Ratings)
    assert (left.files, left.prompts, left.means.tolist()) == (fresh.files, fresh.prompts, fresh.means.tolist())


def test_all_bad_lines_are_listed_with_their_numbers(tmp_path: Path):
    text = "file,rating,prompt\na.wav,3,p\n,3,p\nb.wav,good,p\nc.wav,nan,p\na.wav,4,q\nd.wav,1\ne.wav,2,\n"
    with pytest.raises(ConfigError) as caught:
        load_opinions(written(tmp_path, text))
    said = str(caught.value)
    assert "6 lines cannot be used" in said
    for line in (
        "line 3: file is blank",
        "line 4: rating 'good'; expected a finite number",
        "line 5: rating 'nan'",
        "line 6: a.wav has prompt 'q', and 'p' on line 2",
        "line 7: another number of columns",
        "line 8: prompt is blank",
    ):
        assert line in said
    with pytest.raises(ConfigError, match=r"line 2: winner and loser are both 'a.wav'"):
        load_opinions(written(tmp_path, "winner,loser\na.wav,./a.wav\n"))


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("file,stars\na.wav,3\n", "columns file, stars; expected file,rating"),
        ("file,rating,winner,loser\n", "expected file,rating"),
        ("file,rating,Promt\na.wav,3,x\n", "column 'promt' looks like 'prompt'"),
        ("file,rating\n", "no lines below the header"),
        ("", "columns none"),
    ],
)
def test_files_that_are_no_opinions_are_refused(tmp_path: Path, text: str, telling: str):
    with pytest.raises(ConfigError, match=telling):
        load_opinions(written(tmp_path, text))


def test_missing_files_are_listed_with_the_lines_that_name_them(tmp_path: Path):
    path = written(tmp_path, "file,rating\na.wav,1\nb.wav,2\nsub/c.wav,3\n")
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"(?s)2 lines.*--audio FOLDER.*line 2: no file.*a\.wav.*line 4: no file"):
        find_audio(load_opinions(path), path)
    with pytest.raises(ConfigError, match="no ratings file"):
        load_opinions(tmp_path / "none.csv")
