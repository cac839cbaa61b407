"""The templates: allowed connections, encryption, the graceful stop, the migration, alarms."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app import build
from aws_cdk import App
from aws_cdk.assertions import Match, Template
from stacks.config import SIZES, BadConfig, known_settings

from tests.conftest import CONTEXT, WHERE, Templates, config

SECRETS = {"DB_PASSWORD", "REDIS_URL", "API_KEYS"}
SETTINGS = Path(__file__).parents[3] / "docs" / "settings.md"

IGNORED = (
    "W3010",  # the CDK writes the zones of the account into the template: looked up, not made up
    "W3005",  # the CDK names dependencies that a reference makes already
    "W6001",  # an output shows what another stack exports
)


def resources(template: Template, kind: str) -> list[dict[str, Any]]:
    return [found["Properties"] for found in template.find_resources(kind).values()]


def only(template: Template, kind: str) -> dict[str, Any]:
    found = resources(template, kind)
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def containers(templates: Templates) -> Iterator[dict[str, Any]]:
    for task in resources(templates.service, "AWS::ECS::TaskDefinition"):
        yield from task["ContainerDefinitions"]


def api(templates: Templates) -> dict[str, Any]:
    return next(container for container in containers(templates) if container["Command"] == ["serve"])


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["Name"]: variable["Value"] for variable in container["Environment"]}


# All templates


def test_cfn_lint_finds_nothing(templates: Templates) -> None:
    lint = subprocess.run(
        [
            Path(sys.executable).with_name("cfn-lint"),
            "--ignore-checks",
            *IGNORED,
            "--",
            *map(str, templates.files),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_an_existing_certificate_needs_no_zone(tmp_path: Path) -> None:
    app = App(context=CONTEXT, outdir=str(tmp_path))
    arn = "arn:aws:acm:eu-west-1:123456789012:certificate/x"
    chosen = config(hosted_zone_id="", hosted_zone_name="", certificate_arn=arn, allowed_cidrs=["192.0.2.0/24"])
    network, _, service, _ = build(app, chosen, WHERE)
    app.synth()
    Template.from_stack(service).resource_count_is("AWS::Route53::RecordSet", 0)
    Template.from_stack(service).has_resource_properties(
        "AWS::ElasticLoadBalancingV2::Listener", {"Certificates": [{"CertificateArn": arn}]}
    )
    Template.from_stack(network).has_resource_properties(
        "AWS::EC2::SecurityGroupIngress", {"CidrIp": "192.0.2.0/24", "ToPort": 443}
    )


# The network


def test_exactly_these_connections_are_allowed(templates: Templates) -> None:
    names = {
        identifier: found["Properties"]["GroupDescription"]
        for identifier, found in templates.network.find_resources("AWS::EC2::SecurityGroup").items()
    }

    def who(rule: dict[str, Any], key: str) -> str:
        reference = rule.get(key)
        if isinstance(reference, dict):
            return str(names[reference["Fn::GetAtt"][0]])
        return str(rule.get("CidrIp") or rule.get("DestinationPrefixListId") or rule.get("CidrIpv6"))

    ingress = {
        (who(rule, "SourceSecurityGroupId"), who(rule, "GroupId"), rule["FromPort"], rule["ToPort"])
        for rule in resources(templates.network, "AWS::EC2::SecurityGroupIngress")
    }
    egress = {
        (who(rule, "GroupId"), who(rule, "DestinationSecurityGroupId"), rule["FromPort"], rule["ToPort"])
        for rule in resources(templates.network, "AWS::EC2::SecurityGroupEgress")
        # What the CDK writes to say "nowhere".
        if rule.get("CidrIp") != "255.255.255.255/32"
    }
    balancer, service = "the load balancer", "the tasks of the API, and those that run one command"
    endpoints = "the endpoints of AWS services"
    between = {
        (balancer, service, 3000, 3000),
        (service, "PostgreSQL", 5432, 5432),
        (service, "Valkey", 6379, 6379),
        (service, endpoints, 443, 443),
    }
    assert ingress == {("0.0.0.0/0", balancer, 443, 443)} | between
    # The prefix list of S3; its id is looked up at deployment.
    assert egress == {(service, "pl-xxxxxxxx", 443, 443)} | between


def test_no_other_stack_adds_rules_or_groups(templates: Templates) -> None:
    for template in (templates.data, templates.service, templates.alarms):
        for kind in ("SecurityGroup", "SecurityGroupIngress", "SecurityGroupEgress"):
            template.resource_count_is(f"AWS::EC2::{kind}", 0)
    for group in resources(templates.network, "AWS::EC2::SecurityGroup"):
        assert "SecurityGroupIngress" not in group
        assert "SecurityGroupEgress" not in group


def test_only_the_balancers_subnets_have_a_route_to_the_internet(templates: Templates) -> None:
    templates.network.resource_count_is("AWS::EC2::NatGateway", 0)
    tables = {
        route["RouteTableId"]["Ref"]
        for route in resources(templates.network, "AWS::EC2::Route")
        if route.get("DestinationCidrBlock") == "0.0.0.0/0"
    }
    assert tables
    assert all("balancer" in table for table in tables)
    for subnet in templates.network.find_resources("AWS::EC2::Subnet").items():
        assert subnet[1]["Properties"]["MapPublicIpOnLaunch"] == ("balancer" in subnet[0])


# PostgreSQL and Valkey


def test_postgresql_is_encrypted_multi_az_private_and_protected(templates: Templates) -> None:
    templates.data.has_resource(
        "AWS::RDS::DBInstance",
        {
            "Properties": {
                "StorageEncrypted": True,
                "MultiAZ": True,
                "DeletionProtection": True,
                "PubliclyAccessible": False,
                "DeleteAutomatedBackups": False,
                "BackupRetentionPeriod": 14,
                "Engine": "postgres",
            },
            "DeletionPolicy": "Snapshot",
            "UpdateReplacePolicy": "Snapshot",
        },
    )
    templates.data.has_resource_properties(
        "AWS::RDS::DBParameterGroup", {"Parameters": Match.object_like({"rds.force_ssl": "1"})}
    )


def test_valkey_is_encrypted_replicated_and_needs_a_password(templates: Templates) -> None:
    templates.data.has_resource_properties(
        "AWS::ElastiCache::ReplicationGroup",
        {
            "Engine": "valkey",
            "TransitEncryptionEnabled": True,
            "TransitEncryptionMode": "required",
            "AtRestEncryptionEnabled": True,
            "AutomaticFailoverEnabled": True,
            "MultiAZEnabled": True,
            "NumCacheClusters": 2,
            "UserGroupIds": Match.any_value(),
        },
    )
    user = only(templates.data, "AWS::ElastiCache::User")
    assert user["AuthenticationMode"]["Type"] == "password"
    assert "on ~{leaderboard}:* " in user["AccessString"]
    assert "-@dangerous -@admin" in user["AccessString"]
    assert only(templates.data, "AWS::ElastiCache::UserGroup")["UserIds"] == [user["UserId"]]
    # An eviction would make the cache incomplete and cause a rebuild.
    assert only(templates.data, "AWS::ElastiCache::ParameterGroup")["Properties"] == {
        "maxmemory-policy": "noeviction"
    }


def test_a_deployment_at_full_scale_has_enough_connections(templates: Templates) -> None:
    most = int(only(templates.data, "AWS::RDS::DBParameterGroup")["Parameters"]["max_connections"])
    tasks = only(templates.service, "AWS::ApplicationAutoScaling::ScalableTarget")["MaxCapacity"]
    rolling = only(templates.service, "AWS::ECS::Service")["DeploymentConfiguration"]["MaximumPercent"] / 100
    of_a_task = int(environment(api(templates))["DB_POOL_SIZE"]) + 1
    assert most > rolling * tasks * of_a_task


# The secrets


def test_no_secret_is_in_a_plain_environment(templates: Templates) -> None:
    seen = 0
    for container in containers(templates):
        plain = environment(container)
        assert not SECRETS & plain.keys()
        assert "resolve:secretsmanager" not in json.dumps(plain)
        assert {secret["Name"] for secret in container["Secrets"]} == SECRETS
        seen += 1
    assert seen == 2


def test_passwords_are_generated_and_inserted_by_cloudformation(templates: Templates) -> None:
    allowed = {"AWS::SecretsManager::Secret", "AWS::ElastiCache::User", "AWS::RDS::DBInstance"}
    for template in (templates.network, templates.data, templates.service, templates.alarms):
        for found in template.to_json()["Resources"].values():
            if "resolve:secretsmanager" in json.dumps(found):
                assert found["Type"] in allowed
    for secret in resources(templates.data, "AWS::SecretsManager::Secret"):
        written = json.dumps(secret.get("SecretString", ""))
        assert "GenerateSecretString" in secret or (
            "rediss://leaderboard:{{resolve:secretsmanager:" in written and written.count("PrimaryEndPoint") == 1
        )


def test_the_tasks_have_no_permissions_except_to_read_their_own_secrets(templates: Templates) -> None:
    roles = templates.service.find_resources("AWS::IAM::Role")
    policies = resources(templates.service, "AWS::IAM::Policy")
    with_rights = {role["Ref"] for policy in policies for role in policy["Roles"]}
    task_roles = {
        task["TaskRoleArn"]["Fn::GetAtt"][0] for task in resources(templates.service, "AWS::ECS::TaskDefinition")
    }
    assert task_roles <= roles.keys()
    assert not task_roles & with_rights
    for policy in policies:
        for statement in policy["PolicyDocument"]["Statement"]:
            if "secretsmanager:GetSecretValue" in statement["Action"]:
                assert len(statement["Resource"]) == len(SECRETS)
                assert all("Fn::ImportValue" in resource for resource in statement["Resource"])


# The service


def test_the_containers_have_least_privilege(templates: Templates) -> None:
    for container in containers(templates):
        assert container["User"] == "10001:10001"
        assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
        assert container["LinuxParameters"]["InitProcessEnabled"] is True
        assert not container.get("Privileged")
    assert api(templates)["ReadonlyRootFilesystem"] is True
    service = only(templates.service, "AWS::ECS::Service")
    assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"
    assert not service.get("EnableExecuteCommand")


def test_health_checks_use_the_right_path(templates: Templates) -> None:
    assert "/livez" in api(templates)["HealthCheck"]["Command"][-1]
    targets = only(templates.service, "AWS::ElasticLoadBalancingV2::TargetGroup")
    assert targets["HealthCheckPath"] == "/readyz"
    assert targets["Matcher"] == {"HttpCode": "200"}


def test_a_task_has_enough_time_for_a_graceful_stop(templates: Templates) -> None:
    container = api(templates)
    settings = environment(container)
    stop_delay, request = (int(settings[name]) / 1000 for name in ("STOP_DELAY_MS", "REQUEST_TIMEOUT_MS"))
    assert stop_delay + request + 2 < container["StopTimeout"] <= 120

    targets = only(templates.service, "AWS::ElasticLoadBalancingV2::TargetGroup")
    noticing = targets["UnhealthyThresholdCount"] * targets["HealthCheckIntervalSeconds"]
    assert stop_delay > noticing + targets["HealthCheckTimeoutSeconds"]
    attributes = {entry["Key"]: entry["Value"] for entry in targets["TargetGroupAttributes"]}
    assert int(attributes["deregistration_delay.timeout_seconds"]) >= stop_delay + request

    balancer = only(templates.service, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    attributes = {entry["Key"]: entry["Value"] for entry in balancer["LoadBalancerAttributes"]}
    assert int(attributes["idle_timeout.timeout_seconds"]) < int(settings["IDLE_TIMEOUT_MS"]) / 1000


def synthesised_with(folder: Path, **choices: Any) -> tuple[Template, dict[str, Any]]:
    """Returns the service's template with these options, and the build of its image."""
    app = App(context=CONTEXT, outdir=str(folder))
    _, _, service, _ = build(app, config(**choices), WHERE)
    template = Template.from_stack(service)
    app.synth()
    assets = json.loads((folder / f"{service.stack_name}.assets.json").read_text())
    (image,) = assets["dockerImages"].values()
    return template, image["source"]


