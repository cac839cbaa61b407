"""Sizes and monthly cost for a number of users: measured costs of an operation, times assumptions about the users.

`python cost.py` prints the tables of docs/aws.md; `python cost.py --docs` writes them to that page. The cost of an
operation is read from docs/performance.md. Prices and assumptions are in this file: replace them by yours.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stacks.config import SIZES, Size

_DOCS = Path(__file__).parents[2] / "docs"
_PERFORMANCE = _DOCS / "performance.md"
_PAGE = _DOCS / "aws.md"
_MARKS = ("<!-- cost computed -->", "<!-- end of cost -->")

USERS = (100_000, 1_000_000, 10_000_000, 100_000_000)
HOURS = 730
"""Hours of a month."""
DAYS = 30.4
DAY_S = 86_400

# Assumptions about the users and about AWS's hardware

ACTIVE = 0.1
"""Share of the users who play on one day."""
SCORES, CONTEXTS, TOPS = 5, 15, 5
"""Requests of one such user on that day: scores set, contexts of any user, tops of 10."""
PEAK = 5
"""Requests in the busiest minute, as a multiple of the mean."""
VCPU = 0.5
"""Work of one vCPU, in cores of the machine that docs/performance.md was measured on."""
BUSY = 0.5
"""Highest load of a vCPU in the busiest minute."""
WITH_IMAGE = 0.5
"""Share of the users who have an image."""
ROOM = 2
"""Storage as a multiple of the size of new tables: for dead rows, the write-ahead log, and growth."""
REQUESTS_PER_CONNECTION = 5
"""Requests that a client sends on one connection."""

# Measured for docs/aws.md, which describes how

IMAGE_BYTES = 64
"""Additional bytes of a row of `users` with an image URL of 60 characters."""
KEY_BYTES = 140
"""Bytes of one Idempotency-Key, kept for 24 hours."""
ANSWER_BYTES = {"score": 324 + 138, "context": 325 + 1648, "top": 325 + 1422}
"""Bytes of an answer with its headers, if all users have images."""

# Prices in US dollars. ASSUMED list prices of us-east-1: they were not looked up. Replace them by yours.

HOURLY = {
    "vCPU of Fargate": 0.04048,
    "GB of Fargate": 0.004445,
    "load balancer": 0.0225,
    "load balancer's capacity unit": 0.008,
    "endpoint in one zone": 0.01,
    "db.t4g.medium, one zone": 0.065,
    "db.m7g.large, one zone": 0.168,
    "db.m7g.2xlarge, one zone": 0.674,
    "cache.t4g.small, one node": 0.0256,
    "cache.m7g.large, one node": 0.1264,
}
MONTHLY = {
    "GB of gp3 storage, one zone": 0.115,
    "WAF: an ACL": 5.0,
    "WAF: a rule": 1.0,
    "secret": 0.40,
    "alarm": 0.10,
    "metric of Container Insights": 0.30,
    "hosted zone": 0.50,
    "GB in S3": 0.023,
}
EACH = {
    "WAF: a million requests": 0.60,
    "GB out to the Internet": 0.09,
    "GB of logs": 0.50,
}

ENDPOINTS, ZONES = 4, 2
RULES, SECRETS, ALARMS, METRICS = 4, 4, 18, 30
LOG_GB = 2
"""GB of logs in a month: the service logs no line per request."""
ACCESS_LINE = 500
"""Bytes of one request in the load balancer's access log."""


class NoFigure(Exception):
    """docs/performance.md lacks a figure, or no size is large enough."""


@dataclass(frozen=True)
class Operation:
    """CPU seconds of one request."""

    api: float
    postgresql: float
    valkey: float


