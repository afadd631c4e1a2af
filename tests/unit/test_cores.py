"""The number of cores: the machine's, or the smallest quota of the control groups that the process is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rag_serving.settings import ServingSettings, available_cores


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a kernel's files, on a machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_without_a_quota_all_cores_of_the_affinity_count(kernel: Path) -> None:
    assert available_cores(kernel) == 64
    write(kernel, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert available_cores(kernel) == 64


@pytest.mark.parametrize(("quota", "cores"), [("200000 100000", 2), ("250000 100000", 3), ("10000 100000", 1)])
def test_a_container_s_quota_counts_and_a_fraction_is_a_core(kernel: Path, quota: str, cores: int) -> None:
    write(kernel, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert available_cores(kernel) == cores


def test_the_smallest_quota_of_a_group_and_those_above_it_counts(kernel: Path) -> None:
    write(
        kernel,
        {
            "proc/self/cgroup": "0::/kubepods/pod1/container\n",
            "sys/fs/cgroup/kubepods/pod1/container/cpu.max": "max 100000",
            "sys/fs/cgroup/kubepods/pod1/cpu.max": "300000 100000",
            "sys/fs/cgroup/kubepods/cpu.max": "3200000 100000",
        },
    )
    assert available_cores(kernel) == 3


def test_quotas_of_the_first_version_count_too(kernel: Path) -> None:
    write(
        kernel,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert available_cores(kernel) == 4


def test_malformed_files_are_ignored(kernel: Path) -> None:
    write(kernel, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "what is this"})
    assert available_cores(kernel) == 64


def test_the_setting_overrides_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_CORES", "7")
    assert ServingSettings.from_env().usable_cores == 7
    assert ServingSettings.from_env().searches_at_once == 7