def test_every_setting_reaches_the_tasks_or_is_set_by_the_stacks(tmp_path: Path) -> None:
    given, refused = {}, []
    for name in known_settings():
        value = {"JWT_KEY": "-----BEGIN PUBLIC KEY-----", "DB_SSLMODE": "verify-full"}.get(name, f"a {name}")
        try:
            config(settings={"DB_SSLROOTCERT": "/etc/ssl/rds.pem", name: value})
        except BadConfig as refusal:
            refused.append(str(refusal))
        else:
            given[name] = value
    assert all("must not be set; the stacks set it" in text for text in refused)
    (names,) = re.findall(r"((?:`[A-Z_]+`[, ]*(?:and )?)+)are\s+secrets\b", SETTINGS.read_text())
    secret = set(re.findall(r"`([A-Z_]+)`", names))
    assert secret > SECRETS
    # A public key is not a secret.
    assert given.keys() & secret == {"JWT_KEY"}

    template, _ = synthesised_with(tmp_path, settings=given)
    tasks = resources(template, "AWS::ECS::TaskDefinition")
    for container in (container for task in tasks for container in task["ContainerDefinitions"]):
        found = environment(container)
        assert found.items() >= given.items()
        # DATABASE_URL would be the password and four others in one; REDIS_URL has the password of Valkey.
        elsewhere = {"DATABASE_URL", "REDIS_PASSWORD", "REDIS_SENTINEL_PASSWORD"}
        assert found.keys() | SECRETS | elsewhere == known_settings()


