"""Creates the templates of one environment: `cdk deploy --all -c environment=NAME`."""

import os
import sys

from aws_cdk import App, Environment, Tags, Validations
from cdk_nag import AwsSolutionsChecks
from stacks.alarms import AlarmsStack
from stacks.config import BadConfig, Config
from stacks.data import DataStack
from stacks.network import NetworkStack
from stacks.service import ServiceStack


def build(
    app: App, config: Config, where: Environment
) -> tuple[NetworkStack, DataStack, ServiceStack, AlarmsStack]:
    """Returns the stacks of an environment, in the order in which they are deployed."""
    prefix = config.prefix
    network = NetworkStack(app, f"{prefix}-network", config, env=where)
    data = DataStack(app, f"{prefix}-data", config, network, env=where, termination_protection=True)
    service = ServiceStack(app, f"{prefix}-service", config, network, data, env=where, termination_protection=True)
    alarms = AlarmsStack(app, f"{prefix}-alarms", config, data, service, env=where)
    Tags.of(app).add("application", "leaderboard")
    Tags.of(app).add("environment", config.name)
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    return network, data, service, alarms


def main() -> None:
    """Reads the context in `cdk.json` and writes the templates for the CDK's command line."""
    app = App()
    try:
        config = Config.load(
            app.node.try_get_context("environments") or {}, app.node.try_get_context("environment") or ""
        )
    except BadConfig as error:
        sys.exit(f"cdk.json: {error}")
    where = Environment(account=os.environ.get("CDK_DEFAULT_ACCOUNT"), region=os.environ.get("CDK_DEFAULT_REGION"))
    build(app, config, where)
    app.synth()


if __name__ == "__main__":
    main()
