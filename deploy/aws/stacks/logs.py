"""Log groups with a retention time."""

from aws_cdk import RemovalPolicy
from aws_cdk import aws_logs as logs
from constructs import Construct

from stacks.config import Config

_RETENTION = {
    1: logs.RetentionDays.ONE_DAY,
    7: logs.RetentionDays.ONE_WEEK,
    30: logs.RetentionDays.ONE_MONTH,
    90: logs.RetentionDays.THREE_MONTHS,
    365: logs.RetentionDays.ONE_YEAR,
}


def log_group(scope: Construct, config: Config, id_: str, name: str) -> logs.LogGroup:
    """Returns a log group with the configured retention, which is deleted with its stack."""
    return logs.LogGroup(
        scope,
        id_,
        log_group_name=name,
        retention=_RETENTION[config.log_days],
        removal_policy=RemovalPolicy.DESTROY,
    )