def test_postgresql_connections_use_tls(templates: Templates) -> None:
    for container in containers(templates):
        assert environment(container)["DB_SSLMODE"] == "require"


def test_the_image_can_be_built_on_another_base_image(tmp_path: Path) -> None:
    chosen = {"DB_SSLMODE": "verify-full", "DB_SSLROOTCERT": "/etc/ssl/rds.pem"}
    template, image = synthesised_with(tmp_path / "one", python_image="leaderboard-python:1", settings=chosen)
    assert image["dockerBuildArgs"] == {"PYTHON_IMAGE": "leaderboard-python:1"}
    for task in resources(template, "AWS::ECS::TaskDefinition"):
        (container,) = task["ContainerDefinitions"]
        assert environment(container).items() >= chosen.items()
    _, image = synthesised_with(tmp_path / "other")
    assert "dockerBuildArgs" not in image
    # The build argument of the Dockerfile.
    assert "ARG PYTHON_IMAGE=" in (SETTINGS.parents[1] / "Dockerfile").read_text()


def test_only_the_balancers_subnets_are_trusted_proxies(templates: Templates) -> None:
    subnets = templates.network.find_resources("AWS::EC2::Subnet")
    of_the_balancer = [found["Properties"]["CidrBlock"] for name, found in subnets.items() if "balancer" in name]
    assert environment(api(templates))["TRUSTED_PROXIES"].split() == of_the_balancer


