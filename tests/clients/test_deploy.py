"""The files of deploy/, as far as they can be checked without a cluster."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
import requests
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm/lorry"


def flags(request):
    help_text = subprocess.run([request.config.getoption("--lorry"), "serve", "--help-all"],
                               capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--([a-z][a-z0-9-]+)", help_text))


def test_the_dashboard_asks_for_metrics_that_there_are(server, lorax_client):
    lorax_client.generate("Hello", max_new_tokens=2)
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    text = requests.get(server.url + "/metrics", timeout=30).text
    exported = {line.split("{")[0].split()[0] for line in text.splitlines()
                if line and not line.startswith("#")}
    rare = {"lorax_request_failure", "lorry_spans_sent_total", "lorry_spans_dropped_total"}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"(?:vllm:|lorax_|lorry_)[a-z0-9_]+", target["expr"]):
                assert name in exported or name in rare, name


def test_the_unit_is_one(tmp_path):
    unit = (DEPLOY / "lorry.service").read_text()
    assert "ExecStart=/usr/local/bin/lorry serve --config" in unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze verifies units, and a system without systemd has none")
    (tmp_path / "lorry.service").write_text(unit.replace("/usr/local/bin/lorry", "/bin/true"))
    checked = subprocess.run(["systemd-analyze", "verify", str(tmp_path / "lorry.service")],
                             capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr


def test_the_chart_sets_flags_that_there_are(request):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["apiVersion"] == "v2" and chart["name"] == "lorry"
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    known = flags(request)
    assert set(values["config"]) <= known
    used = set()
    for file in sorted((CHART / "templates").iterdir()):
        text = file.read_text()
        assert text.count("{{") == text.count("}}")
        used |= set(re.findall(r"^ *- --([a-z-]+)$", text, re.MULTILINE))
        # What the template refers to has a value.
        for path in re.findall(r"\.Values\.([A-Za-z.]+)", text):
            value = values
            for part in path.split("."):
                assert part in value, f"{file.name}: {path}"
                value = value[part]
    assert used and used <= known


def test_the_image_starts_the_server(request):
    text = (DEPLOY / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["lorry", "serve"]' in text and "USER 10001" in text
    [line] = [x for x in text.splitlines() if x.startswith("ENV ")]
    names = {pair.split("=")[0].lower().replace("_", "-") for pair in line.split()[1:]}
    assert names <= flags(request) | {"hostname"}


ALL_VALUES = {"keysSecret": "keys", "tlsSecret": "tls", "modelsClaim": "models", "replicas": 3}


@pytest.mark.parametrize("values", [{}, ALL_VALUES])
def test_helm_renders_the_chart(values):
    if shutil.which("helm") is None:
        pytest.skip("helm is not installed; the test above reads the templates without it")
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    subprocess.run(["helm", "lint", "--strict", str(CHART), *sets], check=True, capture_output=True)
    rendered = subprocess.run(["helm", "template", "test", str(CHART), *sets], check=True,
                              capture_output=True, text=True).stdout
    objects = {document["kind"]: document for document in yaml.safe_load_all(rendered)}
    assert set(objects) == {"ConfigMap", "Deployment", "Service"}
    config = yaml.safe_load(objects["ConfigMap"]["data"]["config.yaml"])
    deployment = objects["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    assert deployment["replicas"] == values.get("replicas", 1)
    assert container["ports"][0]["containerPort"] == config["port"]
    assert pod["terminationGracePeriodSeconds"] > config["shutdown-timeout"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert len(mounts) == (6 if values else 3)
    assert ("--api-key-file" in container["args"]) == ("--ssl-keyfile" in container["args"]) == bool(values)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == ("HTTPS" if values else "HTTP")
    labels = deployment["template"]["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["selector"].items() <= labels
    assert deployment["selector"]["matchLabels"].items() <= labels
