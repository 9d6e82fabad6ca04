"""Whatever a client makes of the OpenAPI document, the server answers as the document says."""

import json
from http.client import HTTPConnection

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

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
    case.call_and_validate(base_url=server.url)


def test_the_document_is_served_and_lists_every_path(server):
    connection = HTTPConnection(server.address)
    connection.request("GET", "/openapi.json")
    assert json.loads(connection.getresponse().read()) == json.loads(json.dumps(document()))
