"""Alarms by e-mail. Changes to this stack never affect the service."""

from typing import Any

from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cw
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from stacks.config import Config
from stacks.data import DataStack
from stacks.service import ServiceStack

_GIB = 1024**3
_MINUTE = Duration.minutes(1)
_HIGH = cw.ComparisonOperator.GREATER_THAN_THRESHOLD
_LOW = cw.ComparisonOperator.LESS_THAN_THRESHOLD


class AlarmsStack(Stack):
    """Alarms with descriptions of what to do, and the topic that they are sent to."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        config: Config,
        data: DataStack,
        service: ServiceStack,
        **options: Any,
    ) -> None:
        super().__init__(scope, id_, **options)
        self.config = config
        self.topic = sns.Topic(self, "Topic", display_name=f"Leaderboard {config.name}", enforce_ssl=True)
        self.topic.add_subscription(subscriptions.EmailSubscription(config.alarm_email))
        self._of_requests(service)
        self._of_tasks(service)
        self._of_postgresql(data)
        self._of_valkey(data)

    def _of_requests(self, service: ServiceStack) -> None:
        balancer, targets = service.balancer.metrics, service.targets.metrics
        self._alarm(
            "BalancerErrors",
            "The load balancer itself answered with 5xx: it could not reach a task. See TasksHealthy.",
            balancer.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, period=_MINUTE, statistic="Sum"),
            above=10,
            minutes=3,
        )
        answers = {
            "errors": targets.http_code_target(
                elb.HttpCodeTarget.TARGET_5XX_COUNT, period=_MINUTE, statistic="Sum"
            ),
            "all": targets.request_count(period=_MINUTE, statistic="Sum"),
        }
        self._alarm(
            "Errors",
            "More than 1 % of requests got 5xx: overload, or PostgreSQL is unreachable. See the log.",
            cw.MathExpression(
                expression="100 * FILL(errors, 0) / all", using_metrics=answers, period=_MINUTE, label="5xx, %"
            ),
            above=1,
            minutes=5,
        )
        self._alarm(
            "Slow",
            "One request in a hundred takes more than 250 ms. See the CPU of PostgreSQL and of the tasks.",
            targets.target_response_time(period=_MINUTE, statistic="p99"),
            above=0.25,
            minutes=5,
        )
        self._alarm(
            "TasksHealthy",
            "Fewer tasks are ready than the minimum. See the events of the ECS service, then its log.",
            targets.healthy_host_count(period=_MINUTE, statistic="Minimum"),
            below=self.config.sizes.tasks[0],
            minutes=5,
            missing=cw.TreatMissingData.BREACHING,
        )
        self._alarm(
            "TasksUnhealthy",
            "A task is not ready for longer than a replacement takes. See its log.",
            targets.unhealthy_host_count(period=_MINUTE, statistic="Maximum"),
            above=0,
            minutes=5,
        )

    def _of_tasks(self, service: ServiceStack) -> None:
        self._alarm(
            "TasksCpu",
            "The tasks are busy although they scale: raise the maximum number of tasks of the size.",
            service.service.metric_cpu_utilization(period=_MINUTE),
            above=85,
            minutes=10,
        )
        self._alarm(
            "TasksMemory",
            "The tasks are short of memory: lower CACHE_SIZE or QUEUE_LIMIT, or raise the memory of the size.",
            service.service.metric_memory_utilization(period=_MINUTE),
            above=85,
            minutes=10,
        )
        errors = logs.MetricFilter(
            self,
            "ErrorLines",
            log_group=service.logs,
            filter_pattern=logs.FilterPattern.string_value("$.level", "=", "error"),
            metric_namespace=self.config.prefix,
            metric_name="ErrorLines",
        )
        self._alarm(
            "LoggedErrors",
            "The service logged an error: PostgreSQL cannot be used, an audit found a difference, or a fault.",
            errors.metric(period=_MINUTE, statistic="Sum"),
            above=0,
            minutes=1,
        )

    def _of_postgresql(self, data: DataStack) -> None:
        database, size = data.database, self.config.sizes
        self._alarm(
            "DatabaseCpu",
            "PostgreSQL has been busy for 15 minutes: choose the next size.",
            database.metric_cpu_utilization(period=_MINUTE),
            above=80,
            minutes=15,
        )
        self._alarm(
            "DatabaseStorage",
            "PostgreSQL's storage is nearly full and did not grow automatically: raise its maximum.",
            database.metric_free_storage_space(period=_MINUTE, statistic="Minimum"),
            below=0.05 * size.db_storage[0] * _GIB,
            minutes=5,
        )
        self._alarm(
            "DatabaseConnections",
            "Most connections are in use: another program uses the database, or there are too many tasks.",
            database.metric_database_connections(period=_MINUTE, statistic="Maximum"),
            above=int(0.8 * size.max_connections),
            minutes=5,
        )
        self._alarm(
            "DatabaseMemory",
            "PostgreSQL is short of memory: choose the next size.",
            database.metric_freeable_memory(period=_MINUTE, statistic="Minimum"),
            below=0.05 * size.db_memory * _GIB,
            minutes=15,
        )
        self._alarm(
            "DatabaseTransactionIds",
            "Autovacuum does not freeze old rows: half of the 2 billion transaction ids are used.",
            database.metric("MaximumUsedTransactionIDs", period=_MINUTE, statistic="Maximum"),
            above=1_000_000_000,
            minutes=5,
        )
        if size.db_class.startswith("t"):
            self._alarm(
                "DatabaseCredits",
                "PostgreSQL will soon have only its baseline CPU: choose a size whose class is not burstable.",
                database.metric("CPUCreditBalance", period=Duration.minutes(5), statistic="Minimum"),
                below=50,
                minutes=15,
            )

    def _of_valkey(self, data: DataStack) -> None:
        group = data.cache.replication_group_id
        for node in ("001", "002"):
            where = {"CacheClusterId": f"{group}-{node}"}
            self._alarm(
                f"CacheMemory{node}",
                "Valkey is nearly full; when full, it refuses writes: lower CACHE_SIZE or choose a larger node.",
                _cache_metric("DatabaseMemoryUsagePercentage", where),
                above=75,
                minutes=5,
            )
            self._alarm(
                f"CacheCpu{node}",
                "The single thread of Valkey that runs commands is busy: choose a faster node.",
                _cache_metric("EngineCPUUtilization", where),
                above=80,
                minutes=10,
            )

    def _alarm(
        self,
        id_: str,
        description: str,
        metric: cw.IMetric,
        *,
        above: float | None = None,
        below: float | None = None,
        minutes: int,
        missing: cw.TreatMissingData = cw.TreatMissingData.NOT_BREACHING,
    ) -> None:
        """Adds an alarm after that many consecutive minutes; the metric's period is one or five minutes."""
        period = 5 if id_ == "DatabaseCredits" else 1
        alarm = cw.Alarm(
            self,
            id_,
            alarm_description=description,
            metric=metric,
            threshold=above if above is not None else below or 0,
            comparison_operator=_LOW if above is None else _HIGH,
            evaluation_periods=minutes // period,
            treat_missing_data=missing,
        )
        alarm.add_alarm_action(actions.SnsAction(self.topic))
        alarm.add_ok_action(actions.SnsAction(self.topic))


def _cache_metric(name: str, where: dict[str, str]) -> cw.Metric:
    return cw.Metric(
        namespace="AWS/ElastiCache", metric_name=name, dimensions_map=where, period=_MINUTE, statistic="Maximum"
    )
