"""The Helm chart: its settings, the values that it refuses, and the references between its objects.

Tests that need helm are skipped without it; `make deploy-check` installs it.
"""

import base64
import json
import math
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import jsonschema_rs
import pytest
import yaml
from pydantic import SecretStr

from deploy.check import ROOT, Failed, find
from deploy.check.kubernetes import COMBINATIONS
from deploy.check.manifests import CHART, FOLDER, stale, template
from leaderboard.config import BadSetting, Settings, load
from tests.system import setting_text

Document = dict[str, Any]

VALUES: Document = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA: Document = json.loads((CHART / "values.schema.json").read_text("utf-8"))
LEAST, EVERYTHING = CHART / "ci" / "least-values.yaml", CHART / "ci" / "everything-values.yaml"
TRIAL = CHART / "values-trial.yaml"
OPERATORS = (CHART / "values-cloudnativepg.yaml", CHART / "values-redis-operator.yaml")

NOT_THERE = {"DATABASE_URL"}
"""The chart has the parts of the URL as separate settings; only the password is secret."""
SECRETS = {
    name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr
} - NOT_THERE
MOUNTED = {"DB_SSLROOTCERT", "DB_SSLCERT", "DB_SSLKEY"}
"""Files in the pod, which do not exist on this machine."""
OTHER_DEFAULTS = {"DB_HOST": "", "STOP_DELAY_MS": 10_000}
"""Defaults of the chart that differ from the service's."""

needs_helm = pytest.mark.skipif(find("helm") is None, reason="needs helm: `make .venv-deploy/.installed`")


def merged(*files: Path) -> Document:
    """Returns the chart's values, overridden by these files as Helm does it."""

    def put(over: Document, under: Document) -> Document:
        both = {
            name: put(over[name], under[name])
            if isinstance(over[name], dict) and isinstance(under[name], dict)
            else over[name]
            for name in over.keys() & under.keys()
        }
        return {**under, **over, **both}

    values = VALUES
    for file in files:
        values = put(yaml.safe_load(file.read_text("utf-8")), values)
    return values


@cache
def rendered(*files: Path, options: tuple[str, ...] = ()) -> tuple[Document, ...]:
    """Returns the documents of the rendered chart."""
    return tuple(each for each in yaml.safe_load_all(template(*files, options=options)) if each)


