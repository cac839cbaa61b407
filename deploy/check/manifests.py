"""The plain manifests in deploy/kubernetes, made from the Helm chart.

What only Helm needs is left out: its labels, and where a document came from.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.check import ROOT, NotExercised, execute, need

CHART = ROOT / "deploy" / "helm" / "leaderboard"
FOLDER = ROOT / "deploy" / "kubernetes"
_OF_HELM = re.compile(r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n|^# Source: .*\n", re.MULTILINE)
_HEAD = "# Made from the Helm chart by `make manifests`: change the chart, or {values}, instead.\n"
_MIGRATION = "migration.yaml"


def template(*values: Path, options: Sequence[str] = ()) -> str:
    """What the chart makes of these files of values, with more options of `helm template`.

    Raises NotExercised where there is no helm, and Failed.
    """
    files = [part for path in values for part in ("--values", path)]
    return execute(need("helm"), "template", "leaderboard", CHART, *files, *options)


def documents(rendered: str) -> dict[str, str]:
    """The documents of each template, by its file's name."""
    found: dict[str, str] = {}
    for document in re.split(r"^---\n", rendered, flags=re.MULTILINE):
        source = re.search(r"^# Source: .*/(.*)$", document, re.MULTILINE)
        if source:
            found[source[1]] = found.get(source[1], "") + "---\n" + _OF_HELM.sub("", document).strip() + "\n"
    return found


def manifests() -> dict[str, str]:
    """The text of each file, by its name. Raises NotExercised where there is no helm."""
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
    """Names of the files that are not what the chart makes."""
    return [
        name
        for name, text in manifests().items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != text
    ]


def main() -> None:
    """Write them."""
    try:
        made = manifests()
    except NotExercised as error:
        sys.exit(str(error))
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
        print(f"deploy/kubernetes/{name}")


if __name__ == "__main__":
    main()