def test_there_is_https_only(templates: Templates) -> None:
    listener = only(templates.service, "AWS::ElasticLoadBalancingV2::Listener")
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert "TLS13" in listener["SslPolicy"]
    attributes = {entry["Key"]: entry["Value"] for entry in listener["ListenerAttributes"]}
    assert "max-age" in attributes["routing.http.response.strict_transport_security.header_value"]


def test_waf_protects_the_balancer_and_limits_each_address(templates: Templates) -> None:
    templates.service.has_resource_properties(
        "AWS::WAFv2::WebACLAssociation",
        {"ResourceArn": {"Ref": Match.string_like_regexp("Balancer")}, "WebACLArn": Match.any_value()},
    )
    rules = only(templates.service, "AWS::WAFv2::WebACL")["Rules"]
    assert rules[0]["Statement"]["RateBasedStatement"]["Limit"] == 20_000
    assert {rule["Statement"]["ManagedRuleGroupStatement"]["Name"] for rule in rules[1:]} == {
        "AWSManagedRulesAmazonIpReputationList",
        "AWSManagedRulesKnownBadInputsRuleSet",
        "AWSManagedRulesCommonRuleSet",
    }


def test_own_servers_are_not_rate_limited(tmp_path: Path) -> None:
    app = App(context=CONTEXT, outdir=str(tmp_path))
    _, _, service, _ = build(app, config(own_cidrs=["192.0.2.0/24"]), WHERE)
    template = Template.from_stack(service)
    assert only(template, "AWS::WAFv2::IPSet")["Addresses"] == ["192.0.2.0/24"]
    limited = only(template, "AWS::WAFv2::WebACL")["Rules"][0]["Statement"]["RateBasedStatement"]
    assert "IPSetReferenceStatement" in limited["ScopeDownStatement"]["NotStatement"]["Statement"]


