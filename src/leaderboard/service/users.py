"""Finds, puts, renames, hides and erases users, at once on every board."""

from collections.abc import Sequence
from functools import partial

from msgspec import UNSET, UnsetType

from leaderboard.database.database import Database
from leaderboard.database.writing import NotWritten
from leaderboard.errors import ExternalIdFixed, ExternalIdNotFound, ExternalIdTaken, UsernameTaken, UserNotFound
from leaderboard.health import Health
from leaderboard.model import Account, ExternalId, User, UserRef
from leaderboard.service.user_ids import UserIds
from leaderboard.service.writes import Writes
from leaderboard.snapshot import Position
from leaderboard.sync.visibility import Visibility


class UserService:
    """The users, as one process among several reads and changes them."""

    def __init__(
        self, database: Database, visibility: Visibility, health: Health, user_ids: UserIds, writes: Writes
    ) -> None:
        self._database = database
        self._visibility = visibility
        self._health = health
        self._user_ids = user_ids
        self._writes = writes

    async def find(self, user_name: str) -> Account | None:
        """Return the user of that name, hidden or not, None if there is none."""
        found = await self._database.users.find(user_name)
        await self._publish(found.position)
        return found.value

    async def get(self, user: UserRef) -> Account:
        """Return a user, hidden or not. Raises UserNotFound."""
        if not isinstance(user, int):
            account = await self._user_ids.account(user)
            if account is None:
                raise ExternalIdNotFound(user)
            return account
        found = await self._database.users.find_number(user)
        await self._publish(found.position)
        if found.value is None:
            raise UserNotFound(user)
        return found.value

    async def with_prefix(self, prefix: str, after: str, limit: int, *, hidden: bool) -> Sequence[Account]:
        """Return the users whose names begin with `prefix` and are after `after`, `limit` at most, by name.

        Hidden users are among them only with `hidden`.
        """
        found = await self._database.users.with_prefix(prefix, after, limit, hidden=hidden)
        await self._publish(found.position)
        return found.value

    async def put(self, external_id: ExternalId, user_name: str, image_url: str | None) -> tuple[User, bool]:
        """Create the user with this external id, or set its name and image; returns it, and whether it is new.

        Nothing is written if it is so already. Raises UsernameTaken, and LockedOut as `update` does.
        """
        self._health.check_writable()

        async def change(user_id: int) -> tuple[User, bool]:
            account = await self._user_ids.account(external_id)
            if account is None or account.user_id != user_id:
                raise UserNotFound(user_id)
            if (account.user_name, account.image_url) != (user_name, image_url):
                account = await self._update(user_id, user_name=user_name, image_url=image_url)
            return User(user_id, user_name, image_url, account.total_score, external_id), False

        async def create() -> tuple[User, bool] | None:
            try:
                return await self._writes.create_user(user_name, image_url, 0, external_id=external_id), True
            except ExternalIdTaken:
                return None

        return await self._user_ids.with_number(external_id, change, create)

    async def update(
        self,
        user: UserRef,
        *,
        user_name: str | None = None,
        image_url: str | UnsetType | None = UNSET,
        hidden: bool | None = None,
        external_id: ExternalId | None = None,
    ) -> Account:
        """Change what is given of a user. A hidden user is on no board; its scores are kept and still written.

        Raises UserNotFound, UsernameTaken, ExternalIdTaken, ExternalIdFixed if the user has another external id,
        and LockedOut if another transaction has locked the user for 2 s.
        """
        self._health.check_writable()
        change = partial(
            self._update, user_name=user_name, image_url=image_url, hidden=hidden, external_id=external_id
        )
        return await self._user_ids.with_number(user, change, by_memory=False)

    async def _update(
        self,
        user_id: int,
        *,
        user_name: str | None = None,
        image_url: str | UnsetType | None = UNSET,
        hidden: bool | None = None,
        external_id: ExternalId | None = None,
    ) -> Account:
        committed = await self._database.users.update(user_id, user_name, image_url, hidden, external_id)
        await self._publish(committed.position)
        (account,) = committed.results
        if account is NotWritten.NAME_TAKEN:
            raise UsernameTaken(user_name or "")
        if account is NotWritten.ID_TAKEN:
            raise ExternalIdTaken(external_id or "")
        if account is NotWritten.ID_FIXED:
            raise ExternalIdFixed("the user has another external id, which cannot be changed")
        if not isinstance(account, Account):
            raise UserNotFound(user_id)
        return account

    async def erase(self, user: UserRef) -> None:
        """Delete a user with its entries on all boards. Raises UserNotFound, and LockedOut as `update` does."""
        self._health.check_writable()
        await self._user_ids.with_number(user, self._erase, by_memory=False)

    async def _erase(self, user_id: int) -> None:
        committed = await self._database.users.erase(user_id)
        await self._publish(committed.position)
        if not committed.results[0]:
            raise UserNotFound(user_id)

    async def _publish(self, position: Position) -> None:
        self._health.note_postgres(position)
        await self._visibility.wait_until_visible(position)
