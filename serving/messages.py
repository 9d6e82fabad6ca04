"""The messages of the Open Inference Protocol over gRPC, as protobuf classes.

Source: the KServe v2 protocol's gRPC part with Triton's extensions. They are made from the tables below and not by a
compiler, and live in a pool of their own: a program may hold them and Triton's client, which registers the same names.
Maps are written as the repeated entries that they are on the wire.
"""

from __future__ import annotations

import re
from typing import Any

from keras_resnets.extras import extra

with extra("serve"):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# Message: number name type, a * for repeated; a | for the alternatives of a oneof.
_TABLE = """
ServerLiveRequest:
ServerLiveResponse: 1 live bool
ServerReadyRequest:
ServerReadyResponse: 1 ready bool
ModelReadyRequest: 1 name string, 2 version string
ModelReadyResponse: 1 ready bool
ServerMetadataRequest:
ServerMetadataResponse: 1 name string, 2 version string, 3 extensions string*
ModelMetadataRequest: 1 name string, 2 version string
TensorMetadata: 1 name string, 2 datatype string, 3 shape int64*
ModelMetadataResponse: 1 name string, 2 versions string*, 3 platform string, 4 inputs TensorMetadata*, 5 outputs TensorMetadata*
InferParameter: 1 bool_param bool|, 2 int64_param int64|, 3 string_param string|, 4 double_param double|, 5 uint64_param uint64|
Parameter: 1 key string, 2 value InferParameter
InferTensorContents: 1 bool_contents bool*, 2 int_contents int32*, 3 int64_contents int64*, 4 uint_contents uint32*, 5 uint64_contents uint64*, 6 fp32_contents float*, 7 fp64_contents double*, 8 bytes_contents bytes*
InferInputTensor: 1 name string, 2 datatype string, 3 shape int64*, 4 parameters Parameter*, 5 contents InferTensorContents
InferRequestedOutputTensor: 1 name string, 2 parameters Parameter*
ModelInferRequest: 1 model_name string, 2 model_version string, 3 id string, 4 parameters Parameter*, 5 inputs InferInputTensor*, 6 outputs InferRequestedOutputTensor*, 7 raw_input_contents bytes*
InferOutputTensor: 1 name string, 2 datatype string, 3 shape int64*, 4 parameters Parameter*, 5 contents InferTensorContents
ModelInferResponse: 1 model_name string, 2 model_version string, 3 id string, 4 parameters Parameter*, 5 outputs InferOutputTensor*, 6 raw_output_contents bytes*
ModelStreamInferResponse: 1 error_message string, 2 infer_response ModelInferResponse
ModelInput: 1 name string, 2 data_type int32, 4 dims int64*
ModelOutput: 1 name string, 2 data_type int32, 3 dims int64*
ModelInstanceGroup: 1 name string, 2 count int32, 4 kind int32
ModelDynamicBatching: 1 preferred_batch_size int32*, 2 max_queue_delay_microseconds uint64
ModelConfig: 1 name string, 2 platform string, 4 max_batch_size int32, 5 input ModelInput*, 6 output ModelOutput*, 7 instance_group ModelInstanceGroup*, 11 dynamic_batching ModelDynamicBatching, 17 backend string
ModelConfigRequest: 1 name string, 2 version string
ModelConfigResponse: 1 config ModelConfig
ModelStatisticsRequest: 1 name string, 2 version string
StatisticDuration: 1 count uint64, 2 ns uint64
InferStatistics: 1 success StatisticDuration, 2 fail StatisticDuration, 3 queue StatisticDuration, 4 compute_input StatisticDuration, 5 compute_infer StatisticDuration, 6 compute_output StatisticDuration, 7 cache_hit StatisticDuration, 8 cache_miss StatisticDuration
InferBatchStatistics: 1 batch_size uint64, 3 compute_infer StatisticDuration
ModelStatistics: 1 name string, 2 version string, 3 last_inference uint64, 4 inference_count uint64, 5 execution_count uint64, 6 inference_stats InferStatistics, 7 batch_stats InferBatchStatistics*
ModelStatisticsResponse: 1 model_stats ModelStatistics*
ModelRepositoryParameter: 1 bool_param bool|, 2 int64_param int64|, 3 string_param string|, 4 bytes_param bytes|
RepositoryParameter: 1 key string, 2 value ModelRepositoryParameter
RepositoryIndexRequest: 1 repository_name string, 2 ready bool
ModelIndex: 1 name string, 2 version string, 3 state string, 4 reason string
RepositoryIndexResponse: 1 models ModelIndex*
RepositoryModelLoadRequest: 1 repository_name string, 2 model_name string, 3 parameters RepositoryParameter*
RepositoryModelLoadResponse:
RepositoryModelUnloadRequest: 1 repository_name string, 2 model_name string, 3 parameters RepositoryParameter*
RepositoryModelUnloadResponse:
"""  # noqa: E501
METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip
# Of Triton's ModelConfig: the numbers of its enumerations.
DATA_TYPES = {
    name: number
    for number, name in enumerate(
        ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"), 1
    )
}
KINDS = {"KIND_GPU": 1, "KIND_CPU": 2}


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package=PACKAGE, syntax="proto3")
    for line in _TABLE.strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for number, field, kind, mark in re.findall(r"(\d+) (\w+) (\w+)([*|]?)", fields):
            _add_field(message, int(number), field, kind, mark)
    return file


def _add_field(message: Any, number: int, name: str, kind: str, mark: str) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    label = types.LABEL_REPEATED if mark == "*" else types.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind[0].isupper():
        field.type, field.type_name = types.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = types.Type.Value(f"TYPE_{kind.upper()}")
    if mark == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    file = _file()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}"))
        for message in file.message_type
    }


MESSAGES = _classes()
