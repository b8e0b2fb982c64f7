"""A shard of a list of images: every n-th of them, for one of n jobs that share the work."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Self, TypeVar

from fcn_jax.errors import ArgumentError

T = TypeVar("T")

MAX_SHARDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Shard:
    """Items index, index + count, index + 2·count, … of a list.

    Every item is in exactly one of the shards 0/count to (count − 1)/count, and their sizes differ
    by at most one.

    Args:
        index: the number of the shard, from 0.
        count: the number of shards.

    Raises:
        ArgumentError: the index is not below the count.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= MAX_SHARDS:
            possible = f"0/{self.count} to {self.count - 1}/{self.count}"
            if not 0 < self.count <= MAX_SHARDS:
                possible = f"i/n with n in 1…{MAX_SHARDS} and i in 0…n−1"
            raise ArgumentError("shard", str(self), f"must be one of {possible}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "2/8".

        Raises:
            ArgumentError: the text is something else.
        """
        numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if numbers is None:
            raise ArgumentError("shard", text, "must be i/n, such as 0/8 to 7/8 for eight jobs")
        return cls(int(numbers[1]), int(numbers[2]))

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Returns the items of this shard, in their order."""
        return items[self.index :: self.count]

    @property
    def tag(self) -> str:
        """A part of file names, such as "shard_2_of_8"."""
        return f"shard_{self.index}_of_{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