def one(documents: tuple[Document, ...], kind: str, name: str = "leaderboard") -> Document:
    (found,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods(documents: tuple[Document, ...]) -> list[tuple[str, Document]]:
    """Returns the pod template of each workload, with its kind and name."""
    return [
        (f"{each['kind']} {each['metadata']['name']}", each["spec"]["template"])
        for each in documents
        if each["kind"] in {"Deployment", "StatefulSet", "Job"}
    ]


def containers(template: Document) -> list[Document]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


# Settings, without helm


def test_the_chart_has_the_settings_of_the_service_with_their_defaults() -> None:
    fields = {
        name.upper(): setting_text(field.default) if field.annotation is bool else field.default
        for name, field in Settings.model_fields.items()
    }
    expected = {name: value for name, value in fields.items() if name not in SECRETS | NOT_THERE} | OTHER_DEFAULTS
    assert VALUES["settings"] == expected
    assert set(VALUES["secrets"]) == SECRETS


def test_the_schema_has_the_bounds_of_the_settings() -> None:
    properties = SCHEMA["properties"]["settings"]["properties"]
    assert set(properties) == set(VALUES["settings"]) == set(SCHEMA["properties"]["settings"]["required"])
    for name, field in Settings.model_fields.items():
        if name.upper() in SECRETS | NOT_THERE:
            continue
        found = properties[name.upper()]
        limits = {
            kind: getattr(limit, kind)
            for limit in field.metadata
            for kind in ("ge", "le", "pattern")
            if hasattr(limit, kind)
        }
        if field.annotation is bool:
            assert found == {"enum": ["on", "off"]}, name
        elif get_origin(field.annotation) is not None:
            assert found == {"enum": list(get_args(field.annotation))}, name
        elif field.annotation in {int, float}:
            kind = "integer" if field.annotation is int else "number"
            assert found == {"type": kind, "minimum": limits["ge"], "maximum": limits["le"]}, name
        elif limits:
            assert found == {"type": "string", "pattern": limits["pattern"]}, name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "JWT_ALGORITHMS",
            ["", "ES256", "ES256 EdDSA", " PS512  RS384 ", "none", "ES257", "ES256,ES384", "ES256ES384"],
        ),
        (
            "RATE_LIMIT_PER_KEY",
            ["", "1/second", "10000/hour", "10001/hour", "0/second", "01/second", "5/day", "5"],
        ),
        (
            "PAGE_IMAGES",
            ["", "https:", "https: http://a.example:8080/", "https://a.example", "ftp:", "https:http:"],
        ),
        (
            "CORS_ORIGINS",
            [
                *("", "*", " * ", "https://game.example", " https://a.example:8443  http://[::1]:80 ", "app://x"),
                *(
                    "https://a.example/",
                    "a.example",
                    "null",
                    "*.example",
                    "https://*.example",
                    "* https://a.example",
                ),
                *("https://a,https://b", "https://a:0", "https://u@a", "https://a?b"),
            ],
        ),
        ("TRUSTED_PROXIES", ["", "10.0.0.0/8 fd00::/8", "10.0.0.1", "proxy.example", "10.0.0.0/8,fd00::/8"]),
    ],
)
def test_the_schema_accepts_the_same_strings_as_the_service(name: str, values: list[str]) -> None:
    schema = {**SCHEMA["properties"]["settings"]["properties"][name], "definitions": SCHEMA["definitions"]}
    outcomes = []
    for value in values:
        key = {"jwt_key": SecretStr("")} if name != "JWT_ALGORITHMS" else {}
        try:
            load(None, **{name.lower(): value, **key})
            accepted = True
        except BadSetting as error:
            # JWT_ALGORITHMS without JWT_KEY is an error about JWT_KEY, so the value itself was accepted.
            accepted = str(error).startswith("JWT_KEY=")
        assert jsonschema_rs.is_valid(schema, value) == accepted, value
        outcomes.append(accepted)
    assert {True, False} == set(outcomes)


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, Document]]:
    """Yields every object schema within this schema, with its path."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for name, part in schema.items():
            yield from objects(part, f"{path}/{name}")
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from objects(part, f"{path}/{number}")


def test_every_object_refuses_unknown_names() -> None:
    free = {path for path, schema in objects(SCHEMA) if schema.get("additionalProperties") is not False}
    # Labels and annotations, parts of a Pod, and the values that Helm sets.
    assert free == {"/definitions/strings", "/definitions/kubernetes", "/properties/global"}
    known = SCHEMA["properties"]
    assert set(known) - {"global"} == set(VALUES)


@pytest.mark.parametrize("files", COMBINATIONS, ids=lambda files: files[0].name)
def test_each_set_of_values_is_valid(files: tuple[Path, ...]) -> None:
    jsonschema_rs.validate(SCHEMA, merged(*files))


def test_the_chart_has_the_version_of_the_service() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_operators_objects_have_the_names_that_the_values_use() -> None:
    values = merged(*OPERATORS)
    (cluster,) = yaml.safe_load_all((FOLDER / "cloudnativepg.yaml").read_text("utf-8"))
    redis, config = yaml.safe_load_all((FOLDER / "redis-operator.yaml").read_text("utf-8"))
    name = cluster["metadata"]["name"]
    made = cluster["spec"]["bootstrap"]["initdb"]
    assert values["settings"]["DB_HOST"] == f"{name}-rw"
    assert (values["settings"]["DB_NAME"], values["settings"]["DB_USER"]) == (made["database"], made["owner"])
    assert values["secrets"]["DB_PASSWORD"]["secret"] == f"{name}-app"
    most = cluster["spec"]["postgresql"]["parameters"]["max_connections"]
    assert values["postgres"]["maxConnections"] == int(most)
    assert redis["spec"]["redisConfig"]["additionalRedisConfig"] == config["metadata"]["name"]
    password = redis["spec"]["kubernetesConfig"]["redisSecret"]
    given = values["secrets"]["REDIS_PASSWORD"]
    assert (given["secret"], given["key"]) == (password["name"], password["key"])
    assert values["secrets"]["REDIS_URL"]["value"] == f"redis://{redis['metadata']['name']}:6379"


# The rendered chart


@needs_helm
@pytest.mark.parametrize("files", COMBINATIONS, ids=lambda files: files[0].name)
def test_the_pods_have_the_settings_in_the_values(files: tuple[Path, ...]) -> None:
    values = merged(*files)
    documents = rendered(*files)
    (container,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    (source,) = container["envFrom"]
    environment = dict(one(documents, "ConfigMap", source["configMapRef"]["name"])["data"])
    for variable in container["env"]:
        if source := variable.get("valueFrom"):
            name, reference = variable["name"], source["secretKeyRef"]
            environment[name] = secret(documents, **reference)
            given = values["secrets"][name]
            if given["secret"]:
                assert reference == {"name": given["secret"], "key": given["key"] or name}
    settings = {name: value for name, value in environment.items() if name in {*VALUES["settings"], *SECRETS}}
    found = load(
        None,
        **{name.lower(): value for name, value in settings.items() if name not in {"JWT_KEY", *MOUNTED}}
        | no_tokens(values),
    )
    for name, value in values["settings"].items():
        if name in MOUNTED:
            assert environment[name] == value, name
        elif name != "JWT_ALGORITHMS":
            setting = getattr(found, name.lower())
            assert ({True: "on", False: "off"}[setting] if isinstance(setting, bool) else setting) == value, name
    for name, given in values["secrets"].items():
        assert (name in environment) == bool(given["value"] or given["secret"]), name
        if given["value"]:
            assert getattr(found, name.lower()).get_secret_value() == given["value"]


def no_tokens(values: Document) -> Document:
    """Returns settings without users' tokens, because their key is in a Secret outside the chart."""
    return {"jwt_algorithms": ""} if values["settings"]["JWT_ALGORITHMS"] else {}


