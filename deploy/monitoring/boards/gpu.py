"""GPUs, as NVIDIA's DCGM exporter reports them."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.board import Panels, choice, make_board
from deploy.monitoring.panels import stat_panel, time_series

HERE = 'Hostname=~"$host", gpu=~"$gpu"'
NAME = "{{Hostname}} GPU {{gpu}}"
MEBIBYTE = 1024 * 1024


def build() -> Dashboard:
    """Returns the dashboard."""
    return make_board(
        "gpu",
        "GPU",
        "GPUs by NVIDIA's DCGM exporter with its default counters: use, memory, power, heat and errors.",
        [
            choice("host", "Host", "label_values(DCGM_FI_DEV_GPU_UTIL, Hostname)"),
            choice("gpu", "GPU", 'label_values(DCGM_FI_DEV_GPU_UTIL{Hostname=~"$host"}, gpu)'),
        ],
        [*_stats(), *_work(), *_body()],
    )


def memory_share() -> str:
    """Returns the query of the share of a GPU's memory that is in use."""
    used, free = f"DCGM_FI_DEV_FB_USED{{{HERE}}}", f"DCGM_FI_DEV_FB_FREE{{{HERE}}}"
    return f"{used} / ({used} + {free})"


def _stats() -> Panels:
    return [
        stat_panel("GPUs", "GPUs that report.", "short", (f"count(DCGM_FI_DEV_GPU_UTIL{{{HERE}}})", "GPUs"), width=6),
        stat_panel(
            "Mean use",
            "Share of time in which a kernel ran, mean over GPUs. Low while a run goes on: it waits for another "
            "service.",
            "percent",
            (f"avg(DCGM_FI_DEV_GPU_UTIL{{{HERE}}})", "use"),
            width=6,
            decimals=0,
            steps=((None, "orange"), (50, "green")),
        ),
        stat_panel(
            "Fullest memory",
            "Share of memory in use on the fullest GPU. vLLM takes its share at the start and keeps it.",
            "percentunit",
            (f"max({memory_share()})", "memory"),
            width=6,
            decimals=0,
            steps=((None, "green"), (0.95, "orange"), (0.99, "red")),
        ),
        stat_panel(
            "GPUs with errors",
            "GPUs whose last XID error is not 0; NVIDIA's list says what a number means.",
            "short",
            (f"count(DCGM_FI_DEV_XID_ERRORS{{{HERE}}} > 0) or vector(0)", "GPUs"),
            width=6,
            steps=((None, "green"), (1, "red")),
        ),
    ]


def _work() -> Panels:
    return [
        time_series(
            "Use",
            "Share of time in which a kernel ran.",
            "percent",
            (f"DCGM_FI_DEV_GPU_UTIL{{{HERE}}}", NAME),
            low=0,
            high=100,
        ),
        time_series(
            "Tensor cores",
            "Share of cycles in which the tensor cores worked: how well the use above is used. Training should show "
            "0.3 and more, sampling less.",
            "percentunit",
            (f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{HERE}}}", NAME),
            low=0,
            high=1,
        ),
        time_series(
            "Memory",
            "Bytes of the GPU's memory in use.",
            "bytes",
            (f"DCGM_FI_DEV_FB_USED{{{HERE}}} * {MEBIBYTE}", NAME),
            low=0,
        ),
    ]


def _body() -> Panels:
    return [
        time_series(
            "Power",
            "What each GPU draws.",
            "watt",
            (f"DCGM_FI_DEV_POWER_USAGE{{{HERE}}}", NAME),
            low=0,
        ),
        time_series(
            "Temperature",
            "Of the GPU's core. Most slow down above 83 to 90 degrees.",
            "celsius",
            (f"DCGM_FI_DEV_GPU_TEMP{{{HERE}}}", NAME),
            steps=((None, "green"), (83, "orange"), (90, "red")),
        ),
        time_series(
            "PCIe traffic",
            "Bytes to and from each GPU for each second, as DCGM measures it: weight pushes show as peaks.",
            "Bps",
            (f"DCGM_FI_PROF_PCIE_RX_BYTES{{{HERE}}}", f"{NAME} received"),
            (f"DCGM_FI_PROF_PCIE_TX_BYTES{{{HERE}}}", f"{NAME} sent"),
            low=0,
        ),
    ]
