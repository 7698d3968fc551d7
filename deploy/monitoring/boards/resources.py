"""Memory, processor, files and disk of every process."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.board import RATE, Panels, choice, make_board
from deploy.monitoring.panels import stat_panel, time_series

HERE = 'job=~"$job"'
NAME = "{{job}} {{instance}}"


def build() -> Dashboard:
    """Returns the dashboard."""
    return make_board(
        "resources",
        "Resources",
        "Memory, processor, open files, restarts and disk of every process.",
        [choice("job", "Service", "label_values(rlhf_ready, job)", all_value=None)],
        [*_stats(), *_processes(), *_disk()],
    )


def _stats() -> Panels:
    free, size = "rlhf_trainer_disk_free_bytes", "rlhf_trainer_disk_size_bytes"
    return [
        stat_panel(
            "Memory",
            "Resident memory of all processes of a service. vLLM's engine runs in a process of its own, which is not "
            "in here.",
            "bytes",
            (f"sum by (job) (process_resident_memory_bytes{{{HERE}}})", "{{job}}"),
            width=12,
            decimals=1,
        ),
        stat_panel(
            "Restarts in the last hour",
            "How often a process began anew under the same address. In Kubernetes a new pod has a new address.",
            "short",
            (f"sum by (job) (changes(process_start_time_seconds{{{HERE}}}[1h]))", "{{job}}"),
            width=6,
            steps=((None, "green"), (1, "orange"), (3, "red")),
        ),
        stat_panel(
            "Disk free",
            "Free share of the file system of the run directories.",
            "percentunit",
            (f"min({free} / {size})", "runs"),
            width=6,
            steps=((None, "red"), (0.03, "orange"), (0.1, "green")),
            decimals=0,
            no_value="no run",
        ),
    ]


def _processes() -> Panels:
    return [
        time_series(
            "Resident memory",
            "Memory of each process. A steady rise over hours is a leak; a restart at the limit is the kernel's doing.",
            "bytes",
            (f"process_resident_memory_bytes{{{HERE}}}", NAME),
            width=12,
            low=0,
        ),
        time_series(
            "Processor",
            "Cores that each process keeps busy.",
            "suffix: cores",
            (f"rate(process_cpu_seconds_total{{{HERE}}}[{RATE}])", NAME),
            width=12,
            low=0,
        ),
    ]


def _disk() -> Panels:
    return [
        time_series(
            "Disk of the runs",
            "Free bytes where checkpoints are written. A line that falls by steps: checkpoint.keep_last is too large.",
            "bytes",
            ("min by (instance) (rlhf_trainer_disk_free_bytes)", "{{instance}} free"),
            ("max by (instance) (rlhf_trainer_disk_size_bytes)", "{{instance}} size"),
            limits=[".* size"],
            low=0,
        ),
        time_series(
            "Open files",
            "Open files and sockets, as a share of what a process may have.",
            "percentunit",
            (f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}", NAME),
            low=0,
            steps=((None, "green"), (0.8, "red")),
        ),
        time_series(
            "Time since the start",
            "How long each process has run. A drop to 0 is a restart.",
            "s",
            (f"time() - process_start_time_seconds{{{HERE}}}", NAME),
            low=0,
        ),
    ]