@dataclass(frozen=True)
class Measured:
    """The figures of docs/performance.md that this module uses."""

    score: Operation
    context: Operation
    top: Operation
    """With 64 connections, so in batches."""
    context_alone: Operation
    top_alone: Operation
    """With one connection, so not in batches."""
    bytes_per_user: float
    """Bytes of a user in `users` with its indexes, without image."""

    @classmethod
    def read(cls) -> "Measured":
        """Read the figures from the tables of docs/performance.md. Raises NoFigure."""
        rows = [_cells(line) for line in _PERFORMANCE.read_text().splitlines() if line.startswith("|")]

        def operation(work: str, connections: int = 64) -> Operation:
            for row in rows:
                if row[:3] == [work, str(connections), "ours"]:
                    return Operation(*(float(cell) / 1000 for cell in row[-3:]))
            raise NoFigure(f"{_PERFORMANCE.name} has no line of {work!r} with {connections} connections")

        for row in rows:
            if row[0] == "`users` with its indexes":
                size = float(row[-1].removesuffix(" MB").replace(",", ""))
                return cls(
                    operation("set score"),
                    operation("context of all"),
                    operation("top 10"),
                    operation("context of all", 1),
                    operation("top 10", 1),
                    size * 1e6 / 10_000_000,
                )
        raise NoFigure(f"{_PERFORMANCE.name} has no size of `users`")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@dataclass(frozen=True)
class Need:
    """The resources that a number of users needs."""

    users: int
    requests_s: float
    """Mean requests per second."""
    api: float
    postgresql: float
    valkey: float
    """Cores of the measuring machine, in the busiest minute."""
    api_alone: float
    postgresql_alone: float
    """The same if no read is in a batch; scores are in batches, as there is no other figure."""
    storage_gb: float

    @property
    def peak_s(self) -> float:
        """Requests per second in the busiest minute."""
        return PEAK * self.requests_s

    @property
    def requests_month(self) -> float:
        """Requests in a month."""
        return self.requests_s * DAY_S * DAYS

    @property
    def traffic_gb(self) -> float:
        """GB of answers in a month."""
        mix = {"score": SCORES, "context": CONTEXTS, "top": TOPS}
        mean = sum(ANSWER_BYTES[kind] * count for kind, count in mix.items()) / sum(mix.values())
        return self.requests_month * mean / 1e9

    @classmethod
    def of(cls, users: int, measured: Measured) -> "Need":
        """Compute the needs from the assumptions and the measured figures."""
        daily = users * ACTIVE
        per_second = daily * (SCORES + CONTEXTS + TOPS) / DAY_S
        batched = ((measured.score, SCORES), (measured.context, CONTEXTS), (measured.top, TOPS))
        alone = ((measured.score, SCORES), (measured.context_alone, CONTEXTS), (measured.top_alone, TOPS))

        def cores(part: str, mix: tuple[tuple[Operation, int], ...] = batched) -> float:
            return PEAK * daily / DAY_S * sum(float(getattr(operation, part)) * count for operation, count in mix)

        tables = users * (measured.bytes_per_user + WITH_IMAGE * IMAGE_BYTES) + daily * SCORES * KEY_BYTES
        return cls(
            users,
            per_second,
            cores("api"),
            cores("postgresql"),
            cores("valkey"),
            cores("api", alone),
            cores("postgresql", alone),
            ROOM * tables / 1e9,
        )


