"""Fetch the schemas that tests/serving/test_deployment.py checks the deployment files against: tests/serving/data.

    python benchmarks/refresh_schemas.py         # fetches about 1 MB of wheels

compose_spec.json       the Compose Specification's own JSON schema (compose-spec/compose-spec, Apache-2.0), which
                        check-jsonschema carries unchanged; its prose is left out here
kserve_schema.json      InferenceService as KServe's Python client knows it: the client is generated from the same
                        OpenAPI document as KServe's CRD, and the tables in its classes say name and type of every field

Nothing is installed or run: the wheels are read.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import files  # noqa: E402 (the script's folder, not the checkout, is on sys.path)

CHECK_JSONSCHEMA = ("check-jsonschema", "0.39.0")
COMPOSE_SPEC = "check_jsonschema/builtin_schemas/vendor/compose-spec.json"
KSERVE = ("kserve", "0.21.0")
# The classes whose fields are spelled out; a field of any other class may hold anything.
KSERVE_CLASSES = {
    "V1beta1InferenceService": "kserve/models/v1beta1_inference_service.py",
    "V1beta1InferenceServiceSpec": "kserve/models/v1beta1_inference_service_spec.py",
    "V1beta1PredictorSpec": "kserve/models/v1beta1_predictor_spec.py",
    "V1beta1ModelSpec": "kserve/models/v1beta1_model_spec.py",
    "V1beta1ModelFormat": "kserve/models/v1beta1_model_format.py",
}


def fetch(package: str, version: str, folder: Path) -> tuple[zipfile.ZipFile, dict[str, str]]:
    """Download a wheel, say how large it is, and return it open, with what the schema's file says of its source."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), f"{package}=={version}"], check=True)
    (wheel,) = folder.glob(f"{package.replace('-', '_')}-{version}-*.whl")
    print(f"fetched {wheel.name}: {wheel.stat().st_size / 1e6:,.1f} MB", flush=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return zipfile.ZipFile(wheel), {"package": package, "version": version, "wheel_sha256": digest}


def without_prose(schema):
    """Return a JSON schema without its descriptions, which check nothing (a property may be called `description`)."""
    if isinstance(schema, list):
        return [without_prose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "description" or not isinstance(value, str)}
    return {key: without_prose(value) for key, value in kept.items()}


def class_schema(source: str, spelled_out: set[str]) -> dict:
    """Return the JSON schema of one class of a generated OpenAPI client.

    Args:
        source: text of its module. `openapi_types` holds the type of each attribute, `attribute_map` its name in
            JSON, and the setters refuse None for what is required.
        spelled_out: classes that have a schema of their own.

    Returns:
        The schema, which allows no other field.
    """
    assigned = {
        node.targets[0].id: node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    types, names = ast.literal_eval(assigned["openapi_types"]), ast.literal_eval(assigned["attribute_map"])
    required = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", source))
    return {
        "type": "object",
        "properties": {names[attribute]: type_schema(kind, spelled_out) for attribute, kind in types.items()},
        "required": sorted(names[attribute] for attribute in required),
        "additionalProperties": False,
    }


def type_schema(kind: str, spelled_out: set[str]) -> dict:
    """Return the JSON schema of a type as the client writes it: `str`, `list[V1Port]`, `dict(str, str)`, `V1Port`."""
    plain = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}
    if kind in plain:
        return {"type": plain[kind]}
    if kind in spelled_out:
        return {"$ref": f"#/$defs/{kind}"}
    if listed := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": type_schema(listed[1], spelled_out)}
    if mapped := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": type_schema(mapped[1], spelled_out)}
    return {}


def main() -> None:
    """Fetch the wheels and write both schemas."""
    with tempfile.TemporaryDirectory() as temporary:
        carrier, carrier_source = fetch(*CHECK_JSONSCHEMA, Path(temporary))
        compose_text = carrier.read(COMPOSE_SPEC)
        compose_source = carrier_source | {"file": COMPOSE_SPEC, "sha256": hashlib.sha256(compose_text).hexdigest()}
        kserve, kserve_source = fetch(*KSERVE, Path(temporary))
        sources = {name: kserve.read(file).decode() for name, file in KSERVE_CLASSES.items()}

    definitions = {name: class_schema(source, set(sources)) for name, source in sources.items()}
    kserve_schema = {"$ref": "#/$defs/V1beta1InferenceService", "$defs": definitions}
    written = {
        "compose_spec.json": {"source": compose_source, "schema": without_prose(json.loads(compose_text))},
        "kserve_schema.json": {"source": kserve_source, "schema": kserve_schema},
    }
    for name, content in written.items():
        path = files.write_json(ROOT / "tests/serving/data" / name, content)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
