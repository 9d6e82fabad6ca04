"""Whatever a client makes of the OpenAPI document, the server answers as the document says."""

import json
from http.client import HTTPConnection

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from keras_resnets.serving.openapi import document

pytestmark = pytest.mark.faults
schema = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def server(serving, exported):
    with serving(f"tiny={exported()[1]}", "--deadline", 30) as running:
        yield running


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_does_what_the_document_says(case, server):
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = "tiny"
    response = case.call(base_url=server.url)
    # A server error is a fault, but for a deadline that the client itself set too short.
    own_deadline = response.status_code == 504 and "timeout" in (case.query or {})
    # No schema can say what an image is, or which tensors a model takes.
    beyond_schemas = case.path.endswith("/infer") or case.path.startswith("/v1/classify")
    excluded = [not_a_server_error] * own_deadline + [positive_data_acceptance] * beyond_schemas
    case.validate_response(response, excluded_checks=excluded)


def test_the_document_is_served_and_lists_every_path(server):
    connection = HTTPConnection(server.address)
    connection.request("GET", "/openapi.json")
    assert json.loads(connection.getresponse().read()) == json.loads(json.dumps(document()))