def test_the_number_of_tasks_follows_the_load(templates: Templates) -> None:
    metrics = {
        policy["TargetTrackingScalingPolicyConfiguration"]["PredefinedMetricSpecification"]["PredefinedMetricType"]
        for policy in resources(templates.service, "AWS::ApplicationAutoScaling::ScalingPolicy")
    }
    assert metrics == {"ECSServiceAverageCPUUtilization", "ALBRequestCountPerTarget"}


@pytest.mark.parametrize("size", SIZES)
def test_fargate_supports_this_combination_of_cpu_and_memory(size: str) -> None:
    offered = {256: (512, 1024, 2048), 512: range(1024, 4097, 1024), 1024: range(2048, 8193, 1024)}
    assert SIZES[size].task_memory in offered[SIZES[size].task_cpu]


def test_an_image_that_fails_is_rolled_back(templates: Templates) -> None:
    templates.service.has_resource_properties(
        "AWS::ECS::Service",
        {
            "DeploymentConfiguration": {
                "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
                "MinimumHealthyPercent": 100,
                "MaximumPercent": 200,
            }
        },
    )


def test_logs_expire(templates: Templates) -> None:
    for template in (templates.network, templates.data, templates.service):
        for group in resources(template, "AWS::Logs::LogGroup"):
            assert group["RetentionInDays"] == 30


# The migration


def test_tasks_are_replaced_only_after_the_migration_of_the_same_image(templates: Templates) -> None:
    migration_id, migration = next(iter(templates.service.find_resources("Custom::Migration").items()))
    service = next(iter(templates.service.find_resources("AWS::ECS::Service").values()))
    assert migration_id in service["DependsOn"]
    commands = migration["Properties"]["TaskDefinition"]["Ref"]
    task = templates.service.find_resources("AWS::ECS::TaskDefinition")[commands]["Properties"]
    (container,) = task["ContainerDefinitions"]
    assert container["Command"] == ["leaderboard migrate"]
    assert container["Image"] == api(templates)["Image"]


def test_the_migration_begins_after_its_dependencies_exist(templates: Templates) -> None:
    migration = next(iter(templates.service.find_resources("Custom::Migration").values()))
    needed = {"CommandsExecutionRole", "CommandsExecutionRoleDefaultPolicy", "MigratorRoleDefaultPolicy"}
    assert needed <= {re.sub(r"[0-9A-F]{8}$", "", name) for name in migration["DependsOn"]}


