"""Pages of one mesh shard on the host: which are free, and how many users each has."""

from collections.abc import Sequence


def pages_of(tokens: int, page_tokens: int) -> int:
    """Returns the pages that hold so many tokens.

    With pages of 16 tokens, 16 tokens take 1 page and 17 take 2.
    """
    return -(-tokens // page_tokens)


class Pages:
    """Pages numbered from 0, of which each has no user, one, or several that share it.

    Attributes:
      count: number of pages.

    Example:
      Two members share the two pages of a prompt. The second has one of its own, too.

      >>> pages = Pages(4)
      >>> first = pages.take(2)
      >>> pages.share(first)
      >>> second = first + pages.take(1)
      >>> pages.give(first)
      >>> pages.free, [pages.users(page) for page in second]
      (1, [1, 1, 1])
    """

    def __init__(self, count: int):
        self.count = count
        self._free = list(range(count))[::-1]
        self._users = [0] * count

    @property
    def free(self) -> int:
        """Number of pages without a user."""
        return len(self._free)

    def users(self, page: int) -> int:
        """Returns the number of users of a page."""
        return self._users[page]

    def take(self, count: int) -> list[int]:
        """Returns ``count`` free pages, which have one user now."""
        taken = [self._free.pop() for _ in range(count)]
        self.share(taken)
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """Adds a user to each of ``pages``."""
        for page in pages:
            self._users[page] += 1

    def give(self, pages: Sequence[int]) -> None:
        """Removes a user from each of ``pages``; those without one are free again."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)
