"""Generates the plain manifests in deploy/kubernetes from the Helm chart.

Helm's own labels and the comments with a document's source are removed.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.check import ROOT, NotExercised, execute, need

CHART = ROOT / "deploy" / "helm" / "leaderboard"
FOLDER = ROOT / "deploy" / "kubernetes"
_OF_HELM = re.compile(r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n|^# Source: .*\n", re.MULTILINE)
_HEAD = "# Generated from the Helm chart by `make manifests`: change the chart or {values} instead.\n"
_MIGRATION = "migration.yaml"


def template(*values: Path, options: Sequence[str] = ()) -> str:
    """Returns the output of `helm template` with these values files and options.

    Raises NotExercised if helm is not installed, and Failed if it fails.
    """
    files = [part for path in values for part in ("--values", path)]
    return execute(need("helm"), "template", "leaderboard", CHART, *files, *options)


def documents(rendered: str) -> dict[str, str]:
    """Returns the documents of each template by the template's file name."""
    found: dict[str, str] = {}
    for document in re.split(r"^---\n", rendered, flags=re.MULTILINE):
        source = re.search(r"^# Source: .*/(.*)$", document, re.MULTILINE)
        if source:
            found[source[1]] = found.get(source[1], "") + "---\n" + _OF_HELM.sub("", document).strip() + "\n"
    return found


def manifests() -> dict[str, str]:
    """Returns the text of each manifest by its file name. Raises NotExercised if helm is not installed."""
    plain = documents(template(FOLDER / "values.yaml"))
    migration = plain.pop(_MIGRATION)
    trial = documents(template(CHART / "values-trial.yaml"))
    from_plain = _HEAD.format(values="deploy/kubernetes/values.yaml")
    return {
        "migrate.yaml": from_plain + migration,
        "leaderboard.yaml": from_plain + "".join(plain[name] for name in sorted(plain)),
        "trial.yaml": _HEAD.format(values="its values-trial.yaml")
        + "".join(trial[name] for name in sorted(trial)),
    }


def stale() -> list[str]:
    """Returns the names of the files that differ from the chart's output."""
    return [
        name
        for name, text in manifests().items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != text
    ]


def main() -> None:
    """Writes the manifests."""
    try:
        made = manifests()
    except NotExercised as error:
        sys.exit(str(error))
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
        print(f"deploy/kubernetes/{name}")


if __name__ == "__main__":
    main()
