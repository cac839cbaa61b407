"""PostgreSQL, Valkey and the secrets. Changes with the size and with new versions."""

from pathlib import Path
from typing import Any

from aws_cdk import Acknowledgment, Duration, RemovalPolicy, SecretValue, Stack, Validations
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.config import CACHE_PORT, DATABASE_PORT, Config
from stacks.logs import log_group
from stacks.network import NetworkStack, frozen

DATABASE_NAME = "leaderboard"
DATABASE_USER = "leaderboard"
_CACHE_USER = "leaderboard"
ACCESS_FILE = Path(__file__).parents[1] / "valkey-access.txt"
"""The service's permissions in Valkey; a test of the service checks that they are enough."""


class DataStack(Stack):
    """PostgreSQL and Valkey in their own subnets.

    When the stack is deleted, a snapshot of PostgreSQL and the API keys are kept.
    """

    def __init__(self, scope: Construct, id_: str, config: Config, network: NetworkStack, **options: Any) -> None:
        super().__init__(scope, id_, **options)
        self.config = config
        self.database_secret = rds.DatabaseSecret(self, "DatabaseSecret", username=DATABASE_USER)
        self.database = self._database(network)
        self.cache = self._cache(network)
        cache_password = self._generated("CachePassword", "Valkey's password")
        self._cache_user(cache_password)
        self.redis_url = secretsmanager.Secret(
            self,
            "RedisUrl",
            description="REDIS_URL, with the password of Valkey in it",
            # CloudFormation inserts the password; the template does not contain it.
            secret_string_value=SecretValue.unsafe_plain_text(
                f"rediss://{_CACHE_USER}:{cache_password.secret_value.unsafe_unwrap()}"
                f"@{self.cache.attr_primary_end_point_address}:{CACHE_PORT}"
            ),
        )
        # The first key may read and write. How to replace it by hashed keys: docs/aws.md.
        self.api_keys = self._generated("ApiKeys", "API_KEYS", RemovalPolicy.RETAIN)
        for owner in (self.database_secret, cache_password, self.redis_url, self.api_keys):
            Validations.of(owner).acknowledge(
                Acknowledgment(
                    id="AwsSolutions-SMG4",
                    reason="Tasks read secrets when they start, so an automatic rotation would lock them out."
                    " How to change each secret: docs/aws.md.",
                )
            )

    def _database(self, network: NetworkStack) -> rds.DatabaseInstance:
        config, size = self.config, self.config.sizes
        engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_18)
        identifier = config.prefix
        lines = [
            log_group(self, config, f"DatabaseLog{kind}", f"/aws/rds/instance/{identifier}/{kind}")
            for kind in ("postgresql", "upgrade")
        ]
        database = rds.DatabaseInstance(
            self,
            "Database",
            engine=engine,
            instance_identifier=identifier,
            instance_type=ec2.InstanceType(size.db_class),
            vpc=network.vpc,
            vpc_subnets=network.data_subnets,
            security_groups=[frozen(self, "DatabaseGroup", network.database)],
            publicly_accessible=False,
            multi_az=True,
            port=DATABASE_PORT,
            database_name=DATABASE_NAME,
            credentials=rds.Credentials.from_secret(self.database_secret),
            storage_type=rds.StorageType.GP3,
            storage_encrypted=True,
            allocated_storage=size.db_storage[0],
            max_allocated_storage=size.db_storage[1],
            backup_retention=Duration.days(config.backup_days),
            preferred_backup_window="03:00-03:30",
            preferred_maintenance_window="sun:04:00-sun:04:30",
            copy_tags_to_snapshot=True,
            delete_automated_backups=False,
            deletion_protection=True,
            removal_policy=RemovalPolicy.SNAPSHOT,
            auto_minor_version_upgrade=True,
            ca_certificate=rds.CaCertificate.RDS_CA_RSA2048_G1,
            parameter_group=self._database_parameters(engine),
            enable_performance_insights=True,
            cloudwatch_logs_exports=["postgresql", "upgrade"],
        )
        database.node.add_dependency(*lines)
        Validations.of(database).acknowledge(
            Acknowledgment(
                id="AwsSolutions-RDS11",
                reason="Another port than 5432 adds no security: only the service's security group reaches it.",
            )
        )
        return database

    def _database_parameters(self, engine: rds.IInstanceEngine) -> rds.ParameterGroup:
        return rds.ParameterGroup(
            self,
            "DatabaseParameters",
            engine=engine,
            parameters={
                "rds.force_ssl": "1",
                "max_connections": str(self.config.sizes.max_connections),
                "log_min_duration_statement": "1000",
                # Slow statements are logged without parameters, because those contain users' names.
                "log_parameter_max_length": "0",
            },
        )

    def _cache(self, network: NetworkStack) -> elasticache.CfnReplicationGroup:
        config = self.config
        parameters = elasticache.CfnParameterGroup(
            self,
            "CacheParameters",
            cache_parameter_group_family="valkey8",
            description="The service bounds what it stores itself; a key evicted would mean another rebuild",
            properties={"maxmemory-policy": "noeviction"},
        )
        subnets = elasticache.CfnSubnetGroup(
            self,
            "CacheSubnets",
            description="the subnets of the stores",
            subnet_ids=network.vpc.select_subnets(subnet_group_name="data").subnet_ids,
        )
        self.cache_users = elasticache.CfnUserGroup(
            self,
            "CacheUsers",
            engine="valkey",
            user_group_id=config.prefix,
            user_ids=[config.prefix],
        )
        lines = log_group(self, config, "CacheLog", f"/{config.prefix}/cache")
        cache = elasticache.CfnReplicationGroup(
            self,
            "Cache",
            replication_group_id=config.prefix,
            replication_group_description="the best users of the board, loaded from PostgreSQL when it is empty",
            engine="valkey",
            engine_version="8.1",
            cache_node_type=f"cache.{config.sizes.cache_class}",
            num_cache_clusters=2,
            automatic_failover_enabled=True,
            multi_az_enabled=True,
            cache_parameter_group_name=parameters.ref,
            cache_subnet_group_name=subnets.ref,
            security_group_ids=[network.cache.security_group_id],
            port=CACHE_PORT,
            transit_encryption_enabled=True,
            transit_encryption_mode="required",
            at_rest_encryption_enabled=True,
            user_group_ids=[self.cache_users.ref],
            auto_minor_version_upgrade=True,
            preferred_maintenance_window="sun:05:00-sun:06:00",
            # The cache holds nothing that PostgreSQL does not have.
            snapshot_retention_limit=0,
            log_delivery_configurations=[
                _log_delivery(kind, lines.log_group_name) for kind in ("slow-log", "engine-log")
            ],
        )
        Validations.of(cache).acknowledge(
            Acknowledgment(
                id="AwsSolutions-AEC6",
                reason="Its user has a password and only the permissions that it needs; AUTH has no permissions.",
            ),
        )
        return cache

    def _cache_user(self, password: secretsmanager.Secret) -> None:
        user = elasticache.CfnUser(
            self,
            "CacheUser",
            engine="valkey",
            user_id=self.config.prefix,
            user_name=_CACHE_USER,
            access_string=ACCESS_FILE.read_text().strip(),
            authentication_mode={"Type": "password", "Passwords": [password.secret_value.unsafe_unwrap()]},
        )
        self.cache_users.add_resource_dependency(user)

    def _generated(
        self, id_: str, description: str, removal_policy: RemovalPolicy = RemovalPolicy.DESTROY
    ) -> secretsmanager.Secret:
        return secretsmanager.Secret(
            self,
            id_,
            description=description,
            generate_secret_string=secretsmanager.SecretStringGenerator(
                password_length=43, exclude_punctuation=True
            ),
            removal_policy=removal_policy,
        )


def _log_delivery(
    kind: str, group_name: str
) -> elasticache.CfnReplicationGroup.LogDeliveryConfigurationRequestProperty:
    return elasticache.CfnReplicationGroup.LogDeliveryConfigurationRequestProperty(
        destination_type="cloudwatch-logs",
        destination_details=elasticache.CfnReplicationGroup.DestinationDetailsProperty(
            cloud_watch_logs_details=elasticache.CfnReplicationGroup.CloudWatchLogsDestinationDetailsProperty(
                log_group=group_name
            )
        ),
        log_format="json",
        log_type=kind,
    )
