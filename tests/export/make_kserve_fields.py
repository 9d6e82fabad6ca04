"""Writes kserve_fields.json: the fields of a KServe InferenceService and their types, from KServe's own Python SDK.

    pip install --no-deps kserve==0.21.0
    python tests/export/make_kserve_fields.py

The SDK's classes are generated from the OpenAPI schema of the custom resource. They are read, not imported: the SDK
needs half of a cluster's software.
"""

import ast
import importlib.util
import json
from pathlib import Path

PARTS = ("inference_service", "inference_service_spec", "predictor_spec", "model_spec", "model_format")


def tables(file):
    """The class's field types by their names in YAML."""
    (found,) = (item for item in ast.parse(file.read_text()).body if isinstance(item, ast.ClassDef))
    values = {
        item.targets[0].id: item.value
        for item in found.body
        if isinstance(item, ast.Assign) and item.targets[0].id in ("openapi_types", "attribute_map")
    }
    types, names = (ast.literal_eval(values[name]) for name in ("openapi_types", "attribute_map"))
    return found.name, {names[field]: kind for field, kind in types.items()}


def main():
    """Write the file beside this one."""
    folder = Path(importlib.util.find_spec("kserve").origin).parent / "models"
    content = dict(tables(folder / f"v1beta1_{part}.py") for part in PARTS)
    target = Path(__file__).with_name("kserve_fields.json")
    target.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