def secret(documents: tuple[Document, ...], name: str, key: str) -> str:
    """Returns a value of a Secret of the chart, or a valid value for a Secret outside the chart."""
    for each in documents:
        if each["kind"] == "Secret" and each["metadata"]["name"] == name:
            return base64.b64decode(each["data"][key]).decode()
    return "redis://outside-the-chart" if key in {"REDIS_URL", "url"} else "key-outside-the-chart"


@needs_helm
@pytest.mark.parametrize("bound", ["minimum", "maximum"])
def test_every_number_reaches_the_service_as_it_is(bound: str) -> None:
    """Helm reads numbers as floats, and would write a million as 1e+06."""
    limits = {
        name: schema[bound]
        for name, schema in SCHEMA["properties"]["settings"]["properties"].items()
        if bound in schema
    }
    options = [option for name, limit in limits.items() for option in ("--set", f"settings.{name}={limit}")]
    data = one(rendered(LEAST, options=tuple(options)), "ConfigMap")["data"]
    found = load(None, **{name.lower(): data[name] for name in limits})
    assert {name: getattr(found, name.lower()) for name in limits} == limits
    assert one(rendered(EVERYTHING), "ConfigMap")["data"]["QUEUE_LIMIT"] == "1000000"


REFUSALS = {
    "an unknown value": (["replicaCount=3"], "replicaCount"),
    "an unknown setting": (["settings.CACHE_SIZ=100"], "CACHE_SIZ"),
    "a secret among the settings": (["settings.DB_PASSWORD=x"], "DB_PASSWORD"),
    "a typing error further down": (["image.tga=1"], "tga"),
    "a wrong type": (["replicas=two"], "replicas"),
    "a number out of bounds": (["settings.CACHE_SIZE=5"], "CACHE_SIZE"),
    "a word that is not a choice": (["settings.LOG_LEVEL=loud"], "LOG_LEVEL"),
    "a removed setting": (["settings.PORT=null"], "PORT"),
    "no password": (["secrets.DB_PASSWORD.secret="], "secrets.DB_PASSWORD: must be set"),
    "no Redis": (["secrets.REDIS_URL.secret="], "secrets.REDIS_URL: must be set"),
    "a secret given twice": (["secrets.DB_PASSWORD.value=x"], "secrets.DB_PASSWORD: set value or secret"),
    "a key without a Secret": (["secrets.API_KEYS.key=x"], "secrets.API_KEYS.key"),
    "a URL of another kind": (["secrets.REDIS_URL.secret=,secrets.REDIS_URL.value=http://x"], "REDIS_URL"),
    "tokens without a key": (["settings.JWT_ALGORITHMS=ES256"], "secrets.JWT_KEY"),
    "a key without tokens": (["secrets.JWT_KEY.secret=x"], "settings.JWT_ALGORITHMS"),
    "reads that would all be refused": (["settings.READS=key"], "settings.READS=key"),
    "metrics without a key": (["serviceMonitor.enabled=true,secrets.API_KEYS.secret=x"], "serviceMonitor.apiKey"),
    "an ingress without a host": (["ingress.enabled=true"], "ingress.hosts"),
    "a minimum above the maximum": (
        ["autoscaling.enabled=true,autoscaling.minReplicas=9"],
        "autoscaling.minReplicas",
    ),
    "a setting among other variables": (["extraEnv[0].name=PORT,extraEnv[0].value=x"], "extraEnv: PORT"),
    "a port that is blocked": (
        ["secrets.REDIS_URL.secret=,secrets.REDIS_URL.value=redis://x:6380"],
        "networkPolicy.redisPorts: add 6380",
    ),
    "too many connections": (["postgres.maxConnections=28"], "postgres.maxConnections=28"),
    "too many connections when scaled": (
        ["postgres.maxConnections=76,autoscaling.enabled=true"],
        "postgres.maxConnections=76",
    ),
    "a trial with a hook": (["trial.enabled=true"], "migration.run=initContainer"),
    "an old cluster and preStop": (["preStopSeconds=5"], "preStopSeconds"),
}


