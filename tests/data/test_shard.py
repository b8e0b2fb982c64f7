"""Shards of a list."""

import pytest

from fcn_jax.data.shard import Shard
from fcn_jax.errors import ArgumentError


@pytest.mark.parametrize(("items", "count"), [(10, 3), (2, 5), (0, 2), (7, 1)])
def test_every_item_is_in_one_shard_and_sizes_differ_by_at_most_one(items: int, count: int) -> None:
    shards = [Shard(index, count).of(range(items)) for index in range(count)]
    assert sorted(item for shard in shards for item in shard) == list(range(items))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_is_written_as_it_is_read() -> None:
    shard = Shard.parse("2/8")
    assert (shard.index, shard.count, str(shard), shard.tag) == (2, 8, "2/8", "shard_2_of_8")
    assert list(shard.of(range(20))) == [2, 10, 18]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8/8", r"shard \(=8/8\) must be one of 0/8 to 7/8"),
        ("0/0", "i/n with n in"),
        ("1", "must be i/n, such as 0/8"),
        ("-1/2", "must be i/n"),
        ("1/2/3", "must be i/n"),
        ("", "must be i/n"),
    ],
)
def test_other_shards_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ArgumentError, match=problem):
        Shard.parse(text)
