"""The Lambda function that runs the migration: its answer for each outcome of the task."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "migrator.py"
WANTED = {
    "Cluster": "c",
    "TaskDefinition": "commands:7",
    "Subnets": ["subnet-1"],
    "SecurityGroups": ["sg-1"],
    "LogGroup": "/leaderboard-test/service",
}


class Ecs:
    """A substitute for ECS: a task with one state after the other."""

    def __init__(self, *states: dict[str, Any], failures: list[str] | None = None) -> None:
        self.states = list(states)
        self.failures = failures or []
        self.started: list[dict[str, Any]] = []

    def run_task(self, **request: Any) -> dict[str, Any]:
        self.started.append(request)
        tasks = [] if self.failures else [{"taskArn": "arn:aws:ecs:x:1:task/c/abc"}]
        return {"tasks": tasks, "failures": self.failures}

    def describe_tasks(self, cluster: str, tasks: list[str]) -> dict[str, Any]:
        assert (cluster, tasks) == ("c", ["arn:aws:ecs:x:1:task/c/abc"])
        return {"tasks": [self.states.pop(0) if len(self.states) > 1 else self.states[0]]}


class Lambda:
    """A substitute for Lambda's context and for CloudFormation; collects the function's answers."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.answers: list[tuple[str, str]] = []
        self.left = 900_000
        self.stack = "CREATE_IN_PROGRESS"

    def get_remaining_time_in_millis(self) -> int:
        self.left -= 10_000
        return self.left

    def describe_stacks(self, StackName: str) -> dict[str, Any]:  # noqa: N803
        assert StackName == "arn:aws:cloudformation:x"
        return {"Stacks": [{"StackStatus": self.stack}]}

    def call(self, request: str = "Create") -> tuple[str, str]:
        event = {"RequestType": request, "ResourceProperties": WANTED, "StackId": "arn:aws:cloudformation:x"}
        self.module.handler(event, self)
        (answer,) = self.answers
        return answer


@pytest.fixture
def lambda_(monkeypatch: pytest.MonkeyPatch) -> Lambda:
    """The function with substitutes for AWS's libraries and for `time.sleep`."""
    cfnresponse = ModuleType("cfnresponse")
    boto3 = ModuleType("boto3")
    monkeypatch.setitem(sys.modules, "cfnresponse", cfnresponse)
    monkeypatch.setitem(sys.modules, "boto3", boto3)
    spec = importlib.util.spec_from_file_location("migrator", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _seconds: None))
    given = Lambda(module)

    def send(_event: Any, _context: Any, status: str, data: Any, name: str, reason: str) -> None:
        assert (data, name) == ({}, "migration")
        given.answers.append((status, reason))

    monkeypatch.setattr(cfnresponse, "SUCCESS", "SUCCESS", raising=False)
    monkeypatch.setattr(cfnresponse, "FAILED", "FAILED", raising=False)
    monkeypatch.setattr(cfnresponse, "send", send, raising=False)
    return given


def ecs(lambda_: Lambda, *states: dict[str, Any], failures: list[str] | None = None) -> Ecs:
    client = Ecs(*states, failures=failures)
    lambda_.module.boto3.client = {"ecs": client, "cloudformation": lambda_}.__getitem__
    return client


def stopped(code: int | None, reason: str = "Essential container in task exited") -> dict[str, Any]:
    container = {} if code is None else {"exitCode": code}
    return {"lastStatus": "STOPPED", "containers": [container], "stoppedReason": reason}


RUNNING = {"lastStatus": "RUNNING", "containers": [{}]}


@pytest.mark.parametrize("request_type", ["Create", "Update"])
def test_a_successful_task_continues_the_deployment(lambda_: Lambda, request_type: str) -> None:
    client = ecs(lambda_, RUNNING, RUNNING, stopped(0))
    assert lambda_.call(request_type) == ("SUCCESS", "")
    (started,) = client.started
    assert (started["cluster"], started["taskDefinition"]) == ("c", "commands:7")
    network = started["networkConfiguration"]["awsvpcConfiguration"]
    assert network == {"subnets": ["subnet-1"], "securityGroups": ["sg-1"], "assignPublicIp": "DISABLED"}


def test_a_failed_task_fails_the_deployment_and_names_its_log(lambda_: Lambda) -> None:
    ecs(lambda_, RUNNING, stopped(3))
    status, reason = lambda_.call()
    assert status == "FAILED"
    assert "exit status 3" in reason
    assert "task abc" in reason
    assert "/leaderboard-test/service" in reason


def test_a_task_that_never_ran_fails_the_deployment(lambda_: Lambda) -> None:
    ecs(lambda_, stopped(None, "CannotPullContainerError"))
    status, reason = lambda_.call()
    assert status == "FAILED"
    assert "CannotPullContainerError" in reason


def test_a_task_that_cannot_be_started_fails_the_deployment(lambda_: Lambda) -> None:
    ecs(lambda_, RUNNING, failures=["RESOURCE:CPU"])
    assert lambda_.call() == ("FAILED", "the migration could not be started: ['RESOURCE:CPU']")


def test_a_task_that_runs_too_long_fails_the_deployment_before_lambda_times_out(lambda_: Lambda) -> None:
    ecs(lambda_, RUNNING)
    status, reason = lambda_.call()
    assert status == "FAILED"
    assert "has not ended" in reason
    assert lambda_.left > 0


def test_an_error_of_aws_fails_the_deployment(lambda_: Lambda) -> None:
    def refuse(_name: str) -> None:
        raise PermissionError("AccessDenied")

    lambda_.module.boto3.client = refuse
    assert lambda_.call() == ("FAILED", "AccessDenied")


def test_deleting_the_stack_runs_nothing(lambda_: Lambda) -> None:
    client = ecs(lambda_, RUNNING)
    assert lambda_.call("Delete") == ("SUCCESS", "")
    assert client.started == []


def test_a_stack_that_rolls_back_runs_nothing(lambda_: Lambda) -> None:
    client = ecs(lambda_, stopped(3))
    lambda_.stack = "UPDATE_ROLLBACK_IN_PROGRESS"
    assert lambda_.call("Update") == ("SUCCESS", "")
    assert client.started == []