@needs_helm
@pytest.mark.parametrize(("values", "named"), REFUSALS.values(), ids=REFUSALS)
def test_invalid_values_are_refused_by_name(values: list[str], named: str) -> None:
    options = [option for value in values for option in ("--set", value)]
    with pytest.raises(Failed) as refusal:
        template(LEAST, options=("--kube-version", "1.29.0", *options))
    assert named in str(refusal.value)


@needs_helm
def test_a_database_is_required() -> None:
    with pytest.raises(Failed, match="DB_HOST"):
        template()


@needs_helm
def test_the_pods_may_open_exactly_as_many_connections_as_are_free() -> None:
    assert template(LEAST, options=("--set", "postgres.maxConnections=29"))
    assert template(LEAST, options=("--set", "postgres.maxConnections=77,autoscaling.enabled=true"))


@needs_helm
@pytest.mark.parametrize("files", COMBINATIONS, ids=lambda files: files[0].name)
def test_all_pods_have_least_privilege(files: tuple[Path, ...]) -> None:
    for name, pod in pods(rendered(*files)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name


@needs_helm
@pytest.mark.parametrize(("delay", "request_", "pre_stop"), [(0, 100, 0), (10_000, 5000, 0), (60_000, 60_000, 30)])
def test_a_pod_has_enough_time_to_stop(delay: int, request_: int, pre_stop: int) -> None:
    options = f"settings.STOP_DELAY_MS={delay},settings.REQUEST_TIMEOUT_MS={request_},preStopSeconds={pre_stop}"
    pod = one(rendered(LEAST, options=("--set", options)), "Deployment")["spec"]["template"]["spec"]
    grace = pod["terminationGracePeriodSeconds"]
    assert grace > pre_stop + math.ceil((delay + request_) / 1000) + 2
    (container,) = pod["containers"]
    if pre_stop:
        assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": pre_stop}}
    else:
        assert "lifecycle" not in container


@needs_helm
def test_the_probes_use_the_right_paths() -> None:
    for port in (3000, 8080):
        documents = rendered(LEAST, options=("--set", f"settings.PORT={port}"))
        (container,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
        (named,) = container["ports"]
        assert named == {"name": "http", "containerPort": port}
        for probe, path in (
            ("startupProbe", "/livez"),
            ("livenessProbe", "/livez"),
            ("readinessProbe", "/readyz"),
        ):
            assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        assert one(documents, "Service")["spec"]["ports"][0]["targetPort"] == "http"


def selector(document: Document) -> Document | None:
    """Returns the labels by which this document selects pods, or None."""
    spec = document.get("spec", {})
    if document["kind"] == "Service":
        found: Document = spec["selector"]
        return found
    selecting = spec.get("selector") or spec.get("podSelector")
    return selecting["matchLabels"] if selecting and document["kind"] != "ServiceMonitor" else None


@needs_helm
@pytest.mark.parametrize("files", COMBINATIONS, ids=lambda files: files[0].name)
def test_each_selector_matches_the_pods_of_its_own_component(files: tuple[Path, ...]) -> None:
    documents = rendered(*files)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(documents)}
    selecting = 0
    for each in documents:
        found = selector(each)
        if found is None:
            continue
        selecting += 1
        selected = [name for name, having in labels.items() if found.items() <= having.items()]
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        assert [labels[name]["app.kubernetes.io/component"] for name in selected] == [component], each["metadata"]
    assert selecting >= 4
    monitors = [each for each in documents if each["kind"] == "ServiceMonitor"]
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"]
        services = [each for each in documents if each["kind"] == "Service"]
        assert [
            each["metadata"]["name"] for each in services if wanted.items() <= each["metadata"]["labels"].items()
        ] == ["leaderboard"]
    assert bool(monitors) == merged(*files)["serviceMonitor"]["enabled"]


@needs_helm
def test_an_upgrade_changes_no_selector() -> None:
    """A Deployment's selector is immutable, so it must not depend on the version."""
    documents = rendered(LEAST)
    selector = one(documents, "Deployment")["spec"]["selector"]["matchLabels"]
    assert set(selector) == {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}
    assert "0.1.0" not in selector.values()


HOOK, WEIGHT = "helm.sh/hook", "helm.sh/hook-weight"


def hook(document: Document) -> tuple[set[str], int] | None:
    """Returns the hook's events and weight, or None if the document is not a hook."""
    annotations = document["metadata"].get("annotations") or {}
    return (set(annotations[HOOK].split(",")), int(annotations[WEIGHT])) if HOOK in annotations else None


@needs_helm
@pytest.mark.parametrize("files", COMBINATIONS, ids=lambda files: files[0].name)
def test_the_objects_that_the_migration_needs_exist_before_it(files: tuple[Path, ...]) -> None:
    """The Job runs before the release's objects exist, so it needs hooks or objects outside the chart."""
    documents = rendered(*files)
    values = merged(*files)
    jobs = [each for each in documents if each["kind"] == "Job"]
    if values["migration"]["run"] == "initContainer":
        assert not jobs
        (container,) = one(documents, "Deployment")["spec"]["template"]["spec"]["initContainers"]
        assert container["args"] == ["migrate"]
        return
    (job,) = jobs
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["args"] == ["migrate"]
    needed = {("ServiceAccount", spec["serviceAccountName"])}
    for variable in container["env"]:
        if "valueFrom" in variable:
            needed.add(("Secret", variable["valueFrom"]["secretKeyRef"]["name"]))
    assert "envFrom" not in container
    own = {(each["kind"], each["metadata"]["name"]): hook(each) for each in documents}
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    for policy in policies:
        if (
            policy["spec"]["podSelector"]["matchLabels"].items()
            <= job["spec"]["template"]["metadata"]["labels"].items()
        ):
            needed.add(("NetworkPolicy", policy["metadata"]["name"]))
    if values["migration"]["run"] == "job":
        assert not any(own.values())
        return
    before, weight = hook(job) or (set(), 0)
    assert before == {"pre-install", "pre-upgrade"}
    given = values["secrets"]["DB_PASSWORD"]["secret"]
    for each in needed - {("Secret", given)}:
        its = own[each]
        assert its is not None, f"{each} is created after the Job"
        assert its[0] == before
        assert its[1] < weight, each
    # No object that the pods need is a hook, because hooks are deleted after they have run.
    for document in documents:
        if hook(document) is not None:
            assert document["metadata"]["labels"]["app.kubernetes.io/component"] == "migrate"


@needs_helm
def test_the_migration_has_the_settings_of_the_connection() -> None:
    documents = rendered(EVERYTHING)
    (container,) = one(documents, "Job", "leaderboard-migrate")["spec"]["template"]["spec"]["containers"]
    plain = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    values = merged(EVERYTHING)
    # The migration has only one connection.
    for name in {name for name in values["settings"] if name.startswith("DB_")} - {"DB_POOL_SIZE"}:
        assert plain[name] == str(values["settings"][name]), name
    (mount,) = container["volumeMounts"]
    assert plain["DB_SSLROOTCERT"].startswith(f"{mount['mountPath']}/")
    assert plain["TZ"] == "Europe/Berlin"
    # `migrate` loads all settings; these are enough for that.
    known = plain.keys() & {name.upper() for name in Settings.model_fields}
    load(None, **{name.lower(): plain[name] for name in known - MOUNTED})


@needs_helm
def test_autoscaling_sets_the_number_of_pods() -> None:
    fixed, scaled = rendered(LEAST), rendered(EVERYTHING)
    assert one(fixed, "Deployment")["spec"]["replicas"] == VALUES["replicas"]
    assert not [each for each in fixed if each["kind"] == "HorizontalPodAutoscaler"]
    assert "replicas" not in one(scaled, "Deployment")["spec"]
    scaler = one(scaled, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == one(scaled, "Deployment")["metadata"]["name"]
    (metric,) = scaler["metrics"]
    assert metric["resource"]["name"] == "cpu"
    # The autoscaler uses a percentage of the CPU request.
    (container,) = one(scaled, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "cpu" in container["resources"]["requests"]


@needs_helm
def test_a_changed_setting_or_secret_replaces_the_pods() -> None:
    def pod(*options: str) -> Document:
        documents = rendered(TRIAL, options=tuple(part for option in options for part in ("--set", option)))
        found: Document = one(documents, "Deployment")["spec"]["template"]
        return found

    assert pod() == pod()
    assert pod() != pod("settings.CACHE_SIZE=20000")
    one_key, another = (pod(f"secrets.API_KEYS.value={letter * 16}") for letter in "ab")
    assert one_key != another


@needs_helm
def test_the_network_policies_allow_what_the_pods_need() -> None:
    def ports(documents: tuple[Document, ...], name: str) -> set[int]:
        rules = one(documents, "NetworkPolicy", name)["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    documents = rendered(LEAST, options=("--set", "settings.DB_PORT=6432,networkPolicy.redisPorts={6380,6381}"))
    assert ports(documents, "leaderboard") == {53, 6432, 6380, 6381}
    assert ports(documents, "leaderboard-migrate") == {53, 6432}
    (rule,) = one(documents, "NetworkPolicy")["spec"]["ingress"]
    assert rule == {"ports": [{"port": "http"}]}
    (rule,) = one(rendered(EVERYTHING), "NetworkPolicy")["spec"]["ingress"]
    assert rule["from"]


@needs_helm
def test_the_trial_has_the_addresses_in_the_settings() -> None:
    documents = rendered(TRIAL)
    values = merged(TRIAL)
    host = values["settings"]["DB_HOST"]
    (port,) = one(documents, "Service", host)["spec"]["ports"]
    assert port["port"] == values["settings"]["DB_PORT"]
    redis = re.fullmatch(r"redis://([^:]+):(\d+)", values["secrets"]["REDIS_URL"]["value"])
    assert redis is not None
    (port,) = one(documents, "Service", redis[1])["spec"]["ports"]
    assert port["port"] == int(redis[2])
    (postgres,) = one(documents, "StatefulSet", host)["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each.get("value") for each in postgres["env"]}
    assert environment["POSTGRES_DB"] == values["settings"]["DB_NAME"]
    assert environment["POSTGRES_USER"] == values["settings"]["DB_USER"]
    assert not VALUES["trial"]["enabled"]


@needs_helm
def test_the_plain_manifests_equal_the_charts_output() -> None:
    assert stale() == [], "run `make manifests`"


def test_the_references_in_the_plain_manifests_exist() -> None:
    for name in ("migrate.yaml", "leaderboard.yaml", "trial.yaml"):
        documents = tuple(yaml.safe_load_all((FOLDER / name).read_text("utf-8")))
        own = {(each["kind"], each["metadata"]["name"]) for each in documents if each}
        for _, pod in pods(tuple(each for each in documents if each)):
            account = pod["spec"].get("serviceAccountName")
            assert account is None or ("ServiceAccount", account) in own
            for container in containers(pod):
                for source in container.get("envFrom", []):
                    assert ("ConfigMap", source["configMapRef"]["name"]) in own
