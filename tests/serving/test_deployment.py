"""The deployment files are what docker compose, Kubernetes, KServe and the server's own parsers accept."""

from __future__ import annotations

import copy
import http.server
import json
import re
import subprocess
import threading
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from common.serving.kit import deployment

DATA = Path(__file__).with_name("data")
NAME = "image_classification"
# Plain, with what only the wire allows, a YAML keyword, longer than any resource may be.
NAMES = [NAME, "3d.Net_v2", "true", "x" * 49 + "_" + "y" * 40]
KUBERNETES_VERSIONS = ["1.29", "1.37"]
# The names of the flag_list in tensorflow_serving/model_servers/main.cc of https://github.com/tensorflow/serving at
# commit efc445f416f8cb20606ca0d2aaf44c13fae7ea4c (2021; later releases only added some).
SERVER_FLAGS = set(
    """
    port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms rest_api_enable_cors_support
    enable_batching allow_version_labels_for_unavailable_models batching_parameters_file model_config_file
    model_config_file_poll_wait_seconds model_name model_base_path num_load_threads num_unload_threads
    max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds flush_filesystem_caches
    tensorflow_session_parallelism tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism ssl_config_file
    platform_config_file per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads
    enable_model_warmup version monitoring_config_file remove_unused_fields_from_bundle_metagraph prefer_tflite_model
    num_tflite_pools num_tflite_interpreters_per_pool enable_signature_method_name_check xla_cpu_compilation_enabled
    enable_profiler thread_pool_factory_config_file
    """.split()
)


def schema(file: str) -> dict:
    return json.loads((DATA / file).read_text("utf-8"))["schema"]


def servable(folder: Path, name: str = NAME) -> Path:
    """A folder as a run leaves it, with the deployment files in it."""
    (folder / name / "1").mkdir(parents=True)
    (folder / "request.json").write_text("{}")
    deployment.write_deployment(folder, name, input_name="image")
    return folder


def resources(folder: Path) -> dict[str, dict]:
    """Each Kubernetes resource of a deployment, by its kind."""
    documents = [yaml.safe_load(path.read_text("utf-8")) for path in sorted((folder / "kubernetes").iterdir())]
    return {document["kind"]: document for document in documents}


def flags(arguments: list[str]) -> set[str]:
    return {re.fullmatch(r"--(\w+)(=.+)?", argument)[1] for argument in arguments}


