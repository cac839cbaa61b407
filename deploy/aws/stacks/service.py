"""Image, migration, tasks, load balancer and WAF. Changes with every release."""

from pathlib import Path
from typing import Any

from aws_cdk import Acknowledgment, CfnOutput, CustomResource, Duration, RemovalPolicy, Stack, Validations
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_wafv2 as waf
from constructs import Construct

from stacks import config as numbers
from stacks.config import Config
from stacks.data import DATABASE_NAME, DATABASE_USER, DataStack
from stacks.logs import log_group
from stacks.network import NetworkStack, frozen

_REPOSITORY = Path(__file__).parents[3]
_MIGRATOR = Path(__file__).parents[1] / "migrator.py"
_USER = "10001:10001"
"""uid and gid of the image's user."""
_ALIVE = (
    "import http.client; c = http.client.HTTPConnection('127.0.0.1', 3000, timeout=2); "
    "c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"
)
_YEAR = "max-age=31536000"


class ServiceStack(Stack):
    """The service. A deployment runs the migration, and replaces the tasks only if the migration succeeds."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        config: Config,
        network: NetworkStack,
        data: DataStack,
        **options: Any,
    ) -> None:
        super().__init__(scope, id_, **options)
        self.config = config
        self.network = network
        self.data = data
        self.cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name=config.prefix,
            vpc=network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,
        )
        self.logs = log_group(self, config, "Log", f"/{config.prefix}/service")
        self.image = self._image()
        self.group = frozen(self, "ServiceGroup", network.service)

        self.commands = self._commands()
        migration = self._migration()
        self.balancer, self.targets = self._balancer()
        self.service = self._service()
        self.service.node.add_dependency(migration)
        self._firewall()
        CfnOutput(self, "Url", value=f"https://{config.domain}")
        CfnOutput(self, "BalancerName", value=self.balancer.load_balancer_dns_name)
        CfnOutput(self, "ClusterName", value=self.cluster.cluster_name)
        CfnOutput(self, "CommandsTask", value=self.commands.family)
        CfnOutput(self, "TaskNetwork", value=self._task_network())
        CfnOutput(self, "ApiKeysSecret", value=data.api_keys.secret_arn)
        CfnOutput(self, "DatabaseSecret", value=data.database_secret.secret_arn)
        CfnOutput(self, "RedisUrlSecret", value=data.redis_url.secret_arn)

    # The tasks

    def _image(self) -> ecs.ContainerImage:
        base = self.config.python_image
        asset = ecr_assets.DockerImageAsset(
            self,
            "Image",
            directory=str(_REPOSITORY),
            platform=ecr_assets.Platform.LINUX_AMD64,
            build_args={"PYTHON_IMAGE": base} if base else None,
        )
        return ecs.ContainerImage.from_docker_image_asset(asset)

    def _settings(self) -> dict[str, str]:
        """Returns the settings that are not secret."""
        balancer_subnets = self.network.vpc.select_subnets(subnet_group_name="balancer").subnets
        return {
            **self.config.plain_settings,
            "DB_HOST": self.data.database.db_instance_endpoint_address,
            "DB_PORT": str(numbers.DATABASE_PORT),
            "DB_NAME": DATABASE_NAME,
            "DB_USER": DATABASE_USER,
            "TRUSTED_PROXIES": " ".join(subnet.ipv4_cidr_block for subnet in balancer_subnets),
        }

    def _task(self, id_: str, **container: Any) -> ecs.FargateTaskDefinition:
        """Returns a task with one container, which runs the image with the settings and secrets."""
        size = self.config.sizes
        definition = ecs.FargateTaskDefinition(
            self,
            id_,
            family=f"{self.config.prefix}-{id_.lower()}",
            cpu=size.task_cpu,
            memory_limit_mib=size.task_memory,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        linux = ecs.LinuxParameters(definition, "Linux", init_process_enabled=True)
        linux.drop_capabilities(ecs.Capability.ALL)
        definition.add_container(
            "leaderboard",
            image=self.image,
            user=_USER,
            linux_parameters=linux,
            environment=self._settings(),
            secrets={
                "DB_PASSWORD": ecs.Secret.from_secrets_manager(self.data.database_secret, "password"),
                "REDIS_URL": ecs.Secret.from_secrets_manager(self.data.redis_url),
                "API_KEYS": ecs.Secret.from_secrets_manager(self.data.api_keys),
            },
            logging=ecs.LogDrivers.aws_logs(stream_prefix=id_.lower(), log_group=self.logs),
            **container,
        )
        role = definition.obtain_execution_role()
        Validations.of(definition).acknowledge(
            Acknowledgment(
                id="AwsSolutions-ECS2",
                reason="The environment variables are not secret; the secrets come from Secrets Manager.",
            )
        )
        Validations.of(role).acknowledge(
            Acknowledgment(
                id="AwsSolutions-IAM5[Resource::*]",
                reason="ecr:GetAuthorizationToken has no resource; all other actions are for one repository.",
            )
        )
        return definition

    def _api(self) -> ecs.FargateTaskDefinition:
        return self._task(
            "Api",
            command=["serve"],
            readonly_root_filesystem=True,
            port_mappings=[ecs.PortMapping(container_port=numbers.API_PORT)],
            stop_timeout=Duration.seconds(numbers.STOP_TIMEOUT_S),
            # ECS ignores the image's health check. This one checks the process only: if a task cannot reach
            # PostgreSQL or Valkey, a new task could not either.
            health_check=ecs.HealthCheck(
                command=["CMD", "python", "-IS", "-c", _ALIVE],
                interval=Duration.seconds(10),
                timeout=Duration.seconds(3),
                retries=3,
                start_period=Duration.seconds(30),
            ),
        )

    def _commands(self) -> ecs.FargateTaskDefinition:
        """Returns a task that runs one shell command, by default the migration.

        Its file system is writable, because `import` writes rejected rows to the working directory.
        """
        return self._task(
            "Commands",
            entry_point=["sh", "-ec"],
            command=["leaderboard migrate"],
            readonly_root_filesystem=False,
        )

    def _task_network(self) -> str:
        subnets = self.network.vpc.select_subnets(subnet_group_name="service").subnet_ids
        return (
            f"awsvpcConfiguration={{subnets=[{','.join(subnets)}],"
            f"securityGroups=[{self.group.security_group_id}],assignPublicIp=DISABLED}}"
        )

    # The migration

    def _migration(self) -> CustomResource:
        lines = log_group(self, self.config, "MigratorLog", f"/{self.config.prefix}/migrator")
        role = self._migrator_role(lines)
        function = lambda_.Function(
            self,
            "Migrator",
            description="runs `leaderboard migrate` as a task and waits for its end",
            runtime=lambda_.Runtime.PYTHON_3_14,
            handler="index.handler",
            code=lambda_.Code.from_inline(_MIGRATOR.read_text()),
            role=role,
            log_group=lines,
            timeout=Duration.minutes(15),
        )
        migration = CustomResource(
            self,
            "Migration",
            resource_type="Custom::Migration",
            service_token=function.function_arn,
            service_timeout=Duration.minutes(16),
            properties={
                "Cluster": self.cluster.cluster_name,
                # It changes with each new image, which makes CloudFormation run the migration again.
                "TaskDefinition": self.commands.task_definition_arn,
                "Subnets": self.network.vpc.select_subnets(subnet_group_name="service").subnet_ids,
                "SecurityGroups": [self.group.security_group_id],
                "LogGroup": self.logs.log_group_name,
            },
        )
        # Its permissions, and those of the task, must exist before it runs.
        migration.node.add_dependency(role, self.commands.obtain_execution_role())
        return migration

    def _migrator_role(self, lines: logs.LogGroup) -> iam.Role:
        """Returns a role that may run the commands' task, read its state, and write to the log group."""
        role = iam.Role(self, "MigratorRole", assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"))
        lines.grant_write(role)
        at_cluster = {"ArnEquals": {"ecs:cluster": self.cluster.cluster_arn}}
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["ecs:RunTask"], resources=[self.commands.task_definition_arn], conditions=at_cluster
            )
        )
        tasks = self.format_arn(service="ecs", resource="task", resource_name=f"{self.config.prefix}/*")
        role.add_to_policy(
            iam.PolicyStatement(actions=["ecs:DescribeTasks"], resources=[tasks], conditions=at_cluster)
        )
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["iam:PassRole"],
                resources=[self.commands.task_role.role_arn, self.commands.obtain_execution_role().role_arn],
                conditions={"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}},
            )
        )
        role.add_to_policy(
            iam.PolicyStatement(actions=["cloudformation:DescribeStacks"], resources=[self.stack_id])
        )
        Validations.of(role).acknowledge(
            Acknowledgment(
                id=f"AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:ecs:{self.region}:{self.account}:"
                f"task/{self.config.prefix}/*]",
                reason="Only tasks of this cluster; the id of a task is not known before it runs.",
            )
        )
        return role

    # The load balancer

    def _balancer(self) -> tuple[elb.ApplicationLoadBalancer, elb.ApplicationTargetGroup]:
        balancer = elb.ApplicationLoadBalancer(
            self,
            "Balancer",
            vpc=self.network.vpc,
            vpc_subnets={"subnet_group_name": "balancer"},
            internet_facing=True,
            security_group=frozen(self, "BalancerGroup", self.network.balancer),
            drop_invalid_header_fields=True,
            desync_mitigation_mode=elb.DesyncMitigationMode.STRICTEST,
            idle_timeout=Duration.seconds(numbers.BALANCER_IDLE_TIMEOUT_S),
        )
        balancer.log_access_logs(self._access_logs())
        group = elb.ApplicationTargetGroup(
            self,
            "Targets",
            vpc=self.network.vpc,
            target_type=elb.TargetType.IP,
            protocol=elb.ApplicationProtocol.HTTP,
            port=numbers.API_PORT,
            load_balancing_algorithm_type=elb.TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS,
            deregistration_delay=Duration.seconds(numbers.DEREGISTRATION_DELAY_S),
            # /readyz is 200 without Valkey, and without PostgreSQL while the cache is readable. It is 503 when
            # no read could be answered, and while a task stops.
            health_check=elb.HealthCheck(
                path="/readyz",
                healthy_http_codes="200",
                interval=Duration.seconds(numbers.HEALTH_INTERVAL_S),
                timeout=Duration.seconds(numbers.HEALTH_TIMEOUT_S),
                healthy_threshold_count=2,
                unhealthy_threshold_count=numbers.HEALTH_FAILURES,
            ),
        )
        # No port 80: a redirect would come after a client had sent its key unencrypted.
        listener = balancer.add_listener(
            "Https",
            port=443,
            protocol=elb.ApplicationProtocol.HTTPS,
            ssl_policy=elb.SslPolicy.TLS13_RES,
            certificates=[self._certificate(balancer)],
            default_target_groups=[group],
            open=False,
        )
        listener.set_attribute("routing.http.response.strict_transport_security.header_value", _YEAR)
        listener.set_attribute("routing.http.response.server.enabled", "false")
        return balancer, group

    def _access_logs(self) -> s3.Bucket:
        bucket = s3.Bucket(
            self,
            "AccessLogs",
            encryption=s3.BucketEncryption.S3_MANAGED,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            lifecycle_rules=[
                s3.LifecycleRule(expiration=Duration.days(self.config.log_days)),
                s3.LifecycleRule(abort_incomplete_multipart_upload_after=Duration.days(1)),
            ],
            removal_policy=RemovalPolicy.RETAIN,
        )
        Validations.of(bucket).acknowledge(
            Acknowledgment(
                id="AwsSolutions-S1",
                reason="The bucket holds access logs; logging access to it would log the logging.",
            )
        )
        return bucket

    def _certificate(self, balancer: elb.ApplicationLoadBalancer) -> acm.ICertificate:
        config = self.config
        if config.certificate_arn:
            return acm.Certificate.from_certificate_arn(self, "Certificate", config.certificate_arn)
        zone = route53.HostedZone.from_hosted_zone_attributes(
            self, "Zone", hosted_zone_id=config.hosted_zone_id, zone_name=config.hosted_zone_name
        )
        route53.ARecord(
            self,
            "Name",
            zone=zone,
            record_name=config.domain,
            target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(balancer)),
        )
        return acm.Certificate(
            self,
            "Certificate",
            domain_name=config.domain,
            validation=acm.CertificateValidation.from_dns(zone),
        )

    def _service(self) -> ecs.FargateService:
        size = self.config.sizes
        service = ecs.FargateService(
            self,
            "Service",
            cluster=self.cluster,
            task_definition=self._api(),
            desired_count=size.tasks[0],
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
            health_check_grace_period=Duration.seconds(60),
            security_groups=[self.group],
            vpc_subnets=self.network.service_subnets,
            assign_public_ip=False,
            enable_execute_command=False,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )
        service.attach_to_application_target_group(self.targets)
        service.node.add_dependency(self.balancer)
        scaling = service.auto_scale_task_count(min_capacity=size.tasks[0], max_capacity=size.tasks[1])
        up, down = Duration.seconds(60), Duration.minutes(5)
        scaling.scale_on_cpu_utilization(
            "Cpu", target_utilization_percent=60, scale_out_cooldown=up, scale_in_cooldown=down
        )
        scaling.scale_on_request_count(
            "Requests",
            requests_per_target=size.requests_per_task,
            target_group=self.targets,
            scale_out_cooldown=up,
            scale_in_cooldown=down,
        )
        return service

    # The firewall

    def _except_own_servers(self) -> dict[str, Any]:
        """Returns the part of a rule that excludes the networks in `own_cidrs`."""
        if not self.config.own_cidrs:
            return {}
        own = waf.CfnIPSet(
            self, "OwnServers", scope="REGIONAL", ip_address_version="IPV4", addresses=[*self.config.own_cidrs]
        )
        statement = {"ipSetReferenceStatement": {"arn": own.attr_arn}}
        return {"scopeDownStatement": {"notStatement": {"statement": statement}}}

    def _firewall(self) -> None:
        config = self.config
        acl = waf.CfnWebACL(
            self,
            "Firewall",
            scope="REGIONAL",
            default_action={"allow": {}},
            visibility_config=_visibility("firewall"),
            rules=[
                waf.CfnWebACL.RuleProperty(
                    name="requests-per-address",
                    priority=0,
                    action={"block": {"customResponse": {"responseCode": 429}}},
                    statement={
                        "rateBasedStatement": {
                            "limit": config.requests_per_address,
                            "evaluationWindowSec": 300,
                            "aggregateKeyType": "IP",
                            **self._except_own_servers(),
                        }
                    },
                    visibility_config=_visibility("requests-per-address"),
                ),
                _managed(1, "AWSManagedRulesAmazonIpReputationList"),
                _managed(2, "AWSManagedRulesKnownBadInputsRuleSet"),
                # Counted, not blocked: a player's name may look like markup, which the service escapes; the body
                # may contain an image URL; and game clients often send no User-Agent.
                _managed(
                    3,
                    "AWSManagedRulesCommonRuleSet",
                    counted=("CrossSiteScripting_BODY", "GenericRFI_BODY", "NoUserAgent_HEADER"),
                ),
            ],
        )
        waf.CfnWebACLAssociation(
            self, "FirewallBeforeBalancer", resource_arn=self.balancer.load_balancer_arn, web_acl_arn=acl.attr_arn
        )
        self._firewall_logging(acl)

    def _firewall_logging(self, acl: waf.CfnWebACL) -> None:
        """Logs blocked and counted requests, without the header Authorization."""
        # WAF requires this prefix of the log group's name.
        lines = log_group(self, self.config, "FirewallLog", f"aws-waf-logs-{self.config.prefix}")
        waf.CfnLoggingConfiguration(
            self,
            "FirewallLogging",
            resource_arn=acl.attr_arn,
            log_destination_configs=[
                self.format_arn(
                    service="logs",
                    resource=f"log-group:{lines.log_group_name}",
                )
            ],
            redacted_fields=[{"singleHeader": {"Name": "authorization"}}],
            logging_filter={
                "DefaultBehavior": "DROP",
                "Filters": [
                    {
                        "Behavior": "KEEP",
                        "Requirement": "MEETS_ANY",
                        "Conditions": [
                            {"ActionCondition": {"Action": "BLOCK"}},
                            {"ActionCondition": {"Action": "COUNT"}},
                        ],
                    }
                ],
            },
        )


def _visibility(name: str) -> waf.CfnWebACL.VisibilityConfigProperty:
    return waf.CfnWebACL.VisibilityConfigProperty(
        cloud_watch_metrics_enabled=True, metric_name=name, sampled_requests_enabled=True
    )


def _managed(priority: int, name: str, counted: tuple[str, ...] = ()) -> waf.CfnWebACL.RuleProperty:
    return waf.CfnWebACL.RuleProperty(
        name=name,
        priority=priority,
        override_action={"none": {}},
        statement={
            "managedRuleGroupStatement": {
                "vendorName": "AWS",
                "name": name,
                "ruleActionOverrides": [{"name": rule, "actionToUse": {"count": {}}} for rule in counted],
            }
        },
        visibility_config=_visibility(name),
    )
