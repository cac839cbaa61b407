"""Finds, renames, hides and erases users, at once on every board."""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from leaderboard.database.database import Database
from leaderboard.database.writing import NotWritten
from leaderboard.errors import UsernameTaken, UserNotFound
from leaderboard.health import Health
from leaderboard.model import Account
from leaderboard.snapshot import Position
from leaderboard.sync.visibility import Visibility


class UserService:
    """The users, as one process among several reads and changes them."""

    def __init__(self, database: Database, visibility: Visibility, health: Health) -> None:
        self._database = database
        self._visibility = visibility
        self._health = health

    async def find(self, user_name: str) -> Account | None:
        """Return the user of that name, hidden or not, None if there is none."""
        found = await self._database.users.find(user_name)
        await self._publish(found.position)
        return found.value

    async def with_prefix(self, prefix: str, after: str, limit: int, *, hidden: bool) -> Sequence[Account]:
        """Return the users whose names begin with `prefix` and are after `after`, `limit` at most, by name.

        Hidden users are among them only with `hidden`.
        """
        found = await self._database.users.with_prefix(prefix, after, limit, hidden=hidden)
        await self._publish(found.position)
        return found.value

    async def update(
        self,
        user_id: int,
        *,
        user_name: str | None = None,
        image_url: str | UnsetType | None = UNSET,
        hidden: bool | None = None,
    ) -> Account:
        """Change what is given of a user. A hidden user is on no board; its scores are kept and still written.

        Raises UserNotFound, UsernameTaken, and LockedOut if another transaction has locked the user for 2 s.
        """
        self._health.check_writable()
        committed = await self._database.users.update(user_id, user_name, image_url, hidden)
        await self._publish(committed.position)
        (account,) = committed.results
        if account is NotWritten.NAME_TAKEN:
            raise UsernameTaken(user_name or "")
        if not isinstance(account, Account):
            raise UserNotFound(user_id)
        return account

    async def erase(self, user_id: int) -> None:
        """Delete a user with its entries on all boards. Raises UserNotFound, and LockedOut as `update` does."""
        self._health.check_writable()
        committed = await self._database.users.erase(user_id)
        await self._publish(committed.position)
        if not committed.results[0]:
            raise UserNotFound(user_id)

    async def _publish(self, position: Position) -> None:
        self._health.note_postgres(position)
        await self._visibility.wait_until_visible(position)