def test_the_migrator_has_least_privilege(templates: Templates) -> None:
    (policy,) = (
        policy
        for policy in resources(templates.service, "AWS::IAM::Policy")
        if policy["PolicyName"].startswith("Migrator")
    )
    statements = policy["PolicyDocument"]["Statement"]
    actions = {statement["Action"] for statement in statements if isinstance(statement["Action"], str)}
    assert actions == {"ecs:RunTask", "ecs:DescribeTasks", "iam:PassRole", "cloudformation:DescribeStacks"}
    assert ["logs:CreateLogStream", "logs:PutLogEvents"] in [statement["Action"] for statement in statements]
    assert len(statements) == 5
    for statement in statements:
        assert statement["Resource"] != "*"
    (described,) = (found for found in statements if "cloudformation:DescribeStacks" in found["Action"])
    assert described["Resource"] == {"Ref": "AWS::StackId"}


def test_the_migrator_fits_into_the_template(templates: Templates) -> None:
    (function,) = resources(templates.service, "AWS::Lambda::Function")
    assert len(function["Code"]["ZipFile"]) <= 4096
    assert function["Timeout"] == 900


# The alarms


def test_these_metrics_have_alarms(synthesised: Callable[[str], Templates]) -> None:
    expected = {
        "AWS/ApplicationELB": {
            "HTTPCode_ELB_5XX_Count",
            "HTTPCode_Target_5XX_Count",
            "HealthyHostCount",
            "UnHealthyHostCount",
            "TargetResponseTime",
            "RequestCount",
        },
        "AWS/RDS": {
            "CPUUtilization",
            "FreeStorageSpace",
            "DatabaseConnections",
            "FreeableMemory",
            "MaximumUsedTransactionIDs",
        },
        "AWS/ElastiCache": {"DatabaseMemoryUsagePercentage", "EngineCPUUtilization"},
        "AWS/ECS": {"CPUUtilization", "MemoryUtilization"},
        "leaderboard-test": {"ErrorLines"},
    }
    assert watched(synthesised("medium")) == expected
    burstable = {**expected, "AWS/RDS": expected["AWS/RDS"] | {"CPUCreditBalance"}}
    assert watched(synthesised("small")) == burstable


def test_both_nodes_of_the_cache_are_watched(templates: Templates) -> None:
    nodes = {
        dimension["Value"]
        for alarm in resources(templates.alarms, "AWS::CloudWatch::Alarm")
        for dimension in alarm.get("Dimensions", ())
        if dimension["Name"] == "CacheClusterId"
    }
    group = only(templates.data, "AWS::ElastiCache::ReplicationGroup")["ReplicationGroupId"]
    assert nodes == {f"{group}-001", f"{group}-002"}


def test_every_alarm_has_a_description_and_a_recipient(templates: Templates) -> None:
    alarms = resources(templates.alarms, "AWS::CloudWatch::Alarm")
    for alarm in alarms:
        assert alarm["AlarmDescription"]
        assert alarm["AlarmActions"] == alarm["OKActions"] == [{"Ref": topic(templates)}]
    assert only(templates.alarms, "AWS::SNS::Subscription")["Endpoint"] == "ops@example.com"


def topic(templates: Templates) -> str:
    return next(iter(templates.alarms.find_resources("AWS::SNS::Topic")))


def watched(templates: Templates) -> dict[str, set[str]]:
    """Returns the metrics of the alarms by namespace."""
    seen: dict[str, set[str]] = {}
    for alarm in resources(templates.alarms, "AWS::CloudWatch::Alarm"):
        metrics = [alarm] if "MetricName" in alarm else [m["MetricStat"]["Metric"] for m in alarm["Metrics"][1:]]
        for metric in metrics:
            seen.setdefault(metric["Namespace"], set()).add(metric["MetricName"])
    return seen