@dataclass(frozen=True)
class Plan:
    """The size that is large enough, and its monthly cost."""

    need: Need
    name: str
    size: Size
    tasks: int

    @classmethod
    def of(cls, need: Need) -> "Plan":
        """Return the smallest size that is large enough. Raises NoFigure if there is none."""
        for name, size in SIZES.items():
            tasks = max(size.tasks[0], _at_least(vcpu(need.api) / (size.task_cpu / 1024)))
            if (
                tasks <= size.tasks[1]
                and vcpu(need.postgresql) <= DATABASE_VCPU[size.db_class]
                # The small classes are burstable: they have all of their CPU only for a limited time.
                and (not size.db_class.startswith("t") or vcpu(need.postgresql) <= BURSTABLE_BASE)
                and vcpu(need.valkey) <= 1
                and need.storage_gb <= size.db_storage[1]
            ):
                return cls(need, name, size, tasks)
        raise NoFigure(f"no size is large enough for {need.users:,} users")

    @property
    def storage_gb(self) -> float:
        """GB of storage that is billed."""
        return max(self.size.db_storage[0], need_gb(self.need))

    def costs(self) -> Iterator[tuple[str, float]]:
        """Yield each item and its US dollars per month."""
        need, size = self.need, self.size
        task = size.task_cpu / 1024 * HOURLY["vCPU of Fargate"] + size.task_memory / 1024 * HOURLY["GB of Fargate"]
        yield "ECS Fargate", self.tasks * task * HOURS
        yield (
            "RDS PostgreSQL, two zones",
            2 * HOURLY[f"db.{size.db_class}, one zone"] * HOURS
            + 2 * self.storage_gb * MONTHLY["GB of gp3 storage, one zone"],
        )
        yield "ElastiCache, two nodes", 2 * HOURLY[f"cache.{size.cache_class}, one node"] * HOURS
        yield (
            "load balancer",
            (HOURLY["load balancer"] + self.capacity_units() * HOURLY["load balancer's capacity unit"]) * HOURS,
        )
        yield (
            "WAF",
            MONTHLY["WAF: an ACL"]
            + RULES * MONTHLY["WAF: a rule"]
            + need.requests_month / 1e6 * EACH["WAF: a million requests"],
        )
        yield "VPC endpoints", ENDPOINTS * ZONES * HOURLY["endpoint in one zone"] * HOURS
        yield "answers to the Internet", need.traffic_gb * EACH["GB out to the Internet"]
        yield (
            "logs, alarms, secrets, DNS",
            LOG_GB * EACH["GB of logs"]
            + need.requests_month * ACCESS_LINE / 1e9 * MONTHLY["GB in S3"]
            + ALARMS * MONTHLY["alarm"]
            + METRICS * MONTHLY["metric of Container Insights"]
            + SECRETS * MONTHLY["secret"]
            + MONTHLY["hosted zone"],
        )

    def capacity_units(self) -> float:
        """Capacity units of the load balancer: the larger of new connections / 25 per second and GB per hour."""
        connections = self.need.requests_s / REQUESTS_PER_CONNECTION / 25
        return max(connections, self.need.traffic_gb / HOURS)


DATABASE_VCPU = {"t4g.medium": 2, "m7g.large": 2, "m7g.2xlarge": 8}
BURSTABLE_BASE = 0.4
"""vCPUs that a t4g.medium may use without a time limit: a fifth of its two."""


def vcpu(cores: float) -> float:
    """vCPUs needed for the work of that many cores in the busiest minute."""
    return cores / VCPU / BUSY


def need_gb(need: Need) -> float:
    """Whole GB of storage."""
    return float(_at_least(need.storage_gb))