def config_message(name: str):
    """A message that the installed stubs lack, from the public .proto's list of fields."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    for file in json.loads((DATA / "serving_configs.json").read_text("utf-8"))["files"]:
        pool.Add(json_format.ParseDict(file, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))()


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_written_and_said(tmp_path: Path, name: str):
    written = deployment.write_deployment(tmp_path, name, input_name="image")
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())  # and no half of one
    assert {path.relative_to(tmp_path).as_posix() for path in written} == set(deployment.FILES)
    templates = {p.relative_to(deployment.TEMPLATES).as_posix() for p in deployment.TEMPLATES.rglob("*") if p.is_file()}
    assert templates == set(deployment.FILES)
    for path in written:
        text = path.read_text("utf-8")
        assert text.startswith("#") and text.endswith("\n") and "{{" not in text
    again = deployment.write_deployment(tmp_path, name, input_name="image")  # a second export of the same run
    assert again == written


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "a\\b", "/etc", ".hidden", "a b", "a\n", 'a"b', "ü", "$a"]
)
def test_a_name_that_could_escape_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="received"):
        deployment.write_deployment(tmp_path, name, input_name="image")
    with pytest.raises(ValueError, match="input_name"):
        deployment.write_deployment(tmp_path, NAME, input_name=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_resource_names_are_what_kubernetes_takes(tmp_path: Path, name: str):
    assert deployment.resource_name("image_classification") == "image-classification"
    assert deployment.resource_name("3d.Net_v2") == "model-3d-net-v2"
    names = [document["metadata"]["name"] for document in resources(servable(tmp_path, name)).values()]
    assert len(names) == 6
    for resource in names:
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", resource), resource


# docker compose


@pytest.mark.parametrize("name", NAMES)
def test_compose_file_is_what_the_specification_allows(tmp_path: Path, name: str):
    compose = yaml.safe_load((servable(tmp_path, name) / "docker-compose.yml").read_text("utf-8"))
    jsonschema.validate(compose, schema("compose_spec.json"))
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", compose["name"])


def test_compose_schema_notices_a_wrong_field(tmp_path: Path):
    compose = yaml.safe_load((servable(tmp_path) / "docker-compose.yml").read_text("utf-8"))
    for field, value in (("read-only", True), ("restart", 3), ("healthcheck", {"test": [], "every": "10s"})):
        wrong = copy.deepcopy(compose)
        wrong["services"]["serving"][field] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema("compose_spec.json"))


def test_compose_serves_this_machine_only_and_mounts_what_is_there(tmp_path: Path):
    folder = servable(tmp_path)
    service = yaml.safe_load((folder / "docker-compose.yml").read_text("utf-8"))["services"]["serving"]
    assert service["image"] == deployment.SERVING_IMAGE
    assert service["ports"] == ["127.0.0.1:8501:8501", "127.0.0.1:8500:8500"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in service["volumes"])
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert all((folder / source).exists() for source in mounts)
    assert mounts[f"./{NAME}"] == f"/models/{NAME}"
    assert service["read_only"] is True and service["security_opt"] == ["no-new-privileges:true"]
    read = {argument.split("=")[1] for argument in service["command"] if "_file=" in argument}
    assert read == set(mounts.values()) - {f"/models/{NAME}"}


def test_every_flag_is_one_that_the_server_knows(tmp_path: Path):
    folder = servable(tmp_path)
    compose = yaml.safe_load((folder / "docker-compose.yml").read_text("utf-8"))["services"]["serving"]
    (container,) = resources(folder)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert flags(compose["command"]) <= SERVER_FLAGS
    assert flags(container["args"]) <= SERVER_FLAGS
    assert set(compose["command"]) <= set(container["args"])  # both start the same server
    assert compose["entrypoint"] == container["command"]
    with pytest.raises(TypeError):
        flags(["-port=8500"])


def healthcheck(folder: Path, port: int) -> bool:
    """Run the very command of the health check, in a real bash, against another port."""
    service = yaml.safe_load((folder / "docker-compose.yml").read_text("utf-8"))["services"]["serving"]
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    command = [part.replace("8501", str(port)) for part in command]
    return subprocess.run(command, capture_output=True, timeout=20).returncode == 0


@pytest.mark.parametrize(("state", "healthy"), [("AVAILABLE", True), ("LOADING", False), ("END", False)])
def test_healthcheck_reads_the_state_of_the_model(tmp_path: Path, state: str, healthy: bool):
    class Status(http.server.BaseHTTPRequestHandler):
        """Answers 200 in every state, as the real server does."""

        def do_GET(self):
            self.send_response(200 if self.path == f"/v1/models/{NAME}" else 404)
            self.end_headers()
            version = {"version": "1", "state": state, "status": {"error_code": "OK", "error_message": ""}}
            self.wfile.write(json.dumps({"model_version_status": [version]}, indent=1).encode())

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert healthcheck(servable(tmp_path), server.server_port) is healthy
        finally:
            server.shutdown()
            thread.join()
    assert not healthcheck(tmp_path, server.server_port)  # nobody listens any more


# the server's own configuration


@pytest.mark.parametrize("name", NAMES)
def test_config_files_are_what_the_server_parses(tmp_path: Path, name: str):
    folder = servable(tmp_path, name)
    models = text_format.Parse((folder / "models.config").read_text("utf-8"), ModelServerConfig())
    (model,) = models.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (name, f"/models/{name}", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1

    batching = text_format.Parse((folder / "batching.config").read_text("utf-8"), config_message("BatchingParameters"))
    assert batching.HasField("batch_timeout_micros") and batching.batch_timeout_micros.value == 0
    assert batching.max_batch_size.value >= 16 and batching.num_batch_threads.value >= 1
    assert batching.max_enqueued_batches.value >= 1

    monitoring = config_message("MonitoringConfig")
    text_format.Parse((folder / "monitoring.config").read_text("utf-8"), monitoring)
    assert monitoring.prometheus_config.enable and monitoring.prometheus_config.path == "/metrics"


def test_config_parsers_notice_a_wrong_field(tmp_path: Path):
    for text, message in (
        ("model_config_list { config { nam: 'x' } }", ModelServerConfig()),
        ("max_batchsize { value: 3 }", config_message("BatchingParameters")),
        ("max_batch_size: 3", config_message("BatchingParameters")),
        ("prometheus_config { enabled: true }", config_message("MonitoringConfig")),
    ):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(text, message)


def test_the_labels_shown_in_the_comment_parse(tmp_path: Path):
    lines = (servable(tmp_path) / "models.config").read_text("utf-8").splitlines()
    shown = [
        line.replace("# ", "", 1) for line in lines if re.match(r" *# (model_version_policy|version_labels) ", line)
    ]
    kept = [line for line in lines if "latest" not in line]
    position = next(number for number, line in enumerate(kept) if "model_platform" in line) + 1
    config = text_format.Parse("\n".join(kept[:position] + shown + kept[position:]), ModelServerConfig())
    (model,) = config.model_config_list.config
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}
    assert list(model.model_version_policy.specific.versions) == [1, 2]


# Kubernetes


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_files_are_what_its_schema_allows(tmp_path: Path, name: str, version: str):
    documents = resources(servable(tmp_path, name))
    assert set(documents) == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "PersistentVolumeClaim", "Pod", "Service"
    }  # fmt: skip
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_schema_notices_a_wrong_field(tmp_path: Path, version: str):
    right = resources(servable(tmp_path))["Deployment"]
    for change in (
        lambda spec: spec.update(replica=2),
        lambda spec: spec.update(replicas="two"),
        lambda spec: spec.pop("selector"),
        lambda spec: spec["template"]["spec"]["containers"][0]["readinessProbe"].update(httpget={}),
        lambda spec: spec["template"]["spec"].update(terminationGracePeriod=45),
    ):
        wrong = copy.deepcopy(right)
        change(wrong["spec"])
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_files_speak_of_each_other(tmp_path: Path, name: str):
    folder = servable(tmp_path, name)
    found = resources(folder)
    spec = found["Deployment"]["spec"]
    pod, labels = spec["template"]["spec"], spec["template"]["metadata"]["labels"]
    (container,) = pod["containers"]
    assert spec["selector"]["matchLabels"] == labels == found["Service"]["spec"]["selector"]
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert found["Pod"]["metadata"]["labels"] != labels  # or the Service would send requests to the loader

    claim, config = found["PersistentVolumeClaim"]["metadata"]["name"], found["ConfigMap"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["model"]["persistentVolumeClaim"]["claimName"] == claim
    assert found["Pod"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    assert volumes["config"]["configMap"]["name"] == config
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == set(volumes)
    for file, text in found["ConfigMap"]["data"].items():
        assert text == (folder / file).read_text("utf-8")
    read = {argument.split("=")[1] for argument in container["args"] if "_file=" in argument}
    assert read == {f"{mounts['config']}/{file}" for file in found["ConfigMap"]["data"]}

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8501, "grpc": 8500}
    assert {port["name"]: port["port"] for port in found["Service"]["spec"]["ports"]} == ports
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == set(ports)
    for probe in ("startupProbe", "readinessProbe"):  # never the status, which is 200 before anything is loaded
        assert container[probe]["httpGet"] == {"path": f"/v1/models/{name}/metadata", "port": "http"}
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert wait < pod["terminationGracePeriodSeconds"]


def test_kubernetes_pods_have_no_rights_they_do_not_need(tmp_path: Path):
    found = resources(servable(tmp_path))
    for pod in (found["Deployment"]["spec"]["template"]["spec"], found["Pod"]["spec"]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        (container,) = pod["containers"]
        assert container["image"] == deployment.SERVING_IMAGE
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip


# KServe


@pytest.mark.parametrize("name", NAMES)
def test_kserve_file_is_what_its_schema_allows(tmp_path: Path, name: str):
    folder = servable(tmp_path, name)
    service = yaml.safe_load((folder / "kserve.yaml").read_text("utf-8"))
    jsonschema.validate(service, schema("kserve_schema.json"))
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    claim = resources(folder)["PersistentVolumeClaim"]["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}/{name}"
    assert model["runtimeVersion"] == deployment.SERVING_IMAGE.split(":")[1]
    # Metadata and resources are types of Kubernetes' own, which say more than KServe's schema does here.
    container = {"name": "kserve-container", "resources": model["resources"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": {"containers": [container]}}
    kubernetes_validate.validate(pod, KUBERNETES_VERSIONS[-1], strict=True)


def test_kserve_schema_notices_a_wrong_field(tmp_path: Path):
    service = yaml.safe_load((servable(tmp_path) / "kserve.yaml").read_text("utf-8"))
    for change in (
        lambda predictor: predictor["model"].update(storageURI="pvc://claim/model"),
        lambda predictor: predictor["model"].update(runtimeVersion=2.2),
        lambda predictor: predictor["model"].pop("modelFormat"),
        lambda predictor: predictor.update(minReplicas="1"),
        lambda predictor: predictor.update(minReplica=1),
    ):
        wrong = copy.deepcopy(service)
        change(wrong["spec"]["predictor"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema("kserve_schema.json"))
