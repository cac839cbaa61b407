"""Runs one task of ECS to its end for CloudFormation, and fails the deployment if the task fails.

This file is the whole code of a Lambda function and is written into the template: at most 4,096 characters, and
nothing but what Lambda has (`cfnresponse` among it).
"""

import time

import boto3
import cfnresponse

PAUSE_S = 5
RESERVE_S = 20


def handler(event, context):
    """Answer CloudFormation whatever happens: without an answer it waits until its own time limit."""
    status, reason = cfnresponse.SUCCESS, ""
    try:
        if event["RequestType"] != "Delete" and not rolling_back(boto3.client("cloudformation"), event["StackId"]):
            run(boto3.client("ecs"), event["ResourceProperties"], context.get_remaining_time_in_millis)
    except Exception as error:  # noqa: BLE001
        status, reason = cfnresponse.FAILED, str(error) or repr(error)
    print(status, reason)  # noqa: T201
    cfnresponse.send(event, context, status, {}, "migration", reason=reason)


def rolling_back(cloudformation, stack):
    """Whether the stack goes back: an older version takes the newer schema, so there is nothing to run."""
    return "ROLLBACK" in cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]


def run(ecs, wanted, milliseconds_left):
    """Start the task and wait for its end. Raises RuntimeError unless its exit status is 0."""
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
    where = f"task {arn.rsplit('/', 1)[-1]}, its lines are in the log group {wanted['LogGroup']}"
    while milliseconds_left() > (RESERVE_S + PAUSE_S) * 1000:
        time.sleep(PAUSE_S)
        tasks = ecs.describe_tasks(cluster=wanted["Cluster"], tasks=[arn])["tasks"]
        if tasks and tasks[0]["lastStatus"] == "STOPPED":
            code = tasks[0]["containers"][0].get("exitCode")
            if code == 0:
                return
            stopped = tasks[0].get("stoppedReason", "")
            raise RuntimeError(f"the migration failed: exit status {code}, {stopped}; {where}")
    raise RuntimeError(f"the migration has not ended and goes on: deploy again when it has; {where}")