def _at_least(amount: float) -> int:
    return -int(-amount // 1)


def tables(measured: Measured) -> str:
    """The tables of docs/aws.md."""
    plans = [Plan.of(Need.of(users, measured)) for users in USERS]
    return "\n".join(
        [
            "Assumptions and measurements:",
            "",
            *_figures(measured),
            "",
            "Results:",
            "",
            *_sizes(plans),
            "",
            "US dollars a month, at the prices below:",
            "",
            *_costs(plans),
            "",
            "Prices, assumed and not looked up:",
            "",
            *_prices(),
        ]
    )


def _figures(measured: Measured) -> Iterator[str]:
    yield from _head("figure", "value")
    yield f"| users who play on one day | {ACTIVE:.0%} |"
    yield f"| requests of each of them on that day | {SCORES} scores set, {CONTEXTS} contexts, {TOPS} tops of 10 |"
    yield f"| the busiest minute | {PEAK} times the mean |"
    yield f"| a vCPU | {VCPU} of a core of the measuring machine |"
    yield f"| highest load of a vCPU, in the busiest minute | {BUSY:.0%} |"
    operations = (
        ("score, in a batch", measured.score),
        ("context, in a batch", measured.context),
        ("context, alone", measured.context_alone),
        ("top of 10, in a batch", measured.top),
        ("top of 10, alone", measured.top_alone),
    )
    for name, operation in operations:
        micro = [f"{seconds * 1e6:.0f}" for seconds in (operation.api, operation.postgresql, operation.valkey)]
        yield f"| one {name}: API, PostgreSQL, Valkey | {', '.join(micro)} µs |"
    yield f"| one user with its indexes | {measured.bytes_per_user:.0f} bytes, {IMAGE_BYTES} more with an image |"
    yield f"| users with an image | {WITH_IMAGE:.0%} |"
    yield f"| one `Idempotency-Key`, kept for a day | {KEY_BYTES} bytes; every score has one |"
    yield f"| storage | {ROOM} times the tables |"
    answers = ", ".join(f"{kind} {size:,}" for kind, size in ANSWER_BYTES.items())
    yield f"| bytes of an answer | {answers} |"


def _sizes(plans: list[Plan]) -> Iterator[str]:
    yield from _head("", *(f"{plan.need.users:,} users" for plan in plans))

    def row(name: str, *cells: str) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    needs = [plan.need for plan in plans]
    yield row("requests/s, mean", *(f"{need.requests_s:,.1f}" for need in needs))
    yield row("requests/s, busiest minute", *(f"{need.peak_s:,.0f}" for need in needs))
    yield row("API: vCPUs needed", *(f"{vcpu(need.api):.2f}" for need in needs))
    yield row("the same, if no read is in a batch", *(f"{vcpu(need.api_alone):.2f}" for need in needs))
    yield row("PostgreSQL: vCPUs needed", *(f"{vcpu(need.postgresql):.2f}" for need in needs))
    yield row("the same, if no read is in a batch", *(f"{vcpu(need.postgresql_alone):.2f}" for need in needs))
    yield row("Valkey: vCPUs needed", *(f"{vcpu(need.valkey):.2f}" for need in needs))
    yield row("storage, GB", *(f"{need.storage_gb:,.1f}" for need in needs))
    yield row("answers, GB a month", *(f"{need.traffic_gb:,.0f}" for need in needs))
    yield row("**size**", *(f"**`{plan.name}`**" for plan in plans))
    yield row("tasks", *(f"{plan.tasks} of {plan.size.task_cpu / 1024:g} vCPU" for plan in plans))
    yield row("PostgreSQL", *(f"`db.{plan.size.db_class}`" for plan in plans))
    yield row("Valkey", *(f"`cache.{plan.size.cache_class}`" for plan in plans))


def _costs(plans: list[Plan]) -> Iterator[str]:
    yield from _head("", *(f"{plan.need.users:,} users" for plan in plans))
    costs = [dict(plan.costs()) for plan in plans]
    for name in costs[0]:
        yield f"| {name} | {' | '.join(f'{cost[name]:,.0f}' for cost in costs)} |"
    totals = [sum(cost.values()) for cost in costs]
    yield f"| **all** | {' | '.join(f'**{total:,.0f}**' for total in totals)} |"
    each = [total / plan.need.users * 1000 for total, plan in zip(totals, plans, strict=True)]
    yield f"| for a thousand users | {' | '.join(f'{cost:,.2f}' for cost in each)} |"


def _prices() -> Iterator[str]:
    yield from _head("", "US dollars", "for")
    for prices, unit in ((HOURLY, "an hour"), (MONTHLY, "a month"), (EACH, "each")):
        for name, price in prices.items():
            yield f"| {name} | {price:g} | {unit} |"


def _head(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"| --- |{' --: |' * (len(names) - 1)}"


def main(arguments: list[str]) -> None:
    """Print the tables, or write them to the page with `--docs`."""
    made = tables(Measured.read())
    if arguments != ["--docs"]:
        print(made)
        return
    begin, end = _MARKS
    page = _PAGE.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    _PAGE.write_text(pattern.sub(lambda _: f"{begin}\n\n{made}\n\n{end}", page))


if __name__ == "__main__":
    main(sys.argv[1:])
