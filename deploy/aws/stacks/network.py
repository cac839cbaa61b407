"""The network: subnets, endpoints, and the allowed connections. Changes when a component is added.

Only the load balancer's subnets have a route to the Internet, and there is no NAT gateway. Tasks reach AWS
services through VPC endpoints.
"""

from typing import Any

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from stacks.config import API_PORT, CACHE_PORT, DATABASE_PORT, Config
from stacks.logs import log_group

_ENDPOINTS = {
    # ECS needs these to start a task in a subnet without a route to the Internet.
    "EcrApi": ec2.InterfaceVpcEndpointAwsService.ECR,
    "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "Secrets": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
}


class NetworkStack(Stack):
    """Subnets in two zones, endpoints, and the security groups with all their rules."""

    def __init__(self, scope: Construct, id_: str, config: Config, **options: Any) -> None:
        super().__init__(scope, id_, **options)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            max_azs=2,
            nat_gateways=0,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="balancer", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24),
                ec2.SubnetConfiguration(name="service", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=22),
                ec2.SubnetConfiguration(name="data", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=24),
            ],
            gateway_endpoints={
                # The layers of an image are in S3.
                "S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)
            },
        )
        self.service_subnets = ec2.SubnetSelection(subnet_group_name="service")
        self.data_subnets = ec2.SubnetSelection(subnet_group_name="data")
        self.vpc.add_flow_log(
            "Refused",
            destination=ec2.FlowLogDestination.to_cloud_watch_logs(
                log_group(self, config, "FlowLog", f"/{config.prefix}/network")
            ),
            # Accepted connections would cost much and be of little use.
            traffic_type=ec2.FlowLogTrafficType.REJECT,
        )

        self.balancer = self._group("Balancer", "the load balancer")
        self.service = self._group("Service", "the tasks of the API, and those that run one command")
        self.database = self._group("Database", "PostgreSQL")
        self.cache = self._group("Cache", "Valkey")
        endpoints = self._group("Endpoints", "the endpoints of AWS services")
        for name, service in _ENDPOINTS.items():
            self.vpc.add_interface_endpoint(
                name, service=service, subnets=self.service_subnets, security_groups=[endpoints], open=False
            )

        for cidr in config.allowed_cidrs:
            self.balancer.add_ingress_rule(ec2.Peer.ipv4(cidr), ec2.Port.tcp(443), "HTTPS from clients")
        if "0.0.0.0/0" in config.allowed_cidrs:
            Validations.of(self.balancer).acknowledge(
                Acknowledgment(
                    id="AwsSolutions-EC23",
                    reason="The API is public: clients connect from anywhere, with HTTPS only, through WAF.",
                )
            )
        self._allow(self.balancer, self.service, API_PORT, "requests and health checks")
        self._allow(self.service, self.database, DATABASE_PORT, "PostgreSQL")
        self._allow(self.service, self.cache, CACHE_PORT, "Valkey")
        self._allow(self.service, endpoints, 443, "ECR, logs and secrets")
        s3 = ec2.PrefixList.from_lookup(self, "S3Networks", prefix_list_name=f"com.amazonaws.{self.region}.s3")
        self.service.add_egress_rule(
            ec2.Peer.prefix_list(s3.prefix_list_id), ec2.Port.tcp(443), "layers of images, files to import"
        )

    def _group(self, id_: str, description: str) -> ec2.SecurityGroup:
        return ec2.SecurityGroup(
            self, id_, vpc=self.vpc, description=description, allow_all_outbound=False, disable_inline_rules=True
        )

    def _allow(self, source: ec2.SecurityGroup, target: ec2.SecurityGroup, port: int, what: str) -> None:
        target.add_ingress_rule(source, ec2.Port.tcp(port), what)
        source.add_egress_rule(target, ec2.Port.tcp(port), what)


def frozen(scope: Construct, id_: str, group: ec2.SecurityGroup) -> ec2.ISecurityGroup:
    """Returns an immutable reference to a group, so that constructs in other stacks add no rules to it."""
    return ec2.SecurityGroup.from_security_group_id(scope, id_, group.security_group_id, mutable=False)
