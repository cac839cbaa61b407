"""Runs an ECS task for CloudFormation, waits for its end, and fails the deployment if the task fails.

This file is the whole code of a Lambda function and is copied into the template. It may have at most 4,096
characters and may import only what Lambda provides, including `cfnresponse`.
"""

import time

import boto3
import cfnresponse

PAUSE_S = 5
RESERVE_S = 20


def handler(event, context):
    """Always answers CloudFormation; without an answer it waits until its own timeout."""
    status, reason = cfnresponse.SUCCESS, ""
    try:
        if event["RequestType"] != "Delete" and not rolling_back(boto3.client("cloudformation"), event["StackId"]):
            run(boto3.client("ecs"), event["ResourceProperties"], context.get_remaining_time_in_millis)
    except Exception as error:  # noqa: BLE001
        status, reason = cfnresponse.FAILED, str(error) or repr(error)
    print(status, reason)  # noqa: T201
    cfnresponse.send(event, context, status, {}, "migration", reason=reason)


def rolling_back(cloudformation, stack):
    """Returns whether the stack rolls back. Then nothing runs: an older version accepts the newer schema."""
    return "ROLLBACK" in cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]


def run(ecs, wanted, milliseconds_left):
    """Starts the task and waits for its end. Raises RuntimeError unless its exit status is 0."""
    started = ecs.run_task(
        cluster=wanted["Cluster"],
        taskDefinition=wanted["TaskDefinition"],
        launchType="FARGATE",
        networkConfiguration={
            "awsvpcConfiguration": {
                "subnets": wanted["Subnets"],
                "securityGroups": wanted["SecurityGroups"],
                "assignPublicIp": "DISABLED",
            }
        },
    )
    if not started["tasks"]:
        raise RuntimeError(f"the migration could not be started: {started['failures']}")
    arn = started["tasks"][0]["taskArn"]
    where = f"task {arn.rsplit('/', 1)[-1]}, its output is in the log group {wanted['LogGroup']}"
    while milliseconds_left() > (RESERVE_S + PAUSE_S) * 1000:
        time.sleep(PAUSE_S)
        tasks = ecs.describe_tasks(cluster=wanted["Cluster"], tasks=[arn])["tasks"]
        if tasks and tasks[0]["lastStatus"] == "STOPPED":
            code = tasks[0]["containers"][0].get("exitCode")
            if code == 0:
                return
            stopped = tasks[0].get("stoppedReason", "")
            raise RuntimeError(f"the migration failed: exit status {code}, {stopped}; {where}")
    raise RuntimeError(
        f"the migration has not ended and is still running: deploy again after it has ended; {where}"
    )
