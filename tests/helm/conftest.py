"""The real dependencies, and a cluster to install the chart on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rendering import CHART

#: A folder with the charts that Chart.yaml names, as folders or as .tgz.
CHARTS_VARIABLE = "TFMOT_OPS_CHARTS"
#: A folder with kube-up, which prints `export KUBECONFIG=...`, base-image and kube-load.
LAB_VARIABLE = "TFMOT_OPS_LAB"
#: A cluster that may be written to. Not KUBECONFIG: nobody's cluster is written to by accident.
KUBECONFIG_VARIABLE = "TFMOT_OPS_TEST_KUBECONFIG"


@pytest.fixture(scope="session")
def with_dependency(tmp_path_factory) -> Callable[[str], Path]:
    """A copy of the chart with one real dependency in its charts folder, by name."""

    def make(name: str) -> Path:
        folder = os.environ.get(CHARTS_VARIABLE)
        if not folder:
            pytest.skip(f"{CHARTS_VARIABLE} names no folder with the chart {name}")
        found = sorted(Path(folder).glob(f"{name}-*.tgz")) + [p for p in [Path(folder, name)] if p.is_dir()]
        if not found:
            pytest.skip(f"{CHARTS_VARIABLE} names a folder without the chart {name}")
        chart = tmp_path_factory.mktemp(name) / "tfmot-ops"
        shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("charts"))
        target = chart / "charts" / found[0].name
        target.parent.mkdir()
        (shutil.copytree if found[0].is_dir() else shutil.copy)(found[0], target)
        return chart

    return make


@dataclass(frozen=True)
class Cluster:
    """A cluster and an image that its nodes have or can pull."""

    kubeconfig: str
    image: str
    lab: Path | None = None

    def load(self, image: str) -> None:
        """Give the nodes an image of the local engine; a cluster that is not a lab's has to pull it itself."""
        if self.lab:
            subprocess.run([self.lab / "kube-load", image], check=True, capture_output=True, timeout=600)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    lab = os.environ.get(LAB_VARIABLE)
    if lab:
        yield _lab_cluster(Path(lab))
    elif os.environ.get(KUBECONFIG_VARIABLE):
        yield Cluster(os.environ[KUBECONFIG_VARIABLE], "busybox:1.37")
    else:
        pytest.skip(f"no cluster: {LAB_VARIABLE} names no lab, {KUBECONFIG_VARIABLE} no kubeconfig")


def _lab_cluster(lab: Path) -> Cluster:
    image = "localhost/python:3.11-slim-bookworm"
    settings = subprocess.run([lab / "kube-up"], check=True, capture_output=True, text=True, timeout=600).stdout
    subprocess.run([lab / "base-image"], check=True, capture_output=True, timeout=600)
    found = re.search(r"KUBECONFIG=['\"]?([^'\"\s;]+)", settings)
    assert found, f"kube-up printed no KUBECONFIG:\n{settings}"
    cluster = Cluster(found[1], image, lab)
    cluster.load(image)
    return cluster
