"""The Lua scripts of `scripts/`, each as a method with named and typed arguments.

A script declares its keys and arguments in two comments, `-- KEYS: …` and `-- ARGV: …`. From them this module
makes the Lua locals of the same names, and orders the arguments of a call. A name that one side lacks is a
TypeError. An argument list that ends in `...` takes any number of further values, which the script finds from
`ARGV[REST]` on. A script that declares `-- USES: …` has the functions of these files of `scripts/shared/`.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

from leaderboard.cache import keys

Argument = str | int | bytes

_DECLARATION = re.compile(r"^-- (KEYS|ARGV|USES): (.*)$", re.MULTILINE)
_MORE = "..."


@dataclass(frozen=True, slots=True)
class Call:
    """A script with its keys and arguments in order."""

    script: "Script"
    keys: tuple[str, ...]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script, with the SHA-1 digest by which Redis knows it."""

    name: str
    source: str
    sha: str
    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    takes_more: bool

    @classmethod
    def load(cls, name: str) -> "Script":
        """Load `scripts/<name>.lua`, and put after its first line the locals and functions that it declares."""
        folder = resources.files(__package__).joinpath("scripts")
        text = folder.joinpath(f"{name}.lua").read_text("utf-8")
        declared = {kind: tuple(names.split(", ")) for kind, names in _DECLARATION.findall(text)}
        key_names, arguments = declared["KEYS"], declared.get("ARGV", ())
        takes_more = arguments[-1:] == (_MORE,)
        if takes_more:
            arguments = arguments[:-1]
        first_line, _, rest = text.partition("\n")
        source = f"{first_line}\n{_locals('KEYS', key_names)} {_locals('ARGV', arguments)}"
        if takes_more:
            source += f" local REST = {len(arguments) + 1}"
        shared = [folder.joinpath("shared", f"{used}.lua").read_text("utf-8") for used in declared.get("USES", ())]
        source = "\n".join((source, *shared, rest))
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return cls(name, source, sha, key_names, arguments, takes_more)

    def call(
        self, more: Iterable[Argument] = (), /, other_keys: Mapping[str, str] | None = None, **named: Argument
    ) -> Call:
        """Return a call with these arguments, and with `other_keys` besides those of `keys.BY_NAME`.

        Raises TypeError unless exactly the declared names are given.
        """
        if len(named) != len(self.arguments) or (more and not self.takes_more):
            raise TypeError(f"{self.name}.lua takes {self.arguments}, not {tuple(named)}")
        try:
            arguments = tuple([named[name] for name in self.arguments])
            known = keys.BY_NAME if other_keys is None else {**keys.BY_NAME, **other_keys}
            return Call(self, tuple([known[name] for name in self.keys]), (*arguments, *more))
        except KeyError as error:
            raise TypeError(f"{self.name}.lua declares {error}, which is not given") from None


def _locals(table: str, names: tuple[str, ...]) -> str:
    if not names:
        return ""
    return f"local {', '.join(names)} = " + ", ".join(f"{table}[{i}]" for i in range(1, len(names) + 1))


class Scripts:
    """All scripts. Each method returns the call; `Link.run` makes it."""

    def __init__(self) -> None:
        folder = resources.files(__package__).joinpath("scripts")
        names = [path.name.removesuffix(".lua") for path in folder.iterdir() if path.name.endswith(".lua")]
        self._scripts = {name: Script.load(name) for name in names}

    def read(self, *, max_age_us: int, replica_token: bytes) -> Call:
        return self._scripts["read"].call(max_age_us=max_age_us, replica_token=replica_token)

    def poll(self, *, nonce: str, lease_ms: int) -> Call:
        return self._scripts["poll"].call(nonce=nonce, lease_ms=lease_ms)

    def apply(
        self,
        *,
        nonce: str,
        expected_token: bytes,
        new_token: str,
        epoch: str,
        snapshot: str,
        asof: int,
        total: int,
        keep: int,
        delta: bytes,
        deleted: list[str],
        rows: list[Argument],
        idle_ms: int,
        seasons: list[Argument],
    ) -> Call:
        return self._scripts["apply"].call(
            (*deleted, *rows, *seasons),
            nonce=nonce,
            expected_token=expected_token,
            new_token=new_token,
            epoch=epoch,
            snapshot=snapshot,
            asof=asof,
            total=total,
            keep=keep,
            delta=delta,
            deletions=len(deleted),
            changes=len(rows) // 3,
            idle_ms=idle_ms,
        )

    def invalidate(self, *, new_token: str) -> Call:
        return self._scripts["invalidate"].call(new_token=new_token)

    def claim(self, *, nonce: str, claim_ms: int, max_claim_ms: int) -> Call:
        return self._scripts["claim"].call(nonce=nonce, claim_ms=claim_ms, max_claim_ms=max_claim_ms)

    def load(self, *, nonce: str, claim_ms: int, rows: Iterable[Argument]) -> Call:
        return self._scripts["load"].call(
            tuple(rows), other_keys=keys.loading(nonce), nonce=nonce, claim_ms=claim_ms
        )

    def swap(
        self,
        *,
        nonce: str,
        count: int,
        new_token: str,
        epoch: str,
        snapshot: str,
        asof: int,
        floor: str,
        total: int,
    ) -> Call:
        return self._scripts["swap"].call(
            other_keys=keys.loading(nonce),
            nonce=nonce,
            count=count,
            new_token=new_token,
            epoch=epoch,
            snapshot=snapshot,
            asof=asof,
            floor=floor,
            total=total,
        )

    def export(self) -> Call:
        return self._scripts["export"].call()

    def clear(self, *, unreadable_token: bytes) -> Call:
        return self._scripts["clear"].call(unreadable_token=unreadable_token)

    # Of seasons of boards other than `default`

    def read_seasons(
        self, *, max_age_us: int, known_token: bytes, current: int, versions: Iterable[Argument]
    ) -> Call:
        return self._scripts["read_seasons"].call(
            tuple(versions), max_age_us=max_age_us, known_token=known_token, current=current
        )

    def season_names(self) -> Call:
        return self._scripts["season_names"].call()

    def export_season(self, *, season: str) -> Call:
        return self._scripts["export_season"].call(season=season)

    def claim_season(
        self,
        *,
        load: str,
        season: str,
        least_weight: int,
        max_users: int,
        reads_of_it: int,
        half_life_ms: int,
        claim_ms: int,
    ) -> Call:
        return self._scripts["claim_season"].call(
            other_keys=keys.loading_season(load, season),
            nonce=load,
            season=season,
            least_weight=least_weight,
            max_users=max_users,
            reads_of_it=reads_of_it,
            half_life_ms=half_life_ms,
            claim_ms=claim_ms,
        )

    def load_season(self, *, load: str, season: str, claim_ms: int, rows: Iterable[Argument]) -> Call:
        return self._scripts["load"].call(
            tuple(rows), other_keys=keys.loading_season(load, season), nonce=load, claim_ms=claim_ms
        )

    def offer(
        self,
        *,
        load: str,
        season: str,
        offer: bytes,
        count: int,
        least_weight: int,
        max_users: int,
        reads_of_it: int,
        half_life_ms: int,
        keep_ms: int,
    ) -> Call:
        return self._scripts["offer"].call(
            other_keys=keys.loading_season(load, season),
            nonce=load,
            season=season,
            offer=offer,
            count=count,
            least_weight=least_weight,
            max_users=max_users,
            reads_of_it=reads_of_it,
            half_life_ms=half_life_ms,
            keep_ms=keep_ms,
        )

    def note_reads(
        self, *, half_life_ms: int, idle_ms: int, least_weight: int, max_users: int, reads: Iterable[Argument]
    ) -> Call:
        return self._scripts["note_reads"].call(
            tuple(reads),
            half_life_ms=half_life_ms,
            idle_ms=idle_ms,
            least_weight=least_weight,
            max_users=max_users,
        )

    def evict(self, *, season: str) -> Call:
        return self._scripts["evict"].call(season=season)
